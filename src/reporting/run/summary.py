"""What federation bought: a client alone, federated and centralized side by side.

The comparison is made once, from metrics.json, and shown by the console table here and by the
report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from src.reporting.formats import count, figure, is_figure

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "AP",
    "image_f1_max": "F1",
    "pixel_auroc": "Pixel AUROC",
    "aupro": "AUPRO",
    "au_spro@0.05": "AU-sPRO@0.05",
}
WORTH_A_SHARE = 0.005  # a smaller gap between local and centralized is noise: no share of it


def metric(figures: Mapping[str, Any] | None, key: str) -> float | None:
    """The figure at `key`, where `au_spro@0.05` is `au_spro` at that limit; None where absent."""
    name, _, limit = key.partition("@")
    value = (figures or {}).get(name)
    if limit:
        value = (value or {}).get(limit)
    return float(value) if is_figure(value) else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Comparison:
    metrics: dict[str, str]  # key -> name, only those that some row has
    rows: dict[str, dict[str, float]]  # row name -> key -> figure, only rows that hold any


def comparison(metrics: Mapping[str, Any]) -> Comparison:
    """The rows local mean, local worst, federated, centralized and others of one metrics.json."""
    local = metrics.get("local") or {}
    sources = {
        "local mean": local.get("mean"),
        "local worst": local.get("worst"),
        "federated": metrics.get("federated"),
        "centralized": metrics.get("centralized"),
        **(metrics.get("comparators") or {}),
    }
    rows = {name: _figures(source) for name, source in sources.items()}
    return Comparison(
        metrics={k: name for k, name in METRICS.items() if any(k in row for row in rows.values())},
        rows={name: row for name, row in rows.items() if row},
    )


def _figures(source: Mapping[str, Any] | None) -> dict[str, float]:
    found = {key: metric(source, key) for key in METRICS}
    return {key: value for key, value in found.items() if value is not None}


def headline(metrics: Mapping[str, Any]) -> str:
    """The comparison of image AUROC in words."""
    rows = comparison(metrics).rows
    auroc = {name: row["image_auroc"] for name, row in rows.items() if "image_auroc" in row}
    if "federated" not in auroc:
        return "There is no image AUROC: it needs normal and anomalous test images."
    objects = len(metrics.get("objects") or {})
    over = f", the mean of {count(objects)} objects" if objects > 1 else ""
    private = _private(metrics)
    sentence = f"Federated{private} reaches {figure(auroc['federated'])} image AUROC{over}"
    if "centralized" in auroc:
        sentence += f", {_beside(auroc['federated'] - auroc['centralized'])} centralized"
    return f"{sentence}{_alone(auroc, metrics)}.{'' if private else _bought(auroc)}"


def _private(metrics: Mapping[str, Any]) -> str:
    """Of a private bank its ε; nothing else in the comparison is private."""
    privacy = metrics.get("privacy") or {}
    if not is_figure(privacy.get("epsilon")):
        return ""
    return f", private with ε = {privacy['epsilon']:.4g} for one {privacy.get('unit', 'image')},"


def _beside(gain: float) -> str:
    if figure(abs(gain)) == figure(0.0):
        return "level with"
    return f"{figure(abs(gain))} {'above' if gain > 0 else 'below'}"


def _alone(auroc: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
    if "local mean" not in auroc:
        return ""
    words = f"; a client alone reaches {figure(auroc['local mean'])} on average"
    if "local worst" not in auroc:
        return words
    client = metrics["local"]["worst"].get("client")
    which = "" if client is None else f" (client {client})"
    return f"{words} and {figure(auroc['local worst'])} at worst{which}"


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


def summary_table(metrics: Mapping[str, Any]) -> Table:
    """The final console table, 80 columns wide at most."""
    compared = comparison(metrics)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=_caption(metrics),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in compared.metrics.values():
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in compared.rows.items():
        cells = [figure(row.get(key)) for key in compared.metrics]
        table.add_row(name, *cells, style="bold" if name == "federated" else None)
    return table


def _caption(metrics: Mapping[str, Any]) -> Text | None:
    worst = (metrics.get("local") or {}).get("worst") or {}
    return Text(f"local worst: client {worst['client']}") if "client" in worst else None
