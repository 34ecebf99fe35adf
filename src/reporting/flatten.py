"""metrics.json as one row of a table: numbers under dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from src.storage.run_metrics import RunMetrics

PARTS = (
    *("federated", "centralized", "bank", "seconds", "work"),
    *("fairness", "heterogeneity", "threshold", "privacy", "comparators"),
)


def flatten_metrics(metrics: RunMetrics) -> dict[str, int | float]:
    """The numbers of a run by dotted name; a value that the run lacks has no entry.

    `local.mean` and `local.worst` are image AUROC, averaged over the clients and of the worst
    client; `local.mean.<metric>` has every metric. `traffic.upload_bytes` is the sum over the
    clients, `traffic.broadcast_bytes` goes to each. `clients` took part, `refused` were left out.
    """
    content = metrics.content()
    flat: dict[str, int | float] = {}
    for part in PARTS:
        flat.update(_leaves(part, content.get(part)))
    for side in ("mean", "worst"):
        local = content["local"].get(side, {})
        flat.update(_leaves(f"local.{side}", local.get("image_auroc")))
        flat.update(_leaves(f"local.{side}", local))
    flat["traffic.upload_bytes"] = sum(metrics.traffic.upload_bytes)
    flat["traffic.broadcast_bytes"] = metrics.traffic.broadcast_bytes
    flat["clients"] = len(metrics.local.clients)
    flat["refused"] = len(metrics.refused)
    return flat


def _leaves(name: str, value: object) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(f"{name}.{key}", child)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
