"""What a client does in a round: select a bank from its images, and score with a bank it is given.

Nothing here knows of messages. The centralized baseline is the same two functions, called by a
client that holds everything.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from src.banks import QUANTILES, Calibration, ClientBank
from src.data import InspectionDataset
from src.evaluation.scored import Scored
from src.models.patchcore import PatchCore, Progress
from src.models.products import rows_not_finite

SHARED = "shared"  # the bank's name where all objects share one

Stage = Callable[[str], Progress]


def silent(stage: str) -> Progress:
    """Progress that nobody watches."""
    return lambda done, total: None


def by_bank(dataset: InspectionDataset, scope: str) -> dict[str, InspectionDataset]:
    """A dataset's images by the bank they belong to: one an object, or one for all ("shared")."""
    if scope == "shared":
        return {SHARED: dataset} if len(dataset) else {}
    return by_object(dataset)


def by_object(dataset: InspectionDataset) -> dict[str, InspectionDataset]:
    """A dataset's images by object."""
    names = [sample.object for sample in dataset.samples]
    return {
        name: dataset.select([i for i, other in enumerate(names) if other == name])
        for name in dataset.objects
    }


def extract_features(model: PatchCore, dataset: InspectionDataset, progress: Progress) -> None:
    """Put the features of all images into the model's cache."""
    for _ in model.embed(dataset, progress):
        pass


def select_bank(
    model: PatchCore,
    train: InspectionDataset,
    oversample: float,
    dtype: str,
    progress: Stage = silent,
) -> ClientBank:
    """Greedy coreset of a client's patches: `oversample` times its share of the budget.

    Args:
        model: features, coreset percentage and seed.
        train: the client's normal images.
        oversample: factor on the share, at least 1; never more than all patches are taken.
        dtype: "float16" or "float32", in which the rows are sent. Rounding is part of the radii.
    """
    fraction = model.coreset_percentage
    selection = model.select(train, min(1.0, oversample * fraction), selecting=progress("coreset"))
    share = min(max(1, round(fraction * selection.seen)), len(selection.features))
    sent = selection.features.to(getattr(torch, dtype))
    if rows_not_finite(sent):
        raise ValueError(f"features do not fit {dtype}: set merge.encoding to float32")
    slip = 0.0
    if sent.dtype != selection.features.dtype:
        slip = float((selection.features.float() - sent.float()).norm(dim=1).max())
    return ClientBank(
        features=sent.numpy(),
        radius=float(selection.radii[-1]) + slip,
        share=share,
        share_radius=float(selection.radii[share - 1]) + slip,
        images=len(train),
        patches=selection.seen,
    )


def score_with(
    model: PatchCore,
    bank: np.ndarray,
    dataset: InspectionDataset,
    progress: Stage = silent,
) -> Scored:
    """Install a bank and score a dataset's images with it."""
    model.set_memory_bank(bank)
    return Scored.of(dataset.samples, model.score(dataset, progress=progress("scoring")))


def calibrate_with(
    model: PatchCore, bank: np.ndarray, train: InspectionDataset, progress: Stage = silent
) -> Calibration:
    """Install a bank and see how the client's own normal images stand to it."""
    model.set_memory_bank(bank)
    scores, radius = [], 0.0
    for prediction in model.score(train, without_own=True, progress=progress("calibration")):
        scores.append(prediction.score)
        radius = max(radius, float(prediction.distances.max()))
    judged = np.array(scores)[np.isfinite(scores)]  # infinite where the bank is all the image's own
    quantiles = np.quantile(judged, np.linspace(0, 1, QUANTILES)) if len(judged) else np.empty(0)
    return Calibration(quantiles, len(judged), radius)


def pooled_threshold(calibrations: Mapping[int, Calibration], false_alarm_rate: float) -> float:
    """Score above which about `false_alarm_rate` of all clients' normal images lie.

    The quantile of the mixture of the clients' score distributions, each given by its quantiles
    and weighted by its images.

    Raises:
        ValueError: no client judged an image.
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
