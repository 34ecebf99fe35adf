"""The runs of a study, read from run directories and sweeps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from src.reporting.flatten import flatten_metrics
from src.reporting.run.summary import METRIC_NAMES
from src.reporting.run.tables import FLOAT32_BYTES, upload_factor
from src.storage.run_metrics import FILE_NAME, RunMetrics, Scalar
from src.storage.tensor_file import FileError

RUNS, ERROR_LOG, AUDIT_FILE = "runs", "error.log", "audit.json"
AUDITED = (
    "claimed_epsilon",
    "epsilon_lower_bound",
    "membership_auc",
    "tracing_auc",
    "tpr_at_1_percent",
    "tpr_at_0.1_percent",
)
LONGEST_REASON = 300  # characters of the last line of a failed run's log


@dataclass(frozen=True)
class Record:
    """A finished run."""

    name: str
    folder: Path
    metrics: RunMetrics

    @property
    def seed(self) -> int:
        return self.metrics.seed

    @property
    def settings(self) -> dict[str, Scalar]:
        return self.metrics.config

    @cached_property
    def values(self) -> dict[str, float]:
        """All numbers by dotted name: those of `flatten_metrics`, of the audit, and derived ones.

        `difference.centralized.<metric>` and `difference.local.<metric>` are what federated is
        above them; `factor.every_patch` and `factor.one_bank` how many times the upload these
        would be in float32.
        """
        flat = {**flatten_metrics(self.metrics), **self._audited()}
        return {**flat, **_differences(flat), **_factors(self.metrics)}

    def _audited(self) -> dict[str, float]:
        """What `fedpatchcore audit` measured, if it was run."""
        path = self.folder / AUDIT_FILE
        if not path.is_file():
            return {}
        audit = json.loads(path.read_text(encoding="utf-8"))
        return {f"audit.{k}": float(audit[k]) for k in AUDITED if audit.get(k) is not None}


def _differences(flat: dict[str, float]) -> dict[str, float]:
    differences = {}
    for key in (key.replace("@", ".") for key in METRIC_NAMES):
        for name, side in (("centralized", "centralized"), ("local", "local.mean")):
            ours, theirs = f"federated.{key}", f"{side}.{key}"
            if ours in flat and theirs in flat:
                differences[f"difference.{name}.{key}"] = flat[ours] - flat[theirs]
    return differences


def _factors(metrics: RunMetrics) -> dict[str, float]:
    upload = sum(metrics.traffic.upload_bytes)
    bank = metrics.bank.size * metrics.bank.dim * FLOAT32_BYTES
    factors = {
        "factor.every_patch": upload_factor(metrics),
        "factor.one_bank": bank / upload if upload else None,
    }
    return {key: value for key, value in factors.items() if value}


@dataclass(frozen=True)
class MissingRun:
    """A run that is not counted, and why."""

    name: str
    reason: str


def read_runs(paths: Sequence[Path]) -> tuple[list[Record], list[MissingRun]]:
    """The finished and the unfinished runs below `paths`, each a run directory or a sweep's.

    Raises:
        FileError: a path is neither, no run has finished, or a metrics.json cannot be read.
    """
    records: dict[Path, Record] = {}
    missing: dict[Path, MissingRun] = {}
    for folder, name in _run_folders(paths):
        if (folder / FILE_NAME).is_file():
            metrics = RunMetrics.read(folder / FILE_NAME)
            records[folder.resolve()] = Record(name, folder, metrics)
        else:
            missing[folder.resolve()] = MissingRun(name, _last_line(folder / ERROR_LOG))
    if not records:
        raise FileError(f"no run in {', '.join(map(str, paths))} has finished: nothing to report")
    return list(records.values()), list(missing.values())


def _run_folders(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each run's folder and name, which begins with the sweep's where there are several paths."""
    several = len(paths) > 1
    for path in paths:
        if (path / FILE_NAME).is_file():
            yield path, path.resolve().name
        elif (path / RUNS).is_dir():
            for folder in sorted(p for p in (path / RUNS).iterdir() if p.is_dir()):
                yield folder, f"{path.resolve().name}/{folder.name}" if several else folder.name
        else:
            raise FileError(_neither(path))


def _neither(path: Path) -> str:
    if not path.exists():
        return f"there is no folder {path}"
    if (path / "config.toml").is_file():
        return f"{path} has no {FILE_NAME}: that run has not finished"
    return (
        f"{path} is neither a run directory, which holds {FILE_NAME}, nor a sweep's, which "
        f"holds {RUNS}/: name a folder that simulate, deploy or sweep has written"
    )


def _last_line(log: Path) -> str:
    if not log.is_file():
        return "it has not finished"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"it failed: {lines[-1][:LONGEST_REASON]}" if lines else "it failed"
