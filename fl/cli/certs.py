"""fedpatchcore certs: keys and certificates of a deployment."""

from pathlib import Path
from typing import Annotated

import typer

from fl.cli.terminal import console


def certs(
    hosts: Annotated[list[str], typer.Argument(help="host names or IP addresses of the SuperLink")],
    nodes: Annotated[int, typer.Option(min=0, help="number of SuperNodes to create keys for")] = 2,
    out: Annotated[Path, typer.Option(help="folder to write; existing files are kept")] = Path(
        "certs"
    ),
) -> None:
    """Create the keys and certificates of a deployment.

    That is a private certificate authority, the SuperLink's certificate and a key for each node.
    """
    from fl.deployment.certificates import make_certificates

    for path in make_certificates(out, hosts, range(nodes)):
        console.print(str(path), soft_wrap=True, highlight=False)
