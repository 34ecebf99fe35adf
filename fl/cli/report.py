"""fedpatchcore report: one page of one or many runs, with tables and figures for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fl.cli.terminal import console, errors
from src.errors import UserError

if TYPE_CHECKING:
    from src.reporting.study.groups import Study


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN_OR_SWEEP...", help="their folders")],
    out: Annotated[
        Path | None, typer.Option(help="folder to write; by default report/ in the first path")
    ] = None,
) -> None:
    """Write a page of one or many runs: statistics over seeds, tables and figures."""
    from fl.config import affects
    from src.reporting.study.groups import read_study
    from src.reporting.study.page import write_study

    study = read_study(paths, sets_apart=lambda key: affects(key) == "result")
    folder = out or paths[0] / "report"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; name a folder")
    page = write_study(folder, study)
    console.print("image AUROC ± half a 95 % interval over seeds", highlight=False)
    console.print(_table(study))
    for run in study.missing:
        line = f"{run.name} is not in the report: {run.reason}"
        errors.print(line, style="red", markup=False, highlight=False)
    console.print(f"[bold]{page}[/]", soft_wrap=True)


def _table(study: Study) -> Table:
    """The main table in 80 columns, a row a group."""
    from src.reporting.study.tables import MAIN, interval

    kept = [c for c in MAIN[:4] if any(group.values(c.key) for group in study.groups)]
    table = Table("group", box=None, pad_edge=False)
    for column in kept:
        table.add_column(column.name, justify="right", no_wrap=True)
    for group in study.groups:
        cells = [interval(group.estimate(column.key), column.form) for column in kept]
        table.add_row(*map(Text, [group.label, *cells]))
    return table
