"""fedpatchcore demo and simulate: run a federation on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from fl.cli.terminal import Config, Out, Resume, Sets, resolve, show_partition, show_results
from src.errors import UserError

Engine = Annotated[str | None, typer.Option(help="ray (Flower's simulation engine) or inline")]


def demo(out: Out = None, engine: Engine = None, set_: Sets = []) -> None:  # noqa: B006
    """Run a demo: one round on generated images."""
    from fl.config import CHECKOUT

    simulate(CHECKOUT / "configs" / "demo.toml", set_, out, engine)


def simulate(
    config: Config = None,
    set_: Sets = [],  # noqa: B006
    out: Out = None,
    engine: Engine = None,
    resume: Resume = None,
) -> None:
    """Run a federation on this machine.

    It fits the clients, merges and broadcasts their banks, evaluates, and writes a report.
    """
    from fl.cli.progress import ProgressView
    from fl.engines.launch import launch

    settings = resolve(config, set_, out, engine, resume)
    if not settings.data_shared:
        raise UserError("data.shared = false: simulated clients share one data root; leave it true")
    show_partition(settings)
    folder = Path(settings.out)
    with ProgressView(folder, settings.clients):
        launch(settings)
    show_results(folder)
