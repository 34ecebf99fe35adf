"""What a run cost and what it promises: the report's figures of traffic, time and radius."""

from collections.abc import Iterable
from typing import Any

from src.storage.run_metrics import RunMetrics, Seconds

FLOAT32_BYTES = 4


def participants(metrics: RunMetrics) -> list[dict[str, Any]]:
    """`local.clients`, each with what it uploaded where the two lists match."""
    clients, uploads = metrics.local.clients, metrics.traffic.upload_bytes
    sizes: list[int | None] = [*uploads] if len(uploads) == len(clients) else [None] * len(clients)
    return [
        {"upload": size, **client.model_dump()} for client, size in zip(clients, sizes, strict=True)
    ]


def traffic(metrics: RunMetrics) -> dict[str, Any] | None:
    """What was sent, and how many times as much all patches in float32 would have been."""
    uploads = metrics.traffic.upload_bytes
    if not uploads:
        return None
    patches = [client.patches for client in metrics.local.clients]
    known = all(patches) and len(patches) == len(uploads)
    every = sum(patches) * metrics.bank.dim * FLOAT32_BYTES if known else 0
    return {
        "upload": sum(uploads),
        "least": min(uploads),
        "most": max(uploads),
        "broadcast": metrics.traffic.broadcast_bytes,
        "every_patch": every,
        "factor": every / sum(uploads) if every else None,
    }


def certificate(metrics: RunMetrics) -> dict[str, float | None]:
    """The covering radius: promised and, where the data was at hand, measured.

    With a bank for each object, the largest of the objects' radii: their mean covers nothing.
    """
    banks = [one.bank for one in metrics.objects.values() if one.bank] or [metrics.bank]
    return {
        "radius_bound": _largest(bank.radius_bound for bank in banks),
        "radius": _largest(bank.radius for bank in banks),
    }


def _largest(values: Iterable[float | None]) -> float | None:
    """None where one is missing: the largest of the others says too little."""
    known = list(values)
    return None if None in known else max(value for value in known if value is not None)


def stages(seconds: Seconds) -> list[tuple[str, float, float]]:
    """Stage, seconds and share of the longest; the total comes last."""
    known = [(name, s) for name, s in seconds if s is not None]
    longest = max((s for _, s in known), default=0.0) or 1.0
    return [(name, s, s / longest) for name, s in known]
