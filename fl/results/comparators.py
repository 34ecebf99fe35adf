"""Comparators of a private bank: public images alone, and banks without noise.

Only a simulation, which sees all images, has them. None of them is private.
"""

import numpy as np

from fl.config import Settings
from fl.setup.data import Split
from fl.setup.public import public_images
from src.evaluation.score_set import mean_metrics
from src.federated.bank_set import BankSet, split_by_bank
from src.federated.candidates import Stage, find_candidates
from src.federated.scoring import metrics_by_object, score_test_set
from src.federated.types import Bank
from src.models import PatchCore
from src.models.feature_transform import FeatureTransform
from src.privacy.mechanisms.gaussian import fit_public_gaussian
from src.privacy.records import sample_patches
from src.storage.run_metrics import MetricSet

PUBLIC, K_MEANS = "public images alone", "k-means without noise"
PUBLIC_GAUSSIAN = "Gaussian of public images"
SAMPLED_PATCHES = 100_000  # that k-means and the Gaussian are fitted to
CENTRES = 256  # of k-means


def compare(
    model: PatchCore, data: Split, settings: Settings, progress: Stage
) -> dict[str, MetricSet]:
    """Metrics of each comparator over the test images, means over the objects.

    - Public images alone: as many of their patches, by greedy selection, as the centralized bank
      has rows.
    - The Gaussian of the public images' patches, with a ridge as in `dp_gaussian`.
    - k-means without noise: the centres of patches of all training images.
    """
    if settings.mechanism is None or not settings.evaluate_baselines:
        return {}
    random = np.random.default_rng(settings.seed)
    train = split_by_bank(data.train, settings.model_scope)

    def greedy(name: str) -> Bank:
        public = public_images(settings, name)
        return Bank(find_candidates(model, public, reach=len(train[name]) / len(public)).rows)

    def gaussian(name: str) -> Bank:
        rows = sample_patches(model, public_images(settings, name), SAMPLED_PATCHES, random)
        mean = np.zeros((1, rows.shape[1]), np.float32)
        return Bank(mean, FeatureTransform(*fit_public_gaussian(rows)))

    def centres(name: str) -> Bank:
        from sklearn.cluster import KMeans  # its import takes a second

        rows = sample_patches(model, train[name], SAMPLED_PATCHES, random)
        k_means = KMeans(min(CENTRES, len(rows)), n_init=1, random_state=settings.seed)
        return Bank(k_means.fit(rows).cluster_centers_.astype(np.float32), FeatureTransform())

    comparators = {K_MEANS: centres}
    if settings.has_public:
        comparators |= {PUBLIC: greedy, PUBLIC_GAUSSIAN: gaussian}
    metrics = {}
    for title, make_bank in comparators.items():
        banks = BankSet({name: make_bank(name) for name in train})
        scores = score_test_set(model, banks, data.test, progress)
        by_object = metrics_by_object(model, data.test, scores)
        metrics[title] = MetricSet.model_validate(mean_metrics(list(by_object.values())))
    return metrics
