"""fedpatchcore sweep: many runs from one file, and a table of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fl.cli.terminal import Sets, absolute, console, errors, new_folder
from src.errors import UserError
from src.reporting.flatten import flatten_metrics
from src.reporting.formats import duration, number

if TYPE_CHECKING:
    from rich.progress import Progress

    from fl.sweep.runs import Outcome, Run

AUROC = {  # side -> column of results.csv with its image AUROC
    "local": "local.mean",
    "federated": "federated.image_auroc",
    "centralized": "centralized.image_auroc",
}
SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {  # column -> key, format
    **{side: (key, number) for side, key in AUROC.items()},
    "radius": ("bank.radius", "{:.2f}".format),
    "MB sent": ("traffic.upload_bytes", lambda value: f"{value / 1e6:.2f}"),
}


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="base, [grid], [[runs]]")],
    set_: Sets = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="folder of the sweep; by default a new one below outputs/")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the sweep in --out")] = False,
    jobs: Annotated[int, typer.Option(min=0, help="runs at a time; 0 for as many as fit")] = 0,
) -> None:
    """Run the runs of a sweep file.

    A run that fails does not stop the others. The exit status is 1 if any failed.
    """
    from fl.sweep.runs import RESULTS, RUNS, read_sweep
    from fl.workspace.directory import locked

    if resume and not out:
        raise UserError("--resume: name the folder of the sweep with --out")
    folder = Path(absolute(out or new_folder(file.stem)))
    runs = read_sweep(file, set_, folder)
    if not resume and (folder / RUNS).exists():
        raise UserError(f"{folder} already contains a sweep: use --resume, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        outcomes = _carry_out(folder, runs, jobs)
    console.print("image AUROC, covering radius and upload of all clients", highlight=False)
    console.print(_table(outcomes))
    for outcome in outcomes:
        if outcome.error:
            message = f"{outcome.run.name} failed: {outcome.error}"
            errors.print(message, style="red", markup=False, highlight=False)
    console.print(f"[bold]{folder / RESULTS}[/]", soft_wrap=True)
    console.print(f"fedpatchcore report {out or folder}", soft_wrap=True, highlight=False)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(1)


def _carry_out(folder: Path, runs: Sequence[Run], jobs: int) -> list[Outcome]:
    """Run what is not done yet; update results.csv after every run."""
    from fl.sweep.runs import Outcome
    from fl.sweep.workers import execute_runs, extract_all, max_jobs

    outcomes = {run.name: Outcome(run) for run in runs if run.metrics()}
    left = [run for run in runs if run.name not in outcomes]
    if outcomes:
        console.print(f"{len(outcomes)} of {len(runs)} runs are done already", highlight=False)
    if not left:
        _write(folder, runs, outcomes)
        return [outcomes[run.name] for run in runs]
    with _bars() as bars:
        failures = extract_all(left, _counter(bars, "features"))
        outcomes |= {
            run.name: Outcome(run, None, failures[run.name]) for run in left if run.name in failures
        }
        left = [run for run in left if run.name not in failures]
        _write(folder, runs, outcomes)
        jobs = min(jobs, len(left)) or max_jobs(left)
        count = _counter(bars, f"runs, {jobs} at a time")
        count(len(outcomes), len(runs))
        for outcome in execute_runs(left, jobs):
            outcomes[outcome.run.name] = outcome
            _write(folder, runs, outcomes)
            console.print(_line(outcome), soft_wrap=True, highlight=False, markup=False)
            count(len(outcomes), len(runs))
    return [outcomes[run.name] for run in runs]


def _write(folder: Path, runs: Sequence[Run], outcomes: Mapping[str, Outcome]) -> None:
    from fl.sweep.runs import RESULTS, write_results

    write_results(folder / RESULTS, (outcomes[run.name] for run in runs if run.name in outcomes))


def _bars() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def _counter(bars: Progress, name: str) -> Callable[[int, int], None]:
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


def _line(outcome: Outcome) -> str:
    seconds = f" ({duration(outcome.seconds)})" if outcome.seconds is not None else ""
    if outcome.error:
        return f"{outcome.run.name}: failed{seconds}"
    metrics = outcome.run.metrics()
    flat = flatten_metrics(metrics) if metrics else {}
    parts = [f"{side} {number(flat.get(key))}" for side, key in AUROC.items()]
    return f"{outcome.run.name}: {', '.join(parts)}{seconds}"


def _table(outcomes: Sequence[Outcome]) -> Table:
    from fl.sweep.runs import short_keys

    keys = list(outcomes[0].run.varied)
    table = Table(box=None)
    for key in short_keys(keys).values() or ["run"]:
        table.add_column(key, overflow="fold")
    for column in SHOWN:
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in outcomes:
        run = outcome.run
        cells = [str(run.varied[key]) for key in keys] or [run.name]
        metrics = run.metrics() if not outcome.error else None
        flat = flatten_metrics(metrics) if metrics else {}
        cells += [write(flat[k]) if k in flat else "-" for k, write in SHOWN.values()]
        table.add_row(*map(Text, cells), style="red" if outcome.error else None)
    return table
