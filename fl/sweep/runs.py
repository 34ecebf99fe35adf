"""The runs of a sweep, from one file, each named after the settings that vary.

    base = "../mtd-exposure.toml"    # settings for all runs, relative to this file; optional
    [settings]                       # more of them
    num-server-rounds = 8
    [grid]                           # every combination of these values
    seed = [0, 1, 2]
    [[runs]]                         # each of these with every combination
    partition.kind = "iid"

The sweep's folder holds a run directory runs/<name> and a row in results.csv for each run.
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
RESERVED = ("out", "resume", "engine")  # the sweep sets these itself
LONGEST_NAME = 100  # characters of a folder's name


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its name, its values of the settings that vary, and all its settings."""

    name: str
    varied: dict[str, Scalar]
    settings: Settings

    @property
    def folder(self) -> Path:
        """Its run directory."""
        return Path(self.settings.out)

    def metrics(self) -> RunMetrics | None:
        """Its metrics, if it has finished with these settings."""
        path = self.folder / METRICS
        if not path.is_file():
            return None
        metrics = RunMetrics.read(path)
        same = identity(metrics.config) == identity(self.settings.flat())
        return metrics if same else None


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `error` is empty for a run that succeeded."""

    run: Run
    seconds: float | None = None  # None if it did not run just now
    error: str = ""


def read_sweep(path: Path, assignments: Sequence[str], out: Path) -> list[Run]:
    """Read and check all runs of a sweep file.

    Args:
        assignments: `key=value` words for all runs.
        out: absolute path of the sweep's folder.

    Raises:
        ConfigError: the file cannot be read, a run has a wrong setting, or two runs are the same.
    """
    tables = read_toml(path)
    unknown = [name for name in tables if name not in TABLES]
    if unknown:
        raise ConfigError(
            f"{path}: unknown table {', '.join(unknown)}; a sweep has {', '.join(TABLES[:-1])} and "
            "[[runs]]"
        )
    grid = _grid(path, tables)
    points = list(_points(path, tables, grid))
    shared = _shared_settings(path, tables) | parse_assignments(assignments)
    own_keys = list(dict.fromkeys(key for point in points for key in point if key not in grid))
    keys = [*own_keys, *grid]
    _refuse_keys(path, keys, shared, assignments)
    defaults: dict[str, Scalar] = {
        "evaluate.maps": False,
        "evaluate.baseline-dir": str(out / BASELINES),
    }
    common: dict[str, Scalar] = default_settings() | defaults | shared | {"engine": "inline"}
    flat = [common | point for point in points]
    varied = [key for key in keys if len({json.dumps(run.get(key)) for run in flat}) > 1]
    names = _names([{k: point[k] for k in varied if k in point} for point in points], path.stem)
    runs = [
        Run(name, {key: run.get(key, "") for key in varied}, _check(name, run, out / RUNS / name))
        for name, run in zip(names, flat, strict=True)
    ]
    _refuse_duplicates(path, runs)
    return runs


def write_results(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write a row for each run: name, settings that vary, seed, status, error, and all metrics."""
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


def _shared_settings(path: Path, tables: Mapping[str, object]) -> dict[str, Scalar]:
    base = tables.get("base")
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: base must be the name of a file of settings, not {base!r}")
    settings = read_config(path.parent / base) if base else {}
    return settings | flatten_settings(_table(path, "settings", tables.get("settings", {})))


def _points(
    path: Path, tables: Mapping[str, object], grid: Mapping[str, list[Scalar]]
) -> Iterable[dict[str, Scalar]]:
    """The settings of each run alone: an entry of [[runs]] with a combination of [grid]."""
    entries = tables.get("runs", [{}])
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: runs must be tables, each under [[runs]]")
    for table in entries:
        own = flatten_settings(_table(path, "runs", table))
        both = own.keys() & grid.keys()
        if both:
            raise ConfigError(f"{path}: {', '.join(sorted(both))} is in [grid] and in [[runs]]")
        for values in itertools.product(*grid.values()):
            yield own | dict(zip(grid, values, strict=True))


def _grid(path: Path, tables: Mapping[str, object]) -> dict[str, list[Scalar]]:
    grid = {}
    for key, values in leaves(_table(path, "grid", tables.get("grid", {}))):
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: {key} in [grid] must be a list of values, not {values!r}")
        if not all(isinstance(value, get_args(Scalar)) for value in values):
            raise ConfigError(
                f"{path}: {key} in [grid] has a value that no setting can have: {values}"
            )
        grid[key] = values
    return grid


def _table(path: Path, name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: {name} must be a table of settings, not {value!r}")
    return value


def _refuse_keys(
    path: Path, keys: Sequence[str], shared: Mapping[str, Scalar], assignments: Sequence[str]
) -> None:
    for key in RESERVED:
        if key in keys or key in shared:
            raise ConfigError(f"{path}: the sweep sets {key} itself; leave it out")
    both = [key for key in parse_assignments(assignments) if key in keys]
    if both:
        raise ConfigError(f"--set {both[0]}: {path} varies this setting from run to run")


def _check(name: str, flat: dict[str, Scalar], folder: Path) -> Settings:
    flat = {**flat, "out": str(folder), "clients": flat["clients"] or CLIENTS}
    try:
        settings = check_settings(with_absolute_paths(flat))
    except ConfigError as error:
        raise ConfigError(f"run {name}: {error}") from None
    if not settings.data_shared:
        raise ConfigError(f"run {name}: data.shared = false: in a sweep, clients share a data root")
    return settings


def _refuse_duplicates(path: Path, runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        own = json.dumps(identity(run.settings.flat()), sort_keys=True)
        other = seen.setdefault(own, run)
        if other is not run:
            raise ConfigError(
                f"{path}: the runs {other.name} and {run.name} have the same settings"
            )


def short_keys(keys: Collection[str]) -> dict[str, str]:
    """Map each key to its last part, or to itself if another key has the same last part."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[(end := key.rpartition(".")[2])] > 1 else end for key in keys}


def _names(points: Sequence[Mapping[str, Scalar]], single: str) -> list[str]:
    """Folder names made of the settings of each run alone; `single` for a run without any."""
    short = short_keys({key for point in points for key in point})
    names = ["_".join(f"{short[k]}-{v}" for k, v in point.items()) or single for point in points]
    plain = [re.sub(r"[^\w.+-]+", "-", name)[:LONGEST_NAME] for name in names]
    seen = Counter(plain)
    return [
        folder if seen[folder] == 1 else f"{folder}-{_digest(point)}"
        for folder, point in zip(plain, points, strict=True)
    ]


def _digest(point: Mapping[str, Scalar]) -> str:
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
