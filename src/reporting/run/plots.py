"""The plots of a run's page: AUROC of each bank, ROC curves, score histograms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from src.reporting.formats import counted, number
from src.reporting.plots import (
    AUROC,
    BLUE,
    BROWN,
    GREY,
    PERCENT,
    STYLE,
    Plot,
    finished_plot,
    mark_style,
    new_figure,
    two_histograms,
)
from src.reporting.run.scores import ScoreRow
from src.storage.run_metrics import RunMetrics

MOST_LOCAL_CURVES = 20  # in one plot; more are a grey smear


@rc_context(STYLE)
def auroc_strip(metrics: RunMetrics) -> Plot | None:
    """Image AUROC on one line: each client alone, federated, centralized."""
    alone = [c.image_auroc for c in metrics.local.clients if c.image_auroc is not None]
    if not alone or not metrics.federated or metrics.federated.image_auroc is None:
        return None
    figure, axes = new_figure(5.0, 1.25)
    marks = axes.plot(alone, [0] * len(alone), "|", color=GREY, label="a client alone")
    marks[0].set(markersize=14, mew=1.6)
    for name, bank, marker, filled in (
        ("centralized", metrics.centralized, "D", False),
        ("federated", metrics.federated, "o", True),
    ):
        if bank and bank.image_auroc is not None:
            style = mark_style(BLUE if filled else BROWN, filled)
            axes.plot([bank.image_auroc], [0], marker, label=name, **style)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    axes.set_xlabel(AUROC)
    alt = "Image AUROC of every client alone, federated and centralized on one line"
    return finished_plot(figure, "strip", "", f"{alt}; the table below holds the values")


@rc_context(STYLE)
def roc_plot(rows: Sequence[ScoreRow]) -> Plot | None:
    """ROC curves of one object's banks; None unless federated scores have both classes."""
    labels = [row.label for row in rows]
    if len(set(labels)) < 2:
        return None
    figure, axes = new_figure(3.6, 3.9)
    axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
    clients = max(len(row.local or ()) for row in rows)
    step = max(1, -(-clients // MOST_LOCAL_CURVES))
    some = "a client alone" if step == 1 else f"every {step}th client alone"
    for client in range(0, clients, step):
        scores = [row.local[client] if row.local else None for row in rows]
        name = some if client == 0 else "_"
        _roc(axes, scores, labels, name, color="#9097a0", linewidth=0.8)
    _roc(axes, [row.federated for row in rows], labels, "federated", color=BLUE, linewidth=2.6)
    dashed = {"color": "black", "linestyle": "--", "linewidth": 1.2}
    _roc(axes, [row.centralized for row in rows], labels, "centralized", **dashed)
    axes.set_aspect("equal")
    axes.set(xlabel="normal images flagged", ylabel="anomalous images found")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
    alt = f"ROC curves of {rows[0].object}: anomalous images found against normal flagged"
    return finished_plot(figure, "roc", "", alt)


def _roc(
    axes: Axes, scores: Sequence[float | None], labels: Sequence[int], name: str, **style: Any
) -> None:
    """Draw the curve of the images that have a score, if these are of both classes."""
    from sklearn.metrics import roc_curve  # takes a second to import

    known = [(s, y) for s, y in zip(scores, labels, strict=True) if s is not None]
    if len({y for _, y in known}) == 2:
        flagged, found, _ = roc_curve([y for _, y in known], [s for s, _ in known])
        axes.plot(flagged, found, label=name, **style)


@rc_context(STYLE)
def score_histogram(rows: Sequence[ScoreRow], threshold: float | None) -> Plot:
    """Federated scores of one object's normal and anomalous images, and the threshold."""
    normal, anomalous = (np.array([r.federated for r in rows if r.label == y]) for y in (0, 1))
    figure, axes = new_figure(5.0, 3.9)
    names = (
        counted(len(normal), "normal image", " ↑"),
        counted(len(anomalous), "anomalous image", " ↓"),
    )
    two_histograms(axes, (names[0], normal), (names[1], anomalous), threshold)
    if threshold is not None:
        name = f"threshold {number(threshold)}"
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.2, label=name)
    axes.set(xlabel="federated image score", ylabel="share of the class")
    alt = f"Histogram of the federated scores of {rows[0].object}: {names[0]}, {names[1]}"
    return finished_plot(figure, "scores", "", alt)
