"""The tables of a run's page, from metrics.json."""

from collections.abc import Mapping, Sequence

from src.reporting.formats import byte_size, count, difference, duration, number, setting
from src.reporting.run.scores import ScoreRow
from src.reporting.run.summary import METRIC_NAMES, compared_banks, metric, metric_names
from src.reporting.tables import Table
from src.storage.run_metrics import MetricSet, RunMetrics

FLOAT32_BYTES = 4
SIDES = ("local mean", "federated", "centralized")
PIXEL = ("pixel_auroc", "aupro", "au_spro@0.05")


def comparison_table(metrics: RunMetrics) -> Table | None:
    """Every metric of every bank, and what separates federated from centralized."""
    banks = compared_banks(metrics)
    names = metric_names(banks)
    rows = [[n, *(number(metric(bank, key)) for key in names)] for n, bank in banks.items()]
    both = "federated" in banks and "centralized" in banks
    if both:
        gaps = (gap(banks, key) for key in names)
        rows.append(["federated − centralized", *map(difference, gaps)])
    notes = []
    if "local mean" in banks:
        tested = metrics.local.test_images
        where = f", tested on {tested}" if tested else ""
        notes.append(f"Local: each client with a bank of its own images{where}.")
    if "centralized" in banks:
        notes.append("Centralized: one bank of all training images.")
    if len(metrics.objects) > 1:
        notes.append("Means over the objects.")
    if metrics.privacy.epsilon is not None:
        notes.append("Of these banks only the federated one is private.")
    heads = ["bank", *names.values()]
    table = Table("Comparison", heads, rows, " ".join(notes), strong="federated", total=both)
    return table if rows else None


def gap(banks: Mapping[str, MetricSet], key: str) -> float | None:
    """Federated minus centralized."""
    ours, theirs = (metric(banks.get(name), key) for name in ("federated", "centralized"))
    return None if ours is None or theirs is None else ours - theirs


def objects_table(metrics: RunMetrics) -> Table | None:
    """Image AUROC of each object, and the pixel metrics of its federated bank."""
    if len(metrics.objects) < 2:
        return None
    banks = {name: compared_banks(metrics.objects[name]) for name in sorted(metrics.objects)}
    sides = [side for side in SIDES if any(side in own for own in banks.values())]
    both = {"federated", "centralized"} <= set(sides)
    federated = {name: own["federated"] for name, own in banks.items() if "federated" in own}
    pixel = [key for key in PIXEL if key in metric_names(federated)]
    rows = [
        [
            name,
            *(number(metric(own.get(side), "image_auroc")) for side in sides),
            *([difference(gap(own, "image_auroc"))] if both else []),
            *(number(metric(federated.get(name), key)) for key in pixel),
        ]
        for name, own in banks.items()
    ]
    heads = ["object", *sides, *(["fed. − cent."] if both else [])]
    note = "Image AUROC of each bank." + (" Pixel metrics of the federated one." if pixel else "")
    return Table("By object", [*heads, *(METRIC_NAMES[key] for key in pixel)], rows, note)


def decisions_table(scores: Sequence[ScoreRow], thresholds: Mapping[str, float]) -> Table | None:
    """What the threshold decides about each object's test images."""
    rows = []
    for name in sorted({row.object for row in scores} & thresholds.keys()):
        cells = [name, number(thresholds[name])]
        for label in (1, 0):
            own = [row for row in scores if row.object == name and row.label == label]
            above = sum(row.federated >= thresholds[name] for row in own)
            cells.append(f"{count(above)} of {count(len(own))}")
        rows.append(cells)
    heads = ["object", "threshold", "anomalous images found", "normal images flagged"]
    return Table("At the threshold", heads, rows) if rows else None


def clients_table(metrics: RunMetrics) -> Table | None:
    """What each client holds, sent, and reaches alone."""
    clients, uploads = metrics.local.clients, metrics.traffic.upload_bytes
    if not clients:
        return None
    sent = uploads if len(uploads) == len(clients) else [None] * len(clients)
    columns = {
        "client": [str(client.client) for client in clients],
        "images": [count(client.images) for client in clients],
        "patches": [count(client.patches) for client in clients],
        "bank rows": [count(client.bank) for client in clients],
        "covering radius": [number(client.radius) for client in clients],
        "image AUROC alone": [number(client.image_auroc) for client in clients],
        "upload": [byte_size(size) for size in sent],
    }
    kept = {name: cells for name, cells in columns.items() if set(cells) != {number(None)}}
    return Table("What each client did", list(kept), list(zip(*kept.values(), strict=True)))


def cost_table(metrics: RunMetrics) -> Table:
    """Size of the merged banks, how well they cover the patches, and traffic."""
    bank, traffic = metrics.bank, metrics.traffic
    uploads = traffic.upload_bytes
    ends = [min(uploads), max(uploads)] if uploads else []
    rows = {
        "bank": f"{count(bank.size)} × {count(bank.dim)} {bank.dtype}, {byte_size(bank.bytes)}",
        "rows known to be the centralized ones": count(bank.exact) if bank.exact else "",
        "covering radius, guaranteed": _radius(metrics, "radius_bound"),
        "covering radius, measured": _radius(metrics, "radius"),
        "upload, all clients": byte_size(sum(uploads)) if uploads else "",
        "upload, least and most": " to ".join(map(byte_size, ends)),
        "download, each client": byte_size(traffic.broadcast_bytes),
        "every patch in float32": _every_patch(metrics),
    }
    shown = [[name, value] for name, value in rows.items() if value]
    note = "Every patch of every merged client lies within the covering radius of its bank."
    radius = any(name.startswith("covering") for name, _ in shown)
    return Table("Cost and guarantee", [], shown, note if radius else "", words=2)


def _radius(metrics: RunMetrics, key: str) -> str:
    """The largest of the objects' radii; empty where one is unknown."""
    banks = [each.bank for each in metrics.objects.values() if each.bank] or [metrics.bank]
    radii = [getattr(bank, key) for bank in banks]
    return "" if None in radii else number(max(radii))


def _every_patch(metrics: RunMetrics) -> str:
    factor = upload_factor(metrics)
    if not factor:
        return ""
    size = byte_size(factor * sum(metrics.traffic.upload_bytes))
    return f"{size}, {number(factor, 1 if factor < 10 else 0)} times the upload"


def upload_factor(metrics: RunMetrics) -> float | None:
    """How many times the upload every patch in float32 would be."""
    uploads = metrics.traffic.upload_bytes
    patches = [client.patches for client in metrics.local.clients]
    if not sum(uploads) or not all(patches) or len(patches) != len(uploads):
        return None
    return sum(patches) * metrics.bank.dim * FLOAT32_BYTES / sum(uploads)


def seconds_table(metrics: RunMetrics) -> Table:
    """Seconds by stage."""
    rows = [[stage, duration(s)] for stage, s in metrics.seconds if s is not None]
    note = "Of the slowest client in each stage."
    total = metrics.seconds.total is not None
    return Table("Time by stage", ["stage", "time"], rows, note, total=total)


def releases_table(metrics: RunMetrics) -> Table | None:
    """What a private run released, and its share of the budget."""
    releases = metrics.privacy.releases
    if not releases:
        return None
    several = len(metrics.objects) > 1
    rows = [
        [r.name, *([r.bank] if several else []), r.what, "∞" if r.mu is None else number(r.mu)]
        for r in releases
    ]
    heads = ["release", *(["object"] if several else []), "what", "cost μ"]
    note = "Costs add up by their squares."
    return Table("What was released", heads, rows, note, words=len(heads) - 1)


def pairs_table(title: str, values: Mapping[str, object]) -> Table | None:
    """Settings or versions."""
    rows = [[key, setting(value)] for key, value in values.items()]
    return Table(title, [], rows, words=2) if rows else None
