"""fedpatchcore certs: keys and certificates of a deployment."""

from pathlib import Path
from typing import Annotated

import typer

from fl.cli.terminal import console


def certs(
    hosts: Annotated[list[str], typer.Argument(help="names or addresses of the SuperLink")],
    nodes: Annotated[int, typer.Option(min=0, help="how many SuperNodes get a key")] = 2,
    out: Annotated[Path, typer.Option(help="folder; what is there already stays")] = Path("certs"),
) -> None:
    """Make a private certificate authority, the SuperLink's certificate and the nodes' keys."""
    from fl.deployment.certificates import make_certificates

    for path in make_certificates(out, hosts, range(nodes)):
        console.print(str(path), soft_wrap=True, highlight=False)
