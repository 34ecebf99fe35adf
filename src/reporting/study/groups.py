"""Runs grouped by the settings that vary among them, and what each group's seeds average to.

A value of a group is the mean over its seeds with the half-width of a 95 % t-interval. Banks are
compared within a run first, so that what a seed does to both cancels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.reporting.study.runs import MissingRun, Record, read_runs
from src.storage.run_metrics import Scalar

CONFIDENCE = 0.95
# settings that only some partitions use
USED_BY = {
    "partition.alpha": ("dirichlet", "quantity"),
    "partition.column": ("dirichlet", "attribute"),
    "partition.minimum": ("dirichlet", "quantity"),
}
SHORT = {"num-server-rounds": "rounds", "coreset-percentage": "coreset", "epsilon": "ε"}
BARE = (  # a label gives their value without a name
    *("partition.kind", "data.kind", "dataset"),
    *("partition.file", "model.backbone", "privacy.mechanism"),
)


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
    settings: Mapping[str, Scalar]  # those that set it apart
    runs: list[Record]

    def values(self, key: str) -> list[float]:
        """The value `key` of each run that has it."""
        return [run.values[key] for run in self.runs if key in run.values]

    def estimate(self, key: str) -> Estimate | None:
        """The value `key` over the seeds; None where no run has it."""
        return estimate(self.values(key))


@dataclass(frozen=True)
class Study:
    """Runs in groups, the settings they share, and the runs that do not count."""

    groups: Sequence[Group]
    shared: Mapping[str, Scalar]
    missing: Sequence[MissingRun]  # unfinished, or of the settings and seed of another

    @property
    def runs(self) -> list[Record]:
        return [run for group in self.groups for run in group.runs]

    @property
    def several_seeds(self) -> bool:
        """Whether some group has more than one run."""
        return any(len(group.runs) > 1 for group in self.groups)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of independent values.

    The half-width is t(0.975, n - 1) s / sqrt(n), s with n - 1; None where n = 1.
    """
    from scipy.special import stdtrit  # the command line need not wait for it

    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error, n)


def overall(study: Study, key: str) -> Estimate | None:
    """The value `key` over all groups, each counting the same.

    Runs of one seed share data and baselines and are not independent: the interval is over the
    seeds' means, and there is none where the groups have not the same seeds. n counts seeds.
    """
    by_group = [{r.seed: r.values[key] for r in g.runs if key in r.values} for g in study.groups]
    by_group = [by_seed for by_seed in by_group if by_seed]
    if not by_group:
        return None
    seeds = by_group[0].keys()
    if all(by_seed.keys() == seeds for by_seed in by_group):
        return estimate([float(np.mean([by_seed[s] for by_seed in by_group])) for s in seeds])
    means = [np.mean(list(by_seed.values())) for by_seed in by_group]
    return Estimate(float(np.mean(means)), None, 0)


def read_study(paths: Sequence[Path], sets_apart: Callable[[str], bool]) -> Study:
    """The runs below `paths`, each a run directory or a sweep's, in groups.

    Args:
        sets_apart: whether runs that differ in the setting of this key are of two groups.

    Raises:
        FileError: as `read_runs`.
    """
    records, missing = read_runs(paths)
    return study_of(records, sets_apart, missing)


def study_of(
    records: Sequence[Record],
    sets_apart: Callable[[str], bool],
    missing: Sequence[MissingRun] = (),
) -> Study:
    """Group runs by the settings that vary among them."""
    experiments = [_experiment(record, sets_apart) for record in records]
    varied = _varied(experiments)
    names = _short_names(varied)
    groups: dict[str, Group] = {}
    repeats = []
    for record, experiment in zip(records, experiments, strict=True):
        own = {key: experiment[key] for key in varied if key in experiment}
        name = label(own, names) or ("all runs" if len(records) > 1 else "this run")
        group = groups.setdefault(repr(own), Group(name, own, []))
        twin = next((other for other in group.runs if other.seed == record.seed), None)
        if twin:
            reason = f"it has the settings and the seed of {twin.name}"
            repeats.append(MissingRun(record.name, reason))
        else:
            group.runs.append(record)
    for group in groups.values():
        group.runs.sort(key=lambda record: (record.seed, record.name))
    ordered = sorted(groups.values(), key=lambda group: _order(group.settings, varied))
    return Study(ordered, _shared(records), [*missing, *repeats])


def _experiment(record: Record, sets_apart: Callable[[str], bool]) -> dict[str, Scalar]:
    """The settings that a result depends on; a dataset goes by its name, not its place."""
    settings = {key: value for key, value in record.settings.items() if sets_apart(key)}
    kind = settings.get("partition.kind")
    for key, kinds in USED_BY.items():
        if kind not in kinds or settings.get("partition.file"):
            settings.pop(key, None)
    settings.pop("data.root", None)
    dataset = record.metrics.dataset
    return {**settings, "dataset": dataset.name} if dataset else settings


def _varied(settings: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Keys that have several values among the runs that have them, those of `BARE` first."""
    keys = dict.fromkeys(key for own in settings for key in own)
    values = {key: {repr(own[key]) for own in settings if key in own} for key in keys}
    return sorted((key for key in keys if len(values[key]) > 1), key=lambda key: key not in BARE)


def _order(own: Mapping[str, Scalar], varied: Sequence[str]) -> list[tuple[bool, float, str]]:
    values = [own.get(key, "") for key in varied]
    return [(False, v, "") if isinstance(v, int | float) else (True, 0.0, v) for v in values]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: SHORT.get(end, end) if last.count(end) == 1 else key
        for key, end in zip(keys, last, strict=True)
    }


def label(own: Mapping[str, Scalar], names: Mapping[str, str]) -> str:
    """A group in a few words: `dirichlet, alpha 0.1`."""
    return ", ".join(_words(key, value, names.get(key, key)) for key, value in own.items())


def _words(key: str, value: Scalar, name: str) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if value == "":
        return f"no {name}" if key == "partition.file" else f"default {name}"
    text = Path(value).name if isinstance(value, str) and value.startswith("/") else str(value)
    return text if key in BARE else f"{name} {text}"


def _shared(records: Sequence[Record]) -> dict[str, Scalar]:
    first, *others = (record.settings for record in records)
    return {
        key: value
        for key, value in first.items()
        if key not in ("out", "resume") and all(each.get(key) == value for each in others)
    }
