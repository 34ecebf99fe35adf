"""Image-level metrics: how well one score per image separates anomalous from normal images.

scikit-learn is imported inside the function: it takes a second, and most commands do not need it.
"""

from collections.abc import Sequence

import numpy as np


def image_metrics(
    scores: Sequence[float] | np.ndarray, labels: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """Image AUROC, average precision and the best F1 over all thresholds.

    Args:
        scores: [N], larger is more anomalous.
        labels: [N], 0 normal and 1 anomalous.

    Returns:
        image_auroc, image_ap and image_f1_max, each in [0, 1]; empty if there is only one class,
        where they are undefined.

    Raises:
        ValueError: lengths differ, a label is neither 0 nor 1, or a score is not finite.
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
        raise ValueError(f"{len(scores)} scores for {len(labels)} labels; give one label per score")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 (normal) or 1 (anomalous), got {np.unique(labels)}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"{bad.size} of {len(scores)} scores are not finite, first at {bad[0]}")
    return scores, labels.astype(np.int64)
