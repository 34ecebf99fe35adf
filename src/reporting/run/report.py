"""report.html of one run: what federation reaches beside its baselines, and what is behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from src.reporting.formats import count, counted
from src.reporting.page import render_page
from src.reporting.plots import Plot
from src.reporting.run import tables
from src.reporting.run.gallery import ImageSource, choose, pictures
from src.reporting.run.plots import auroc_strip, roc_plot, score_histogram
from src.reporting.run.scores import ScoreRow
from src.reporting.run.summary import headline
from src.reporting.run.template import PAGE
from src.storage.atomic import write_whole
from src.storage.run_metrics import RunMetrics

__all__ = ["ClientTable", "ScoreRow", "write_report"]


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
    source: ImageSource,
) -> None:
    """Write the page of one run to `path`.

    Args:
        path: folders are made as needed.
        metrics: what the run has no value for, the page leaves out.
        scores: one row a test image; empty where the server does not see the images.
        clients: training images by client.
        source: is asked for the gallery's images only.
    """
    thresholds = _thresholds(metrics, scores)
    page = render_page(
        PAGE,
        title="Federated PatchCore" + (f" on {metrics.dataset.name}" if metrics.dataset else ""),
        facts=_facts(metrics, clients),
        refused=metrics.refused,
        refused_count=counted(len(metrics.refused), "client"),
        headline=headline(metrics),
        strip=auroc_strip(metrics),
        compared=tables.comparison_table(metrics),
        objects=tables.objects_table(metrics),
        plots=_plots_by_object(scores, thresholds),
        decisions=tables.decisions_table(scores, thresholds),
        clients=_heat_cells(clients),
        by=clients.by,
        participants=tables.clients_table(metrics),
        costs=tables.cost_table(metrics),
        seconds=tables.seconds_table(metrics),
        privacy=metrics.privacy,
        releases=tables.releases_table(metrics),
        gallery=pictures(choose(scores, thresholds), thresholds, source),
        folded=[
            tables.pairs_table("Configuration", metrics.config),
            tables.pairs_table("Versions", metrics.versions),
        ],
    )
    write_whole(path, page)


def _facts(metrics: RunMetrics, clients: ClientTable) -> list[str]:
    dataset, today = metrics.dataset, date.today()
    facts = [f"{today.day} {today:%B %Y}"]
    if dataset:
        facts += [
            counted(len(dataset.objects), "object"),
            counted(dataset.train_images, "training image"),
            counted(dataset.test_images, "test image"),
        ]
    if clients.counts:
        facts.append(counted(len(clients.counts), "client"))
    return [*facts, f"seed {metrics.seed}"]


def _thresholds(metrics: RunMetrics, scores: Sequence[ScoreRow]) -> dict[str, float]:
    """Object -> score from which on an image counts as anomalous."""
    limit = metrics.threshold
    return limit if isinstance(limit, dict) else {row.object: limit for row in scores}


def _plots_by_object(
    scores: Sequence[ScoreRow], thresholds: Mapping[str, float]
) -> dict[str, list[Plot]]:
    """Object -> its ROC curves, where it has both classes, and its histogram."""
    plots = {}
    for name in sorted({row.object for row in scores}):
        rows = [row for row in scores if row.object == name]
        both = roc_plot(rows), score_histogram(rows, thresholds.get(name))
        plots[name] = [plot for plot in both if plot]
    return plots


def _heat_cells(clients: ClientTable) -> dict[str, Any]:
    """The table of training images; each cell has the opacity of its background."""
    names = clients.clients or range(len(clients.counts))
    largest = max((n for row in clients.counts for n in row), default=0) or 1
    totals = np.sum(clients.counts, axis=0) if len(clients.counts) else np.zeros(0, int)
    return {
        "columns": clients.columns,
        "totals": [count(n) for n in (*totals, totals.sum())],
        "rows": [
            (name, [(count(n), 0.5 * n / largest) for n in row], count(sum(row)))
            for name, row in zip(names, clients.counts, strict=True)
        ],
    }
