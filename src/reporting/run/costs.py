"""What a run cost and what it promises: the report's figures of traffic, time and radius."""

from collections.abc import Iterable, Mapping
from typing import Any

from src.reporting.formats import is_figure

FLOAT32_BYTES = 4


def local_clients(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return (metrics.get("local") or {}).get("clients") or []


def participants(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`local.clients`, each with what it uploaded where the two lists match."""
    clients = local_clients(metrics)
    uploads = (metrics.get("traffic") or {}).get("upload_bytes") or []
    if len(uploads) != len(clients):
        uploads = [None] * len(clients)
    return [{"upload": size, **client} for client, size in zip(clients, uploads, strict=True)]


def traffic(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was sent, and how many times as much all patches in float32 would have been."""
    sent = metrics.get("traffic") or {}
    uploads = sent.get("upload_bytes") or []
    if not uploads:
        return None
    patches = [client.get("patches") or 0 for client in local_clients(metrics)]
    dim = (metrics.get("bank") or {}).get("dim") or 0
    known = all(patches) and len(patches) == len(uploads)
    every = sum(patches) * dim * FLOAT32_BYTES if known else 0
    return {
        "upload": sum(uploads),
        "least": min(uploads),
        "most": max(uploads),
        "broadcast": sent.get("broadcast_bytes"),
        "every_patch": every,
        "factor": every / sum(uploads) if every else None,
    }


def certificate(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The covering radius: promised and, where the data was at hand, measured.

    With a bank for each object, the largest of the objects' radii: their mean covers nothing.
    """
    objects = (metrics.get("objects") or {}).values()
    banks = [bank for bank in (figures.get("bank") for figures in objects) if bank]
    banks = banks or [metrics.get("bank") or {}]
    return {key: _largest(bank.get(key) for bank in banks) for key in ("radius_bound", "radius")}


def _largest(values: Iterable[Any]) -> float | None:
    """None where one is missing: the largest of the others says too little."""
    known = [float(v) if is_figure(v) else None for v in values]
    return None if None in known else max(v for v in known if v is not None)


def stages(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Stage, seconds and share of the longest; the total comes last."""
    known = [(name, float(s)) for name, s in seconds.items() if is_figure(s)]
    longest = max((s for _, s in known), default=0.0) or 1.0
    ordered = sorted(known, key=lambda stage: stage[0] == "total")
    return [(name, s, s / longest) for name, s in ordered]
