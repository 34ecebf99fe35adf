"""What a private bank must be held against: public images alone, and what noise takes away.

Only where a simulation sees everything. None of it is private.
"""

from collections.abc import Callable

import numpy as np

from fl.config import Settings
from fl.server.private import public_images
from fl.setup.inputs import Split
from src.data import InspectionDataset
from src.evaluation.score_set import compute_metrics, mean_metrics
from src.federated.candidates import SHARED, Stage, by_bank, by_object, find_candidates, score_with
from src.models import PatchCore
from src.models.feature_transform import Frame
from src.privacy.mechanisms.gaussian import gaussian_of
from src.privacy.records import sampled_patches

PUBLIC, K_MEANS = "public images alone", "k-means without noise"
PUBLIC_GAUSSIAN = "Gaussian of public images"
SAMPLED_PATCHES = 100_000  # that k-means and the Gaussian are fitted to
CENTRES = 256  # of k-means

Bank = tuple[np.ndarray, Frame | None]
Make = Callable[[str, InspectionDataset], Bank]  # of a bank's name and its training images


def compare(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> dict[str, dict]:
    """Figures of each comparator over the test images, means over the objects.

    Public images alone: as many of their patches, by greedy selection, as the centralized bank has
    rows; and the Gaussian of their patches, with a ridge as in `dp_gaussian`. K-means without
    noise: the centres of patches of all training images.
    """
    if settings.plan is None or not settings.evaluate_baselines:
        return {}
    random = np.random.default_rng(settings.seed)

    def greedy(name: str, train: InspectionDataset) -> Bank:
        public = public_images(settings, name)
        return find_candidates(model, public, reach=len(train) / len(public)).rows, None

    def gaussian(name: str, train: InspectionDataset) -> Bank:
        rows = sampled_patches(model, public_images(settings, name), SAMPLED_PATCHES, random)
        found = gaussian_of(rows)
        return np.zeros((1, rows.shape[1]), np.float32), Frame(found.mean, found.whitening())

    def centres(name: str, train: InspectionDataset) -> Bank:
        from sklearn.cluster import KMeans  # which takes a second

        rows = sampled_patches(model, train, SAMPLED_PATCHES, random)
        k_means = KMeans(min(CENTRES, len(rows)), n_init=1, random_state=settings.seed)
        return k_means.fit(rows).cluster_centers_.astype(np.float32), Frame()

    found = {K_MEANS: _figures(model, data, settings, centres, progress)}
    if settings.has_public:
        found[PUBLIC] = _figures(model, data, settings, greedy, progress)
        found[PUBLIC_GAUSSIAN] = _figures(model, data, settings, gaussian, progress)
    return found


def _figures(
    model: PatchCore,
    data: Split,
    settings: Settings,
    make: Make,
    progress: Stage,
) -> dict:
    banks = {n: make(n, train) for n, train in by_bank(data.train, settings.model_scope).items()}
    found = []
    for name, images in by_object(data.test).items():
        bank = banks.get(name, banks.get(SHARED))
        if bank is not None:
            rows, frame = bank
            scored = score_with(model, rows, images, progress, frame)
            found.append(compute_metrics(model, images, scored))
    return mean_metrics(found)
