"""Options, settings and tables that several commands share."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from src.errors import UserError

if TYPE_CHECKING:
    from fl.config import Settings

console = Console()
errors = Console(stderr=True)

Config = Annotated[Path | None, typer.Argument(help="TOML file with settings")]
Sets = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="set one setting; see fedpatchcore settings"),
]
Out = Annotated[
    Path | None, typer.Option(help="run directory; by default a new one below outputs/")
]
Resume = Annotated[
    Path | None, typer.Option(help="run directory of an interrupted run to continue")
]
Weights = Annotated[
    Path | None, typer.Option(help="backbone weights file that the model was made with")
]
Device = Annotated[str, typer.Option(help="cuda or cpu; by default cuda if there is a GPU")]


def resolve(
    config: Path | None,
    assignments: list[str],
    out: Path | None,
    engine: str | None = None,
    resume: Path | None = None,
    clients: int | None = None,
) -> Settings:
    """Settings of a run: the defaults, overridden by the file, --set and the options, in turn.

    Args:
        assignments: `key=value` words of --set.
        resume: run directory to continue, with its settings.
        clients: number of clients if no source sets it.

    Raises:
        ConfigError: the settings are invalid.
        UserError: `resume` comes with a file or a run directory.
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
            raise UserError(
                "--resume uses the settings and directory of that run: leave out CONFIG and --out"
            )
        config, out, assignments = resume / CONFIG, resume, [*assignments, "resume=true"]
    flat = default_settings() | (read_config(config) if config else {})
    flat |= parse_assignments(assignments)
    if engine:
        flat["engine"] = engine
    if out:
        flat["out"] = str(out)
    flat["out"] = flat["out"] or new_folder(config.stem if config else "run")
    flat["clients"] = flat["clients"] or (CLIENTS if clients is None else clients)
    settings = check_settings(with_absolute_paths(flat))
    protocol_class(settings)  # checks what the protocol requires of them
    return settings


def show_partition(settings: Settings) -> None:
    """Print how many training images each client has."""
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
    console.print(title, highlight=False)  # as the table's own title, it would wrap
    console.print(table)


def show_results(folder: Path) -> None:
    """Print the final metrics of a run and the path of its report."""
    from fl.server.replies import display_name
    from fl.workspace.directory import METRICS
    from src.reporting.run.summary import headline, summary_table
    from src.storage.run_metrics import RunMetrics

    metrics = RunMetrics.read(folder / METRICS)
    console.print(summary_table(metrics))
    console.print(headline(metrics), highlight=False)
    for refusal in metrics.refused:
        message = f"{display_name(refusal.client)} was left out: {refusal.reason}"
        errors.print(message, style="red", markup=False, highlight=False)
    console.print(f"[bold]{folder / 'report.html'}[/]", soft_wrap=True)


def absolute(path: str | Path) -> str:
    """The path as an absolute one; ~ is the user's home."""
    return str(Path(path).expanduser().absolute())


def new_folder(name: str) -> str:
    """A new folder below outputs/, named by the time."""
    return str(Path("outputs").absolute() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


def model_options(device: str, weights: Path | None) -> dict:
    """Keyword arguments of `PatchCore.load` for the options --device and --weights."""
    import torch

    return {
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "weights": weights,
    }
