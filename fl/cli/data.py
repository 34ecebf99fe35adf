"""fedpatchcore data: check a dataset before a run."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fl.cli.terminal import console

if TYPE_CHECKING:  # these import torch, which is slow
    from src.data.checks.report import Column, DatasetReport, Group
    from src.data.checks.rules import Problem

SHOWN = 3  # sizes, values or locations to print before the rest is summed up
MASK_STATES = {"marked": "marked", "empty": "empty", "missing": "no mask", "unusable": "unusable"}
STYLES = {"error": "bold red", "warning": "bold yellow"}
MODES = {"L": "grey", "I;16": "16-bit grey", "P": "palette", "RGBA": "RGB and alpha"}

datasets = typer.Typer(no_args_is_help=True, help="Check a dataset before a run.")


@datasets.command()
def check(
    root: Annotated[Path, typer.Argument(help="the data folder, as in data.root")],
    kind: Annotated[str, typer.Option(help="folder, autovi or visa; auto detects it")] = "auto",
    objects: Annotated[str, typer.Option(help="names separated by commas, or all")] = "all",
    quick: Annotated[
        bool, typer.Option("--quick", help="read headers only, without decoding any image")
    ] = False,
) -> None:
    """Show what a dataset contains, what is wrong with it, and how to run on it.

    The exit status is 1 if there are errors. Warnings do not change it.
    """
    from src.data.checks.dataset import check_dataset

    with console.status("checking images") as status:

        def show(done: int, total: int) -> None:
            status.update(f"checking image {done} of {total}")

        report = check_dataset(root, kind, objects, quick=quick, progress=show)
    console.print(Text(f"data.kind = {report.kind}: {report.reason}"))
    if report.groups:
        _print_tables(report, quick)
    for problem in report.problems:
        _print_problem(problem)
    errors = report.count("error")
    counts = f"{_count(errors, 'error')}, {_count(report.count('warning'), 'warning')}"
    scope = " (headers only)" if quick else ""
    console.print(f"\n{counts[0].upper()}{counts[1:]}{scope}.", highlight=False)
    if report.groups:
        title = "After the errors are fixed, run:" if errors else "To run on this dataset:"
        command = _suggest_command(report, root, objects)
        console.print(f"\n{title}\n{command}", markup=False, highlight=False, soft_wrap=True)
    if errors:
        raise typer.Exit(1)


def _suggest_command(report: DatasetReport, root: Path, objects: str) -> str:
    """Partition by the first column with enough training images for two clients or more."""
    settings: dict[str, object] = {"data.kind": report.kind, "data.root": root}
    if objects != "all":
        settings["data.objects"] = objects
    columns = (column for column in report.columns if column.can_partition and column.clients > 1)
    if column := next(columns, None):
        settings |= {"partition.kind": "attribute", "partition.column": column.name}
        settings["clients"] = column.clients
    sets = (f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    return " \\\n    ".join(["fedpatchcore simulate", *sets])


def _print_tables(report: DatasetReport, quick: bool) -> None:
    formats = Table("object", "height × width: images", "mode: images", box=None)
    for name, counts in report.formats.items():
        modes = Counter({MODES.get(mode, mode): n for mode, n in counts.modes.items()})
        formats.add_row(Text(name), _format_sizes(counts.sizes), _format_counts(modes, "modes"))
    columns = Table("column", "value: training images", "partition.column?", box=None)
    for column in report.columns:
        values = _format_counts(column.values, "values", 8)
        columns.add_row(Text(column.name), values, _partition_verdict(column))
    for table in (_group_table(report.groups, quick), formats, columns):
        if table.row_count:
            console.print()
            console.print(table)


def _group_table(groups: Sequence[Group], quick: bool) -> Table:
    table = Table(box=None)
    table.add_column("object", overflow="fold", min_width=6)
    table.add_column("split", no_wrap=True)
    table.add_column("kind", overflow="fold", min_width=6)
    titles = MASK_STATES | ({"marked": "masked"} if quick else {})
    states = [state for state in titles if any(group.masks[state] for group in groups)]
    for title in ("images", *(titles[state] for state in states)):
        table.add_column(title, justify="right", no_wrap=True)
    previous = ""
    for group in groups:
        counts = [str(group.masks[state] or "·") for state in states] if group.masks else []
        name = group.object if group.object != previous else ""
        table.add_row(Text(name), group.split, Text(group.defect), str(group.images), *counts)
        previous = group.object
    return table


def _format_sizes(sizes: Counter[tuple[int, int]]) -> Text:
    text = _format_counts(Counter({f"{h} × {w}": n for (h, w), n in sizes.items()}), "sizes")
    if len(sizes) > SHOWN:
        height, width = zip(*sizes, strict=True)
        text.append(f"\nheight {min(height)} to {max(height)}, width {min(width)} to {max(width)}")
    return text


def _partition_verdict(column: Column) -> str:
    if not column.complete:
        return "no: some images have no value"
    return "yes" if column.can_partition else f"no: {_count(len(column.values), 'value')}"


def _format_counts(counts: Counter[str], noun: str, shown: int = SHOWN) -> Text:
    common = ", ".join(f"{value or '(empty)'}: {n}" for value, n in counts.most_common(shown))
    others = len(counts) - shown
    return Text(common + (f", and {others} other {noun}" if others > 0 else ""))


def _print_problem(problem: Problem) -> None:
    severity = (problem.severity, STYLES[problem.severity])
    console.print()
    console.print(Text.assemble(severity, f": {problem.message}"), highlight=False)
    others = len(problem.locations) - SHOWN
    for line in [*problem.locations[:SHOWN], *([f"and {others} more"] if others > 0 else [])]:
        console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 4), expand=False))


def _count(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"
