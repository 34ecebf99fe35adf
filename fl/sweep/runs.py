"""A sweep: runs from one file, told apart by the settings that vary.

    base = "../mtd-exposure.toml"    # settings of all runs, a file beside this one; optional
    [settings]                       # more of them
    num-server-rounds = 8
    [grid]                           # every combination of these values
    seed = [0, 1, 2]
    [[runs]]                         # each of these with every combination
    partition.kind = "iid"

Its folder holds runs/<name>, a run directory each, and results.csv, a row each.
"""

import csv
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fl.config import (
    CLIENTS,
    ConfigError,
    Scalar,
    Settings,
    check_settings,
    default_settings,
    flatten_settings,
    identity,
    leaves,
    parse_assignments,
    read_config,
    read_toml,
    with_absolute_paths,
)
from fl.workspace.directory import METRICS
from src.reporting.flatten import flatten_metrics
from src.storage.atomic import write_whole
from src.storage.run_metrics import RunMetrics

RUNS, BASELINES, RESULTS = "runs", "baselines", "results.csv"
TABLES = ("base", "settings", "grid", "runs")
OURS = ("out", "resume", "engine")  # settings that a sweep sees to
LONGEST_NAME = 100  # characters of a folder's name


@dataclass(frozen=True)
class Run:
    """One of a sweep's runs: its name, what sets it apart from the others, all its settings."""

    name: str
    varied: dict[str, Scalar]
    settings: Settings

    @property
    def folder(self) -> Path:
        """Its run directory."""
        return Path(self.settings.out)

    def metrics(self) -> RunMetrics | None:
        """What it found, if it has come to its end with these settings."""
        path = self.folder / METRICS
        if not path.is_file():
            return None
        metrics = RunMetrics.read(path)
        same = identity(metrics.config) == identity(self.settings.flat())
        return metrics if same else None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: in words, where it failed."""

    run: Run
    seconds: float | None = None  # that it took, where it ran just now
    error: str = ""


def read_sweep(path: Path, assignments: Sequence[str], out: Path) -> list[Run]:
    """The runs of a sweep file, all of them checked.

    Args:
        path: the file.
        assignments: `key=value` words that hold for all runs.
        out: absolute; the sweep's folder.

    Raises:
        ConfigError: a file that cannot be read, a setting that is wrong in some run, two runs that
            are the same.
    """
    tables = read_toml(path)
    unknown = [name for name in tables if name not in TABLES]
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)} is in none of its tables; a sweep has "
            f"{', '.join(TABLES[:-1])} and [[runs]]"
        )
    grid = _grid(path, tables)
    points = list(_points(path, tables, grid))
    fixed = _fixed(path, tables) | parse_assignments(assignments)
    varied = list(dict.fromkeys(key for point in points for key in point if key not in grid))
    varied += grid
    _refuse_keys(path, varied, fixed, assignments)
    defaults: dict[str, Scalar] = {
        "evaluate.maps": False,
        "evaluate.baseline-dir": str(out / BASELINES),
    }
    common: dict[str, Scalar] = default_settings() | defaults | fixed | {"engine": "inline"}
    flat = [common | point for point in points]
    apart = [key for key in varied if len({json.dumps(each.get(key)) for each in flat}) > 1]
    names = _names([{k: point[k] for k in apart if k in point} for point in points], path.stem)
    runs = [
        Run(
            name, {key: each.get(key, "") for key in apart}, _checked(name, each, out / RUNS / name)
        )
        for name, each in zip(names, flat, strict=True)
    ]
    _refuse_twins(path, runs)
    return runs


def write_results(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write a row a run: its name, what varies, `seed`, how it ended, and all its figures."""
    rows = [_row(outcome) for outcome in outcomes]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _row(outcome: Outcome) -> dict[str, object]:
    run = outcome.run
    metrics = None if outcome.error else run.metrics()
    return {
        "run": run.name,
        **run.varied,
        "seed": run.settings.seed,
        "status": "done" if metrics else "failed",
        "error": outcome.error,
        **(flatten_metrics(metrics) if metrics else {}),
    }


def _fixed(path: Path, tables: Mapping[str, object]) -> dict[str, Scalar]:
    base = tables.get("base")
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: base is the name of a file of settings, not {base!r}")
    above = read_config(path.parent / base) if base else {}
    return above | flatten_settings(_table(path, "settings", tables.get("settings", {})))


def _points(
    path: Path, tables: Mapping[str, object], grid: Mapping[str, list[Scalar]]
) -> Iterable[dict[str, Scalar]]:
    """What each run sets itself."""
    listed = tables.get("runs", [{}])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: runs are tables, each under [[runs]]")
    for table in listed:
        own = flatten_settings(_table(path, "runs", table))
        twice = own.keys() & grid.keys()
        if twice:
            raise ConfigError(f"{path}: {', '.join(sorted(twice))} is in [grid] and in [[runs]]")
        for values in itertools.product(*grid.values()):
            yield own | dict(zip(grid, values, strict=True))


def _grid(path: Path, tables: Mapping[str, object]) -> dict[str, list[Scalar]]:
    grid = {}
    for key, values in leaves(_table(path, "grid", tables.get("grid", {}))):
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key} in [grid] is a list of values, not {values!r}")
        if not all(isinstance(value, get_args(Scalar)) for value in values):
            raise ConfigError(f"{path}: {key} in [grid] has a value that is no setting: {values}")
        grid[key] = values
    return grid


def _table(path: Path, name: str, found: object) -> Mapping[str, object]:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{path}: {name} is a table of settings, not {found!r}")
    return found


def _refuse_keys(
    path: Path, varied: Sequence[str], fixed: Mapping[str, Scalar], assignments: Sequence[str]
) -> None:
    for key in OURS:
        if key in varied or key in fixed:
            raise ConfigError(f"{path}: {key} is for the sweep to set; leave it out")
    both = [key for key in parse_assignments(assignments) if key in varied]
    if both:
        raise ConfigError(f"--set {both[0]}: {path} varies it from run to run")


def _checked(name: str, given: dict[str, Scalar], folder: Path) -> Settings:
    settings = {**given, "out": str(folder), "clients": given["clients"] or CLIENTS}
    try:
        found = check_settings(with_absolute_paths(settings))
    except ConfigError as error:
        raise ConfigError(f"run {name}: {error}") from None
    if not found.data_shared:
        raise ConfigError(f"run {name}: data.shared = false: runs here share one data root")
    return found


def _refuse_twins(path: Path, runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        own = json.dumps(identity(run.settings.flat()), sort_keys=True)
        twin = seen.setdefault(own, run)
        if twin is not run:
            raise ConfigError(f"{path}: the runs {twin.name} and {run.name} have the same settings")


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Key -> its last part, where that tells it from the others."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[(end := key.rpartition(".")[2])] > 1 else end for key in keys}


def _names(points: Sequence[Mapping[str, Scalar]], alone: str) -> list[str]:
    """Folder names: what a run sets itself, in short."""
    short = short_keys({key for point in points for key in point})
    names = ["_".join(f"{short[k]}-{v}" for k, v in point.items()) or alone for point in points]
    plain = [re.sub(r"[^\w.+-]+", "-", name)[:LONGEST_NAME] for name in names]
    seen = Counter(plain)
    return [
        folder if seen[folder] == 1 else f"{folder}-{_digest(point)}"
        for folder, point in zip(plain, points, strict=True)
    ]


def _digest(point: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
