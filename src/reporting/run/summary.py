"""The comparison of banks: local, federated and centralized side by side.

It is made once, from metrics.json, for the console table here and for the report.
"""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from src.reporting.formats import number
from src.storage.run_metrics import LocalMetrics, MetricSet, ObjectMetrics, RunMetrics

METRIC_NAMES = {
    "image_auroc": "Image AUROC",
    "image_ap": "AP",
    "image_f1_max": "F1",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO",
    "au_spro@0.05": "AU-sPRO@0.05",
}


def metric(metrics: MetricSet | None, key: str) -> float | None:
    """The metric `key`, where `au_spro@0.05` is `au_spro` at that limit; None where absent."""
    name, _, limit = key.partition("@")
    value = getattr(metrics, name, None)
    return (value or {}).get(limit) if limit else value


def compared_banks(metrics: RunMetrics | ObjectMetrics) -> dict[str, MetricSet]:
    """The banks that have metrics: local mean and worst, federated, centralized, comparators."""
    local = metrics.local or LocalMetrics()
    banks = {
        "local mean": local.mean,
        "local worst": local.worst,
        "federated": metrics.federated,
        "centralized": metrics.centralized,
        **(metrics.comparators if isinstance(metrics, RunMetrics) else {}),
    }
    return {name: bank for name, bank in banks.items() if bank and metric_names({name: bank})}


def metric_names(banks: Mapping[str, MetricSet]) -> dict[str, str]:
    """Key -> name of the metrics that some bank has."""
    return {
        key: name
        for key, name in METRIC_NAMES.items()
        if any(metric(bank, key) is not None for bank in banks.values())
    }


def headline(metrics: RunMetrics) -> str:
    """Image AUROC of each bank, in a line."""
    banks = compared_banks(metrics)
    if metric(banks.get("federated"), "image_auroc") is None:
        return "There is no image AUROC: it needs normal and anomalous test images."
    values = {name: metric(bank, "image_auroc") for name, bank in banks.items()}
    words = [f"{name} {number(value)}" for name, value in values.items() if value is not None]
    over = f", mean of {len(metrics.objects)} objects" if len(metrics.objects) > 1 else ""
    privacy = metrics.privacy
    if privacy.epsilon is not None:
        over += f", federated with ε = {privacy.epsilon:.4g} for one {privacy.unit}"
    return f"Image AUROC{over}: {', '.join(words)}"


def summary_table(metrics: RunMetrics) -> Table:
    """The final console table, 80 columns wide at most."""
    banks = compared_banks(metrics)
    names = metric_names(banks)
    worst = metrics.local.worst
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=Text(f"local worst: client {worst.client}") if worst else None,
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in names.values():
        table.add_column(name, justify="right", no_wrap=True)
    for bank, values in banks.items():
        cells = [number(metric(values, key)) for key in names]
        table.add_row(bank, *cells, style="bold" if bank == "federated" else None)
    return table
