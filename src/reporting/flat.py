"""metrics.json as one row of a table: figures under dotted names."""

from collections.abc import Iterator, Mapping
from typing import Any

from src.reporting.formats import is_figure

PARTS = (
    *("federated", "centralized", "bank", "seconds", "work"),
    *("fairness", "heterogeneity", "threshold", "privacy", "comparators"),
)


def flatten(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """The figures of a run by dotted name, as far as it has them.

    `local.mean` and `local.worst` are image AUROC, of the clients' mean and of the worst of them;
    `local.mean.<figure>` are all. `traffic.upload_bytes` is of all clients together,
    `traffic.broadcast_bytes` to each. `clients` came through, `refused` were left out.
    """
    flat: dict[str, int | float] = {}
    for name in PARTS:
        flat |= dict(_leaves(name, metrics.get(name)))
    local, traffic = metrics.get("local") or {}, metrics.get("traffic") or {}
    for side in ("mean", "worst"):
        found = local.get(side) or {}
        flat |= dict(_leaves(f"local.{side}", found.get("image_auroc")))
        flat |= dict(_leaves(f"local.{side}", found))
    if "upload_bytes" in traffic:
        flat["traffic.upload_bytes"] = sum(traffic["upload_bytes"])
    flat |= dict(_leaves("traffic.broadcast_bytes", traffic.get("broadcast_bytes")))
    if "clients" in local:
        flat["clients"] = len(local["clients"])
    flat["refused"] = len(metrics.get("refused") or ())
    return flat


def _leaves(name: str, value: object) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(f"{name}.{key}", below)
    elif is_figure(value):
        yield name, value  # type: ignore[misc]
