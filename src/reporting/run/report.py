"""report.html: the self-contained page that a run leaves for a person.

It says what federation bought, and shows the scores, clients, traffic and images behind that.
Images are data URIs and charts inline SVG; nothing is loaded from anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import DictLoader, Environment

from src.evaluation.scores import ScoreRow
from src.reporting import formats
from src.reporting.run.charts import (
    MIDDLE,
    ROC_X,
    ROC_Y,
    Histogram,
    RocCurve,
    Strip,
    histogram,
    roc_line,
    strip,
)
from src.reporting.run.costs import certificate, participants, stages, traffic
from src.reporting.run.gallery import LoadImage, LoadMap, LoadMask, choose, pictures
from src.reporting.run.page import CHARTS, HEAD, PAGE, STYLE
from src.reporting.run.summary import compared_banks, headline, metric, metric_names
from src.storage.atomic import write_whole
from src.storage.run_metrics import RunMetrics

__all__ = ["ClientTable", "ScoreRow", "write_report"]

MOST_LOCAL_CURVES = 20  # in one chart; more are a grey smear and a large page


@dataclass(frozen=True)
class ClientTable:
    """Training images of every client, by category or attribute value."""

    columns: Sequence[str]
    counts: Sequence[Sequence[int]]  # [client][column]
    clients: Sequence[str | int] = ()  # names; empty: numbered from 0
    by: str = "category"  # what the columns are: category, exposure, line, ...


def write_report(
    path: Path,
    metrics: RunMetrics,
    scores: Sequence[ScoreRow],
    clients: ClientTable,
    load_image: LoadImage,
    load_map: LoadMap,
    load_mask: LoadMask,
) -> None:
    """Write the page of one run to `path`.

    `metrics` is metrics.json's content; what it lacks (baselines, masks) the page leaves out.
    `threshold` in it is a number, or one an object where every object has its own bank; an image
    is found anomalous from that score on. The three loaders are called for the images of the
    gallery only: image uint8 [H, W, 3], map float32 [H, W], mask bool [H, W] or None.
    """
    limits = thresholds(metrics, scores)
    template = environment().get_template("report.html")
    page = template.render(
        metrics=metrics,
        title=_title(metrics),
        facts=_facts(metrics, clients),
        headline=headline(metrics),
        compared=compared_banks(metrics),
        metric_names=metric_names(compared_banks(metrics)),
        strip=_strip(metrics),
        objects=object_rows(metrics),
        roc_ticks={"x": ROC_X.ticks(), "y": ROC_Y.ticks()},
        middle=MIDDLE,
        charts=[_charts(name, rows, limits.get(name)) for name, rows in _by_object(scores)],
        clients=client_cells(clients),
        by=clients.by,
        participants=participants(metrics),
        traffic=traffic(metrics),
        certificate=certificate(metrics),
        stages=stages(metrics.seconds),
        gallery=pictures(choose(scores, limits), limits, load_image, load_map, load_mask),
        folded=_folded(metrics),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


PAGES = {"report.html": PAGE, "head.html": HEAD, "charts.html": CHARTS, "report.css": STYLE}


def environment() -> Environment:
    jinja = Environment(
        loader=DictLoader(PAGES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for form in ("figure", "difference", "count", "counted", "byte_size", "duration", "setting"):
        jinja.filters[form] = getattr(formats, form)
    jinja.filters["metric"] = metric
    return jinja


def _title(metrics: RunMetrics) -> str:
    dataset = metrics.dataset
    return f"Federated PatchCore on {dataset.name}" if dataset else "Federated PatchCore"


def _facts(metrics: RunMetrics, clients: ClientTable) -> list[str]:
    dataset = metrics.dataset
    today = date.today()
    facts = [f"{today.day} {today:%B %Y}"]
    if dataset:
        facts.append(formats.counted(len(dataset.objects), "object"))
        facts.append(formats.counted(dataset.train_images, "training image"))
        facts.append(formats.counted(dataset.test_images, "test image"))
    if clients.counts:
        facts.append(formats.counted(len(clients.counts), "client"))
    return [*facts, f"seed {metrics.seed}"]


def thresholds(metrics: RunMetrics, scores: Sequence[ScoreRow]) -> dict[str, float]:
    """The decision threshold of every object that has one."""
    threshold = metrics.threshold
    if isinstance(threshold, dict):
        return threshold
    return {row.object: threshold for row in scores}


def _strip(metrics: RunMetrics) -> Strip | None:
    alone = [client.image_auroc for client in metrics.local.clients]
    marks = {
        name: bank.image_auroc
        for name, bank in compared_banks(metrics).items()
        if name in ("federated", "centralized") and bank.image_auroc is not None
    }
    return strip([value for value in alone if value is not None], marks)


def object_rows(metrics: RunMetrics) -> list[dict[str, Any]]:
    """One comparison an object; nothing where there is only one object."""
    objects = metrics.objects
    if len(objects) < 2:
        return []
    return [{"name": name, "rows": compared_banks(objects[name])} for name in sorted(objects)]


def _by_object(scores: Sequence[ScoreRow]) -> list[tuple[str, list[ScoreRow]]]:
    names = sorted({row.object for row in scores})
    return [(name, [row for row in scores if row.object == name]) for name in names]


@dataclass(frozen=True)
class ObjectCharts:
    object: str
    normal: int
    anomalous: int
    curves: list[RocCurve]
    local_curves: tuple[int, int]  # drawn, of how many clients
    histogram: Histogram | None
    threshold: float | None
    found: int  # anomalous images at or above the threshold
    flagged: int  # normal ones


def _charts(name: str, rows: Sequence[ScoreRow], threshold: float | None) -> ObjectCharts:
    labels = [row.label for row in rows]
    scores = [row.federated for row in rows]
    over = [threshold is not None and score >= threshold for score in scores]
    local = _local_curves(rows, labels)
    drawn = local[:: max(1, -(-len(local) // MOST_LOCAL_CURVES))]
    joint = [
        roc_line("federated", scores, labels),
        roc_line("centralized", [row.centralized for row in rows], labels),  # dashed, over it
    ]
    return ObjectCharts(
        object=name,
        normal=labels.count(0),
        anomalous=labels.count(1),
        curves=[*drawn, *(curve for curve in joint if curve)],
        local_curves=(len(drawn), len(local)),
        histogram=histogram(scores, labels, threshold),
        threshold=threshold,
        found=sum(o for o, label in zip(over, labels, strict=True) if label == 1),
        flagged=sum(o for o, label in zip(over, labels, strict=True) if label == 0),
    )


def _local_curves(rows: Sequence[ScoreRow], labels: Sequence[int]) -> list[RocCurve]:
    clients = max((len(row.local or ()) for row in rows), default=0)
    columns = [[row.local[i] if row.local else None for row in rows] for i in range(clients)]
    curves = [roc_line("local", column, labels) for column in columns]
    return [curve for curve in curves if curve]


def client_cells(clients: ClientTable) -> dict[str, Any]:
    """The heat-table: every cell with its share of the largest, which gives its shade."""
    names = clients.clients or range(len(clients.counts))
    largest = max((n for row in clients.counts for n in row), default=0) or 1
    return {
        "columns": clients.columns,
        "totals": np.sum(clients.counts, axis=0).tolist() if len(clients.counts) else [],
        "rows": [
            {"name": name, "cells": [(n, n / largest) for n in row], "total": sum(row)}
            for name, row in zip(names, clients.counts, strict=True)
        ],
    }


def _folded(metrics: RunMetrics) -> dict[str, Mapping[str, Any]]:
    """The key-value tables that a reader opens when needed."""
    tables: dict[str, Mapping[str, Any]]
    tables = {"Configuration": metrics.config, "Versions": metrics.versions}
    return {name: table for name, table in tables.items() if table}
