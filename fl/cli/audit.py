"""fedpatchcore audit: what a run's bank gives away, beside what the run claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fl.cli.terminal import console, errors
from src.errors import UserError
from src.reporting.formats import number

if TYPE_CHECKING:
    from src.federated.candidates import Stage
    from src.models.patchcore import Progress

RUNS = 20_000


def audit(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="directory of a finished simulation run")
    ],
    runs: Annotated[
        int,
        typer.Option(min=100, help="runs of a many-run audit, with the canary and without it each"),
    ] = RUNS,
    out: Annotated[
        Path | None, typer.Option(help="folder to write to; the default is the run's directory")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="seed that chooses canaries and the attacker's images")
    ] = 0,
    public: Annotated[
        Path | None,
        typer.Option(
            help="folder of images that the attacker holds; the default is half of the normal "
            "test images"
        ),
    ] = None,
    embedding_noise: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1000,
            metavar="EPSILON",
            help="first add noise to each vector of an ordinary run's bank, for a claim of this "
            "epsilon for one vector; writes to RUN_DIR/embedding-noise",
        ),
    ] = None,
) -> None:
    """Attack a finished run: who was in it, is its claim true, what does its bank show."""
    from fl.audit.run import audit_run, write_audit
    from fl.audit.subject import open_finished_run, open_subjects, with_embedding_noise

    place = out or (folder / "embedding-noise" if embedding_noise else folder)
    if place.exists() and not place.is_dir():
        raise UserError(f"--out: {place} is a file; name a folder")
    run = open_finished_run(folder)
    subjects = open_subjects(run, public, seed)
    if embedding_noise:
        subjects = with_embedding_noise(run, subjects, embedding_noise)
    with _bars() as stage:
        metrics, findings = audit_run(run, subjects, runs, seed, stage)
    page = write_audit(place, folder, metrics, findings)
    console.print(_table(metrics))
    console.print(metrics["verdict"], highlight=False)
    console.print(f"[bold]{page}[/]", soft_wrap=True)


@contextmanager
def _bars() -> Iterator[Stage]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:<24}"), BarColumn(bar_width=20), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=errors) as bars:

        def stage(name: str) -> Progress:
            bar = bars.add_task(name, total=None)
            return lambda done, total: bars.update(bar, completed=done, total=total)

        yield stage


def _table(metrics: Mapping) -> Table:
    """The metrics in 80 columns, a row for each bank."""
    banks = metrics.get("banks") or {"bank": metrics}
    table = Table("", box=None, pad_edge=False)
    for name in ("claimed ε", "ε at least", "AUC", "TPR at 1 %", "at 0.1 %", "inversion"):
        table.add_column(name, justify="right", no_wrap=True)
    keys = ("epsilon_lower_bound", "membership_auc", "tpr_at_1_percent", "tpr_at_0.1_percent")
    for name, bank in banks.items():
        claimed = bank["claimed_epsilon"]
        table.add_row(
            name,
            "none" if claimed is None else f"{claimed:.4g}",
            *(number(bank[key]) for key in keys),
            number(bank["inversion"]["median_correlation"]),
        )
    return table
