"""fedpatchcore report: one page of one or many runs, with tables and figures for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fl.cli.terminal import console, errors
from src.errors import UserError

if TYPE_CHECKING:
    from src.reporting.study.study import Group, Study


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_OR_SWEEP...", help="their folders")],
    out: Annotated[
        Path | None, typer.Option(help="folder to write; report/ in the first path if left out")
    ] = None,
) -> None:
    """A page of one or many runs: statistics over seeds, tables and figures."""
    from src.reporting.study.page import lead, write_study
    from src.reporting.study.study import StudyError, read_study

    try:
        study = read_study(paths)
    except StudyError as error:
        raise UserError(str(error)) from None
    folder = out or paths[0] / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; name a folder")
    page = write_study(folder, study)
    console.print("image AUROC ± half a 95 % interval over seeds", highlight=False)
    console.print(_shown(study.groups))
    console.print(lead(study), highlight=False)
    _say_missing(study)
    console.print(f"[bold]{page}[/]", soft_wrap=True)


def _shown(groups: Sequence[Group]) -> Table:
    """The main table in 80 columns, a row a group."""
    from src.reporting.study.tables import MAIN, written

    kept = [column for column in MAIN[:4] if any(g.values(column.key) for g in groups)]
    table = Table("group", box=None, pad_edge=False)
    for column in kept:
        table.add_column(column.name, justify="right", no_wrap=True)
    for group in groups:
        cells = [written(group.estimate(column.key), column.form) for column in kept]
        table.add_row(*map(Text, [group.label, *cells]))
    return table


def _say_missing(study: Study) -> None:
    for run in [*study.unfinished, *study.repeats]:
        said = f"{run.name} is not in the report: {run.reason}"
        errors.print(said, style="red", markup=False, highlight=False)
