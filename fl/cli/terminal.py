"""What the commands share: their options, the settings they resolve, the tables they print."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from src.errors import UserError

if TYPE_CHECKING:
    from fl.config import Scalar, Settings


console = Console()
errors = Console(stderr=True)

Config = Annotated[Path | None, typer.Argument(help="TOML file of settings")]
Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="a setting")]
Out = Annotated[
    Path | None, typer.Option(help="run directory; made anew below outputs/ if left out")
]
Resume = Annotated[
    Path | None, typer.Option(help="run directory to go on in, from its merged bank")
]
Weights = Annotated[Path | None, typer.Option(help="the weights file the model was made with")]
Device = Annotated[str, typer.Option(help="cuda or cpu; by default a GPU where there is one")]


def resolve(
    config: Path | None,
    assignments: list[str],
    out: Path | None,
    engine: str | None = None,
    resume: Path | None = None,
    clients: int | None = None,
) -> Settings:
    """Settings of a run: defaults, the file's, --set, and the options, in that order.

    `resume` names a run directory, whose settings and place are taken; `clients` is their number
    where nothing else says it.

    Raises:
        ConfigError: settings that cannot be used.
    """
    from fl.config import (
        CLIENTS,
        check_settings,
        default_settings,
        parse_assignments,
        read_config,
        with_absolute_paths,
    )
    from fl.server.protocols import protocol_class
    from fl.workspace.directory import CONFIG

    if resume:
        if config or out:
            raise UserError("--resume takes settings and place of the run: name no others")
        config, out, assignments = resume / CONFIG, resume, [*assignments, "resume=true"]
    given: dict[str, Scalar] = default_settings()
    given |= read_config(config) if config else {}
    given |= parse_assignments(assignments)
    if engine:
        given["engine"] = engine
    if out:
        given["out"] = str(out)
    given["out"] = given["out"] or new_folder(config.stem if config else "run")
    given["clients"] = given["clients"] or (CLIENTS if clients is None else clients)
    settings = check_settings(with_absolute_paths(given))
    protocol_class(settings)  # refuses settings that the protocol cannot run with
    return settings


def show_partition(settings: Settings) -> None:
    """Print who holds which training images; refuse data that cannot be divided so."""
    from fl.setup.data import open_split, partition_data
    from src.data.partition import partition_table

    data = open_split(settings)
    partition = partition_data(settings, data, settings.clients)
    by = partition.column or None
    columns, counts = partition_table(partition, data.train.samples, by)
    title = f"training images by client and {by or 'object'} (partition {partition.kind})"
    table = Table("client", *columns, "all", box=None)
    for client, row in enumerate(counts):
        table.add_row(str(client), *(str(n or "·") for n in row), str(sum(row)))
    console.print(title, highlight=False)  # a table would break it to its own width
    console.print(table)


def show_results(folder: Path) -> None:
    """Print the final table of a run and where its files are."""
    from fl.server.replies import display_name
    from fl.workspace.directory import METRICS
    from src.reporting.run.summary import headline, summary_table

    metrics = json.loads((folder / METRICS).read_text())
    console.print(summary_table(metrics))
    console.print(headline(metrics), highlight=False)
    for left_out in metrics["refused"]:
        said = f"{display_name(left_out['client'])} was left out: {left_out['reason']}"
        errors.print(said, style="red", markup=False, highlight=False)
    console.print(f"[bold]{folder / 'report.html'}[/]", soft_wrap=True)


def absolute(path: str | Path) -> str:
    """A path from the root on; ~ is the user's home."""
    return str(Path(os.path.expanduser(path)).absolute())


def new_folder(name: str) -> str:
    """A place below outputs/ that nothing has yet."""
    return str(Path("outputs").absolute() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def model_options(device: str, weights: Path | None) -> dict:
    """What the options say of a model's device and weights."""
    import torch

    return {
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "weights": weights,
    }
