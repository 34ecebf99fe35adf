"""Seconds and bytes of a run by stage, and their means over runs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from src.reporting.study.runs import Record
from src.storage.run_metrics import RunMetrics

Amounts = Callable[[RunMetrics], Mapping[str, float]]  # stage -> how much


def seconds_by_stage(metrics: RunMetrics, key: Literal["seconds", "work"]) -> dict[str, float]:
    """Stage -> seconds: of the slowest client (`seconds`), or over all clients (`work`)."""
    seconds = getattr(metrics, key)
    return {stage: s for stage, s in seconds if stage != "total" and s is not None}


def bytes_by_stage(metrics: RunMetrics, way: Literal["up", "down"]) -> dict[str, int]:
    """Stage -> bytes over all rounds: `up` from all clients, `down` to each."""
    sums = Counter[str]()
    for exchange in metrics.traffic.stages:
        sums[exchange.stage] += getattr(exchange, way)
    return sums


def stage_means(runs: Sequence[Record], amounts: Amounts) -> dict[str, float]:
    """Stage -> mean over the runs that know their stages; a stage that a run lacks counts 0."""
    known = [stages for stages in (amounts(run.metrics) for run in runs) if stages]
    names = dict.fromkeys(name for stages in known for name in stages)
    return {name: sum(stages.get(name, 0.0) for stages in known) / len(known) for name in names}


SECONDS: dict[str, Amounts] = {
    "slowest client": lambda metrics: seconds_by_stage(metrics, "seconds"),
    "all clients": lambda metrics: seconds_by_stage(metrics, "work"),
}
BYTES: dict[str, Amounts] = {
    "up, all clients": lambda metrics: bytes_by_stage(metrics, "up"),
    "down, each client": lambda metrics: bytes_by_stage(metrics, "down"),
}
