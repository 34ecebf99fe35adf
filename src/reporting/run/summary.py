"""The comparison of banks: local, federated and centralized side by side.

It is made once, from metrics.json, for the console table here and for the report.
"""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from src.reporting.formats import count, figure
from src.storage.run_metrics import LocalMetrics, MetricSet, ObjectMetrics, RunMetrics

METRIC_NAMES = {
    "image_auroc": "Image AUROC",
    "image_ap": "AP",
    "image_f1_max": "F1",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO",
    "au_spro@0.05": "AU-sPRO@0.05",
}
WORTH_A_SHARE = 0.005  # a smaller gap between local and centralized is noise: no share of it


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
    """The comparison of image AUROC in words."""
    banks = compared_banks(metrics)
    values = {name: metric(bank, "image_auroc") for name, bank in banks.items()}
    auroc = {name: value for name, value in values.items() if value is not None}
    if "federated" not in auroc:
        return "There is no image AUROC: it needs normal and anomalous test images."
    objects = len(metrics.objects)
    over = f", the mean of {count(objects)} objects" if objects > 1 else ""
    private = _private(metrics)
    sentence = f"Federated{private} reaches {figure(auroc['federated'])} image AUROC{over}"
    if "centralized" in auroc:
        sentence += f", {_beside(auroc['federated'] - auroc['centralized'])} centralized"
    return f"{sentence}{_alone(auroc, metrics)}.{'' if private else _bought(auroc)}"


def _private(metrics: RunMetrics) -> str:
    """Of a private bank its ε; nothing else in the comparison is private."""
    privacy = metrics.privacy
    if privacy.epsilon is None:
        return ""
    return f", private with ε = {privacy.epsilon:.4g} for one {privacy.unit},"


def _beside(gain: float) -> str:
    if figure(abs(gain)) == figure(0.0):
        return "level with"
    return f"{figure(abs(gain))} {'above' if gain > 0 else 'below'}"


def _alone(auroc: Mapping[str, float], metrics: RunMetrics) -> str:
    if "local mean" not in auroc:
        return ""
    words = f"; a client alone reaches {figure(auroc['local mean'])} on average"
    worst = metrics.local.worst
    if not worst or "local worst" not in auroc:
        return words
    return f"{words} and {figure(auroc['local worst'])} at worst (client {worst.client})"


def _bought(auroc: Mapping[str, float]) -> str:
    """The share of the way from a client alone to centralized, where the way is worth a word."""
    if not {"local mean", "centralized"} <= auroc.keys():
        return ""
    gained = auroc["federated"] - auroc["local mean"]
    possible = auroc["centralized"] - auroc["local mean"]
    if possible < WORTH_A_SHARE:
        return ""
    if gained <= 0:
        return " Federation gains nothing over a client alone."
    if gained >= possible:
        return " Pooling all images would gain no more."
    share = _percent(gained / possible)
    return f" Of what pooling all images would gain over a client alone, federation gains {share}."


def _percent(share: float) -> str:
    """Never 0 % or 100 % of what is neither nothing nor all."""
    return f"{min(99, max(1, round(100 * share)))} %"


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
        cells = [figure(metric(values, key)) for key in names]
        table.add_row(bank, *cells, style="bold" if bank == "federated" else None)
    return table
