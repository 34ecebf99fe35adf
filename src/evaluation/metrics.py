"""Image-level metrics: how well one score an image tells anomalous from normal images.

scikit-learn is imported where it is used: it takes a second, which many commands need not wait for.
"""

from collections.abc import Sequence

import numpy as np


def image_metrics(
    scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Image AUROC, average precision and the best F1 over all thresholds.

    scores: [N], larger is more anomalous; labels: [N], 0 normal and 1 anomalous.
    Returns image_auroc, image_ap and image_f1_max, each in [0, 1]; an empty dict where only
    one class is present, since none of them is defined there.
    Raises ValueError for lengths that differ, other labels, and scores that are not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores, labels = _checked(scores, labels)
    if np.unique(labels).size < 2:
        return {}
    return {
        "image_auroc": float(roc_auc_score(labels, scores)),
        "image_ap": float(average_precision_score(labels, scores)),
        "image_f1_max": _best_f1(scores, labels),
    }


def roc_curve_points(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    max_points: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` (>= 2) vertices of the ROC curve: false and true positive rates, [K].

    The vertices are spread evenly along the curve, so the steep start keeps its shape.
    Two empty arrays where only one class is present. Raises ValueError as `image_metrics`.
    """
    from sklearn.metrics import roc_curve

    scores, labels = _checked(scores, labels)
    if max_points < 2:
        raise ValueError(f"max_points is {max_points}; a curve needs at least its two ends")
    if np.unique(labels).size < 2:
        return np.empty(0), np.empty(0)
    false_rate, true_rate, _ = roc_curve(labels, scores)
    if len(false_rate) > max_points:
        travelled = false_rate + true_rate  # strictly increasing along the curve, from 0 to 2
        kept = np.unique(np.searchsorted(travelled, np.linspace(0, travelled[-1], max_points)))
        false_rate, true_rate = false_rate[kept], true_rate[kept]
    return false_rate, true_rate


def _best_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The largest F1 = 2 TP / (TP + FP + P) over every distinct score as the threshold."""
    order = np.argsort(-scores)
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(labels[order])[last_of_tie]
    flagged = np.arange(1, len(scores) + 1)[last_of_tie]
    return float(np.max(2 * hits / (flagged + labels.sum())))


def _checked(
    scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    labels = np.asarray(labels).reshape(-1)
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} scores for {len(labels)} labels; give one label a score")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 (normal) or 1 (anomalous), got {np.unique(labels)}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(scores)} scores are not finite, first at {bad[0]}")
    return scores, labels.astype(np.int64)
