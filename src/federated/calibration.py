"""Calibration: what normal images score, and the threshold that follows."""

from collections.abc import Mapping

import numpy as np

from src.data import InspectionDataset
from src.federated.candidates import Stage, silent
from src.federated.types import QUANTILES, Calibration, SentRows
from src.models.patchcore import PatchCore


def calibrate(
    model: PatchCore,
    train: InspectionDataset,
    sent: SentRows | None = None,
    progress: Stage = silent,
) -> Calibration:
    """Score a client's own normal images with the installed bank, without the rows they gave it.

    Args:
        model: with the bank installed.
        train: the client's normal images.
        sent: rows the client sent, by which an image's own rows are found in the bank although
            encoding changed them; None takes rows that equal one of the image's patches.
        progress: where to report progress.
    """
    scores, radius = [], 0.0
    pairs = (sent.sources, sent.decoded) if sent else None
    for prediction in model.score(
        train, exclude_own=True, coded=pairs, progress=progress("calibration")
    ):
        scores.append(prediction.score)
        radius = max(radius, float(prediction.distances.max()))
    # a score is infinite if the whole bank is the image's own
    finite = np.array(scores)[np.isfinite(scores)]
    quantiles = np.quantile(finite, np.linspace(0, 1, QUANTILES)) if len(finite) else np.empty(0)
    return Calibration(quantiles, len(finite), radius)


def pooled_threshold(calibrations: Mapping[int, Calibration], false_alarm_rate: float) -> float:
    """Score above which about `false_alarm_rate` of all clients' normal images lie.

    The quantile of the mixture of the clients' score distributions. Each is given by its quantiles
    and weighs as much as it has images.

    Raises:
        ValueError: no client scored an image.
    """
    calibrations = {client: c for client, c in calibrations.items() if c.images}
    if not calibrations:
        raise ValueError("a threshold needs the scores of normal images")
    scores = np.concatenate([c.quantiles for c in calibrations.values()])
    weights = np.concatenate(
        [np.full(QUANTILES, c.images / QUANTILES) for c in calibrations.values()]
    )
    order = np.argsort(scores)
    share = np.cumsum(weights[order]) / weights.sum()
    at = min(int(np.searchsorted(share, 1 - false_alarm_rate)), len(scores) - 1)
    return float(scores[order[at]])
