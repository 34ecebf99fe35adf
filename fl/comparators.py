"""What a private bank must be held against: public images alone, and what noise takes away.

Only where a simulation sees everything. None of it is private.
"""

from collections.abc import Callable

import numpy as np

from fl.config import Settings
from fl.private import public_images
from fl.setup import Split
from src.client import SHARED, Stage, by_bank, by_object, find_candidates, score_with
from src.data import InspectionDataset
from src.evaluation.scored import evaluate, mean_figures
from src.models import PatchCore
from src.models.frame import Frame
from src.privacy.codebook import k_means
from src.privacy.records import sampled_patches

PUBLIC, K_MEANS = "public images alone", "k-means without noise"
DRAWN = 100_000  # patches that the cells of k-means are made from

Make = Callable[[str, InspectionDataset], np.ndarray]  # a bank's name and its training images


def compare(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> dict[str, dict]:
    """Figures of each comparator over the test images, means over the objects.

    Public images alone: greedy selection of `model.coreset-percentage` of their patches. K-means
    without noise: as many cells as a codebook has, from patches of all training images.
    """
    if settings.plan is None or not settings.evaluate_baselines:
        return {}
    random = np.random.default_rng(settings.seed)

    def public(name: str, train: InspectionDataset) -> np.ndarray:
        return find_candidates(model, public_images(settings, name)).own().rows

    def centres(name: str, train: InspectionDataset) -> np.ndarray:
        rows = sampled_patches(model, train, DRAWN, random)
        return k_means(rows, min(settings.privacy_cells, len(rows)), random).astype(np.float32)

    found = {K_MEANS: _figures(model, data, settings, centres, Frame(), progress)}
    if settings.has_public:
        found[PUBLIC] = _figures(model, data, settings, public, None, progress)
    return found


def _figures(
    model: PatchCore,
    data: Split,
    settings: Settings,
    make: Make,
    frame: Frame | None,
    progress: Stage,
) -> dict:
    banks = {n: make(n, train) for n, train in by_bank(data.train, settings.model_scope).items()}
    found = []
    for name, images in by_object(data.test).items():
        bank = banks.get(name, banks.get(SHARED))
        if bank is not None:
            scored = score_with(model, bank, images, progress, frame)
            found.append(evaluate(model, images, scored))
    return mean_figures(found)
