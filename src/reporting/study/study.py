"""Many runs as one study: grouped by the settings that vary, each group summed up over its seeds.

A figure of a group is the mean over its seeds with the half-width of a 95 % t-interval. What is
compared is compared within a run first, so that what a seed does to both sides cancels.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from src.reporting.flatten import flatten_metrics
from src.reporting.formats import is_figure
from src.reporting.run.costs import FLOAT32_BYTES, traffic
from src.reporting.run.summary import METRIC_NAMES
from src.storage.run_metrics import FILE_NAME, RunMetrics, Seconds
from src.storage.tensor_file import FileError

AUDIT_FILE = "audit.json"
AUDITED = (
    "claimed_epsilon",
    "epsilon_lower_bound",
    "membership_auc",
    "tracing_auc",
    "tpr_at_1_percent",
    "tpr_at_0.1_percent",
)
RUNS, ERROR_LOG = "runs", "error.log"
CONFIDENCE = 0.95
LONGEST_REASON = 300  # characters of a failed run's last words
# what two runs may differ in and still be of one group: seeds, places, machines, what is reported
APART = ("seed", "out", "resume", "engine", "timeout", "track", "model.memory-limit-mb")
APART_BELOW = ("cache.", "evaluate.", "privacy.ledger", "cpus-per-", "gpus-per-")
# settings that only some partitions look at
LOOKED_AT = {
    "partition.alpha": ("dirichlet", "quantity"),
    "partition.column": ("dirichlet", "attribute"),
    "partition.minimum": ("dirichlet", "quantity"),
}
SHORT = {
    "num-server-rounds": "rounds",
    "coreset-percentage": "coreset",
    "memory-limit-mb": "memory",
    "epsilon": "ε",
}
SPOKEN = (
    "partition.kind",
    "data.kind",
    "dataset",
    "partition.file",
    "model.backbone",
    "privacy.mechanism",
)  # value says all


class StudyError(ValueError):
    """Folders of which no report can be made; the message says which and why."""


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
    def settings(self) -> Mapping[str, Any]:
        return self.metrics.config

    @cached_property
    def figures(self) -> dict[str, float]:
        """All figures by dotted name: `flatten`'s, the audit's, and what follows from them."""
        flat: dict[str, float] = dict(flatten_metrics(self.metrics)) | self._audited()
        return flat | _differences(flat) | _factors(self.metrics)

    def _audited(self) -> dict[str, float]:
        """What `fedpatchcore audit` has found, if it was run."""
        path = self.folder / AUDIT_FILE
        if not path.is_file():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        return {f"audit.{k}": float(found[k]) for k in AUDITED if is_figure(found.get(k))}


@dataclass(frozen=True)
class Unfinished:
    """A run of a sweep that has left no figures, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval; None where there is one seed."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    label: str
    settings: Mapping[str, Any]  # those that set it apart
    runs: Sequence[Record]

    def values(self, key: str) -> list[float]:
        """The figure `key` of each run that has it."""
        return [run.figures[key] for run in self.runs if key in run.figures]

    def estimate(self, key: str) -> Estimate | None:
        """The figure `key` over the seeds; None where no run has it."""
        return estimate(self.values(key))

    def mean(self, key: str) -> float | None:
        found = self.estimate(key)
        return found.mean if found else None


@dataclass(frozen=True)
class Study:
    """Runs in groups, what they share, and what is missing."""

    groups: Sequence[Group]
    shared: Mapping[str, Any]  # settings that all runs have in common
    unfinished: Sequence[Unfinished]
    repeats: Sequence[Unfinished]  # runs with the settings and seed of another: not counted

    @property
    def runs(self) -> list[Record]:
        return [run for group in self.groups for run in group.runs]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of independent values.

    The half-width is t(0.975, n - 1) s / sqrt(n), s with n - 1; None where n = 1.
    """
    n = len(values)
    if not n:
        return None
    if n == 1:
        return Estimate(float(values[0]), None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(
        float(np.mean(values)), float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error, n
    )


def overall(study: Study, key: str) -> Estimate | None:
    """The figure `key` over all groups, each counting the same.

    Runs of one seed share data and baselines and are not independent: the interval is over the
    seeds' means, and there is none where the groups have not the same seeds. n counts seeds.
    """
    by_group = [{r.seed: r.figures[key] for r in g.runs if key in r.figures} for g in study.groups]
    held = [found for found in by_group if found]
    if not held:
        return None
    if all(found.keys() == held[0].keys() for found in held):
        return estimate([float(np.mean([found[seed] for found in held])) for seed in held[0]])
    return Estimate(float(np.mean([np.mean(list(found.values())) for found in held])), None, 0)


def read_study(paths: Sequence[Path]) -> Study:
    """The runs below `paths`, each a run directory or a sweep's.

    Raises:
        StudyError: a path is neither, a run's figures cannot be read, no run has finished.
    """
    records: dict[Path, Record] = {}
    unfinished: dict[Path, Unfinished] = {}
    for folder, name in _run_folders(paths):
        found = _read(folder, name)
        if isinstance(found, Record):
            records[folder.resolve()] = found
        else:
            unfinished[folder.resolve()] = found
    if not records:
        raise StudyError(f"no run in {', '.join(map(str, paths))} has finished: nothing to report")
    return study_of(list(records.values()), list(unfinished.values()))


def _run_folders(paths: Sequence[Path]) -> Iterable[tuple[Path, str]]:
    """Each run's folder and a name for it; a sweep's name goes before where there are several."""
    several = len(paths) > 1
    for path in paths:
        if (path / FILE_NAME).is_file():
            yield path, path.resolve().name
        elif (path / RUNS).is_dir():
            for folder in sorted(p for p in (path / RUNS).iterdir() if p.is_dir()):
                yield folder, f"{path.resolve().name}/{folder.name}" if several else folder.name
        else:
            raise StudyError(_neither(path))


def _neither(path: Path) -> str:
    if not path.exists():
        return f"there is no folder {path}"
    if (path / "config.toml").is_file():
        return f"{path} has no {FILE_NAME}: that run has not finished"
    return (
        f"{path} is neither a run directory, which holds {FILE_NAME}, nor a sweep's, which "
        f"holds {RUNS}/: name a folder that simulate, deploy or sweep has written"
    )


def _read(folder: Path, name: str) -> Record | Unfinished:
    path = folder / FILE_NAME
    if not path.is_file():
        return Unfinished(name, _last_words(folder / ERROR_LOG))
    try:
        return Record(name, folder, RunMetrics.read(path))
    except FileError as error:
        raise StudyError(f"{error}; run it again, or leave it out") from None


def _last_words(log: Path) -> str:
    if not log.is_file():
        return "it has not finished"
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"it failed: {said[-1][:LONGEST_REASON]}" if said else "it failed"


def study_of(records: Sequence[Record], unfinished: Sequence[Unfinished] = ()) -> Study:
    """Group runs by the settings that vary among them."""
    settings = [_experiment(record) for record in records]
    varied = _varied(settings)
    grouped: dict[str, list[Record]] = {}
    apart: dict[str, dict[str, Any]] = {}
    repeats = []
    for record, given in zip(records, settings, strict=True):
        own = {key: given[key] for key in varied if key in given}
        group = grouped.setdefault(_identity(own), [])
        apart[_identity(own)] = own
        twin = next((other for other in group if other.seed == record.seed), None)
        if twin:
            repeats.append(Unfinished(record.name, f"it has settings and seed of {twin.name}"))
        else:
            group.append(record)
    names = _short_names(varied)
    groups = [
        Group(
            label(own, names) or ("all runs" if len(records) > 1 else "this run"),
            own,
            sorted(grouped[key], key=_seed_order),
        )
        for key, own in sorted(apart.items(), key=lambda item: _order(item[1], varied))
    ]
    return Study(groups, _shared(records), unfinished, repeats)


def _seed_order(record: Record) -> tuple[int, str]:
    return record.seed, record.name


def _experiment(record: Record) -> dict[str, Any]:
    """The settings that the figures depend on; a dataset goes by its name, not its place."""
    settings = {k: v for k, v in record.settings.items() if not _is_apart(k)}
    kind = settings.get("partition.kind")
    for key, kinds in LOOKED_AT.items():
        if kind not in kinds or settings.get("partition.file"):
            settings.pop(key, None)
    settings.pop("data.root", None)
    dataset = record.metrics.dataset
    return settings | ({"dataset": dataset.name} if dataset else {})


def _is_apart(key: str) -> bool:
    return key in APART or key.startswith(APART_BELOW)


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose value is not the same wherever it is looked at, the spoken ones first."""
    keys = dict.fromkeys(key for given in settings for key in given)
    unlike = [
        key
        for key in keys
        if len({_identity(given[key]) for given in settings if key in given}) > 1
    ]
    return sorted(unlike, key=lambda key: key not in SPOKEN)


def _identity(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(own: Mapping[str, Any], varied: Sequence[str]) -> list[tuple[bool, float, str]]:
    values = [own.get(key, "") for key in varied]
    return [(not is_figure(v), v if is_figure(v) else 0.0, str(v)) for v in values]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: SHORT.get(end, end) if last.count(end) == 1 else key
        for key, end in zip(keys, last, strict=True)
    }


def label(own: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A group in a few words: `dirichlet, alpha 0.1`."""
    return ", ".join(_said(key, value, names.get(key, key)) for key, value in own.items())


def _said(key: str, value: Any, name: str) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    text = Path(value).name if isinstance(value, str) and value.startswith("/") else str(value)
    if value == "":
        return f"no {name}" if key == "partition.file" else f"default {name}"
    return text if key in SPOKEN else f"{name} {text}"


def _shared(records: Sequence[Record]) -> dict[str, Any]:
    first, *others = (record.settings for record in records)
    return {
        key: value
        for key, value in first.items()
        if key not in ("out", "resume") and all(each.get(key) == value for each in others)
    }


def _differences(flat: Mapping[str, float]) -> dict[str, float]:
    """Federated minus centralized and minus local, figure by figure, within a run."""
    found = {}
    for key in (key.replace("@", ".") for key in METRIC_NAMES):
        for name, side in (("centralized", "centralized"), ("local", "local.mean")):
            pair = f"federated.{key}", f"{side}.{key}"
            if all(k in flat for k in pair):
                found[f"difference.{name}.{key}"] = flat[pair[0]] - flat[pair[1]]
    return found


def _factors(metrics: RunMetrics) -> dict[str, float]:
    """How many times the upload every patch, and the merged bank, would be in float32."""
    sent, bank = traffic(metrics), metrics.bank
    if not sent or not sent["upload"]:
        return {}
    one = bank.size * bank.dim * FLOAT32_BYTES
    found = {"factor.every_patch": sent["factor"], "factor.one_bank": one / sent["upload"]}
    return {key: float(value) for key, value in found.items() if value}


def client_figures(metrics: RunMetrics) -> dict[int, float]:
    """Client -> image AUROC of the merged bank on its own test images."""
    return {client.client: client.image_auroc for client in metrics.fairness.clients}


def stage_sums(
    runs: Sequence[Record], amounts: Callable[[RunMetrics], Mapping[str, float]]
) -> dict[str, float]:
    """Stage -> mean over the runs that know their stages; a stage that a run lacks counts 0."""
    known = [found for found in (amounts(run.metrics) for run in runs) if found]
    names = dict.fromkeys(name for found in known for name in found)
    return {name: sum(found.get(name, 0.0) for found in known) / len(known) for name in names}


def seconds_by_stage(metrics: RunMetrics) -> dict[str, float]:
    """Stage -> seconds of the slowest client."""
    return _by_stage(metrics.seconds)


def work_by_stage(metrics: RunMetrics) -> dict[str, float]:
    """Stage -> seconds over all clients."""
    return _by_stage(metrics.work)


def _by_stage(seconds: Seconds) -> dict[str, float]:
    return {stage: s for stage, s in seconds if stage != "total" and s is not None}


def bytes_by_stage(metrics: RunMetrics, way: Literal["up", "down"]) -> dict[str, float]:
    """Stage -> bytes over all rounds: `up` from all clients, `down` to each."""
    sums: dict[str, float] = {}
    for exchange in metrics.traffic.stages:
        sums[exchange.stage] = sums.get(exchange.stage, 0.0) + getattr(exchange, way)
    return sums
