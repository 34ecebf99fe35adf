"""fedpatchcore data: a look at a data set before a run."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fl.cli.terminal import console

if TYPE_CHECKING:
    from src.data.checks.findings import Column, Findings
    from src.data.checks.rules import Problem

SHOWN = 3  # of many sizes, values or places
STATES = {"marked": "marked", "empty": "empty", "missing": "no mask", "unusable": "unusable"}
COLOURS = {"error": "bold red", "warning": "bold yellow"}
MODES = {"L": "grey", "I;16": "16-bit grey", "P": "palette", "RGBA": "RGB and alpha"}

datasets = typer.Typer(no_args_is_help=True, help="A look at a data set before a run.")


@datasets.command()
def check(
    root: Annotated[Path, typer.Argument(help="the folder that data.root is to name")],
    kind: Annotated[str, typer.Option(help="folder, autovi or visa; auto finds out")] = "auto",
    objects: Annotated[str, typer.Option(help="comma-separated, or all")] = "all",
    quick: Annotated[
        bool, typer.Option("--quick", help="headers only: nothing is decoded or compared")
    ] = False,
) -> None:
    """What a data set holds, what is wrong with it, and how to run on it.

    Exit status 1 if there are errors; warnings alone give 0.
    """
    from src.data.checks.check import check_dataset

    with console.status("looking at the images") as status:
        found = check_dataset(
            root,
            kind,
            objects,
            quick=quick,
            step=lambda done, all_: status.update(f"looking at image {done} of {all_}"),
        )
    console.print(_plain(f"data.kind = {found.kind}: {found.reason}"))
    if found.groups:
        _show_found(found, quick)
    for problem in found.problems:
        _show_problem(problem)
    _show_verdict(found, quick)
    if found.groups:
        _show_command(found, root, objects)
    if found.count("error"):
        raise typer.Exit(1)


def suggest(found: Findings, root: Path, objects: str) -> list[str]:
    """The words of a simulation of this data, quoted for a shell, a setting each.

    The partition goes by the first column of which two values or more have training images enough
    for a client each; without one, by the default.
    """
    from src.data.checks.rules import FEW

    settings: dict[str, object] = {"data.kind": found.kind, "data.root": root}
    if objects != "all":
        settings["data.objects"] = objects
    for column in found.columns:
        clients = sum(count >= FEW for count in column.values.values())
        if column.divides and clients > 1:
            settings |= {"partition.kind": "attribute", "partition.column": column.name}
            settings["clients"] = clients
            break
    sets = (f"--set {shlex.quote(f'{key}={value}')}" for key, value in settings.items())
    return ["fedpatchcore simulate", *sets]


def _show_found(found: Findings, quick: bool) -> None:
    tables = [_group_table(found, quick), _picture_table(found)]
    for table in [*tables, _column_table(found.columns)] if found.columns else tables:
        console.print()
        console.print(table)


def _group_table(found: Findings, quick: bool) -> Table:
    """Images by object, split and kind; of the defective ones, how many are marked how."""
    table = Table(box=None)
    table.add_column("object", overflow="fold", min_width=6)
    table.add_column("split", no_wrap=True)
    table.add_column("kind", overflow="fold", min_width=6)
    states = [state for state in STATES if any(group.masks[state] for group in found.groups)]
    titles = {**STATES, "marked": "masked"} if quick else STATES
    for title in ("images", *(titles[state] for state in states)):
        table.add_column(title, justify="right", no_wrap=True)
    last = ""
    for group in found.groups:
        counts = [str(group.masks[state] or "·") for state in states] if group.masks else []
        name = group.object if group.object != last else ""
        table.add_row(_plain(name), group.split, _plain(group.defect), str(group.images), *counts)
        last = group.object
    return table


def _picture_table(found: Findings) -> Table:
    table = Table("object", "height × width: images", "mode: images", box=None)
    for name, pictures in found.pictures.items():
        modes = Counter({MODES.get(mode, mode): n for mode, n in pictures.modes.items()})
        table.add_row(_plain(name), _sizes(pictures.sizes), _few(modes, "modes"))
    return table


def _sizes(sizes: Counter[tuple[int, int]]) -> Text:
    text = _few(Counter({f"{h} × {w}": n for (h, w), n in sizes.items()}), "sizes")
    if len(sizes) > SHOWN:
        height, width = zip(*sizes, strict=True)
        text.append(f"\nheight {min(height)} to {max(height)}, width {min(width)} to {max(width)}")
    return text


def _column_table(columns: Sequence[Column]) -> Table:
    table = Table("column", "value: training images", "partition.column?", box=None)
    for column in columns:
        table.add_row(_plain(column.name), _few(column.values, "values", 8), _fitness(column))
    return table


def _fitness(column: Column) -> str:
    if not column.complete:
        return "no: some images lack it"
    count = len(column.values)
    return "yes" if column.divides else f"no: {count} value{'s' * (count != 1)}"


def _few(counts: Counter[str], noun: str, shown: int = SHOWN) -> Text:
    """The commonest with their counts; how many others there are."""
    told = [f"{value or '(empty)'}: {n}" for value, n in counts.most_common(shown)]
    rest = len(counts) - shown
    return Text(", ".join(told) + (f", and {rest} other {noun}" if rest > 0 else ""))


def _show_problem(problem: Problem) -> None:
    said = Text.assemble((problem.grade, COLOURS[problem.grade]), f": {problem.sentence}")
    console.print()
    console.print(said, highlight=False)
    for line in _places(problem):
        console.print(Padding(Text(line, overflow="fold"), (0, 0, 0, 4), expand=False))


def _places(problem: Problem) -> Iterator[str]:
    yield from problem.places[:SHOWN]
    if len(problem.places) > SHOWN:
        yield f"and {len(problem.places) - SHOWN} more"


def _show_verdict(found: Findings, quick: bool) -> None:
    counts = ", ".join(_counted(found.count(grade), grade) for grade in COLOURS)
    reach = ", as far as headers tell" if quick else ""
    console.print(f"\n{counts[0].upper()}{counts[1:]}{reach}.", highlight=False)


def _show_command(found: Findings, root: Path, objects: str) -> None:
    lead = "Once the errors are mended:" if found.count("error") else "A run on it:"
    command = " \\\n    ".join(suggest(found, root, objects))
    console.print(f"\n{lead}\n{command}", markup=False, highlight=False, soft_wrap=True)


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' * (count != 1)}"


def _plain(text: str) -> Text:
    return Text(text)  # a name is no markup, whatever brackets it has
