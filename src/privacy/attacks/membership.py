"""Membership inference: which images a bank, or a set of noisy sums, was made from.

The attacker knows everything public: the bank, the queries, the noisy sums, and the images in
question.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from src.data import InspectionDataset
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import PatchCore, Progress
from src.privacy.clipping import normalize_patches
from src.privacy.queries import SumQuery, clipped_vectors
from src.privacy.records import read_patches, read_records
from src.privacy.runner import NoisySums

Bank = tuple[np.ndarray, FeatureTransform | None]  # rows [K, d], and their coordinates


@dataclass(frozen=True)
class Attack:
    """Scores of training images [M] and of other images [N] from the same source.

    Scores are small for training images, such as the smallest distance of an image's patches to a
    bank.

    Raises:
        ValueError: there are no members or no others, or a score is not finite.
    """

    members: np.ndarray
    others: np.ndarray

    def __post_init__(self) -> None:
        scores = np.concatenate([self.members, self.others])
        if not (len(self.members) and len(self.others) and np.isfinite(scores).all()):
            raise ValueError("membership needs finite scores of members and of others")

    @property
    def auc(self) -> float:
        """Area under the ROC curve; 0.5 is chance."""
        labels = np.repeat([1, 0], [len(self.members), len(self.others)])
        return float(roc_auc_score(labels, -np.concatenate([self.members, self.others])))

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Share of members recognised while at most this share of others is taken for members."""
        allowed = math.floor(false_positive_rate * len(self.others) + 1e-9)
        if allowed >= len(self.others):
            return 1.0
        return float((self.members < np.sort(self.others)[allowed]).mean())

    def metrics(self) -> dict[str, float]:
        """Area, rates and counts, by the keys of audit.json."""
        return {
            "auc": self.auc,
            "tpr_at_1_percent": self.true_positive_rate(0.01),
            "tpr_at_0.1_percent": self.true_positive_rate(0.001),
            "members": len(self.members),
            "others": len(self.others),
        }


def patch_distances(
    model: PatchCore, bank: Bank, images: InspectionDataset, progress: Progress | None = None
) -> list[np.ndarray]:
    """Distances [h, w] of each image's patches to a bank, in its coordinates."""
    model.set_memory_bank(*bank)
    return [prediction.distances for prediction in model.score(images, progress=progress)]


def smallest_distances(
    model: PatchCore, bank: Bank, images: InspectionDataset, progress: Progress | None = None
) -> np.ndarray:
    """The smallest distance of each image's patches to a bank [N]; 0 if it owns a row of it."""
    return np.array([grid.min() for grid in patch_distances(model, bank, images, progress)])


def image_vectors(
    model: PatchCore, images: InspectionDataset, query: SumQuery, progress: Progress | None = None
) -> list[np.ndarray]:
    """The clipped vectors of each image as a record of its own: for each block [N, size]."""
    records = read_records(model, images, query, "image", progress=progress)
    vectors = [clipped_vectors(query, record) for record in records]
    return [np.stack(block) for block in zip(*vectors, strict=True)]


def mean_patches(model: PatchCore, images: InspectionDataset) -> np.ndarray:
    """Mean unit patch of each image [N, D]."""
    return np.stack([normalize_patches(rows).mean(0) for rows in read_patches(model, images)])


class Tracing:
    """Tells which of some candidates are in sums that were released with noise.

    A sum is Σ b_i x_i + N(0, σ²), where b_i says whether candidate i is in, with probability p. The
    best linear estimate of b from all sums is that of ridge regression:
    p (1 − p) (I + p (1 − p) K)⁻¹ y, with K_ij = Σ x_i x_j / σ² and y_i = Σ x_i (S − E S) / σ² over
    all blocks. It subtracts what the other candidates explain.

    Args:
        candidates: how many.
        share: p.
    """

    def __init__(self, candidates: int, share: float) -> None:
        self.share = share
        self.gram = np.zeros((candidates, candidates))
        self.match = np.zeros(candidates)

    def add(
        self, vectors: Sequence[np.ndarray], noisy: NoisySums, known: Sequence[np.ndarray] = ()
    ) -> None:
        """Take in the sums of one step.

        Args:
            vectors: for each block the candidates' clipped vectors [N, size].
            noisy: the released sums.
            known: for each block the sum over records that are in for certain.
        """
        sums = noisy.vectors
        if known:
            sums = tuple(total - part for total, part in zip(sums, known, strict=True))
        for block, total, sigma in zip(vectors, sums, noisy.sigmas, strict=True):
            scaled = block / sigma
            self.gram += scaled @ scaled.T
            self.match += scaled @ (total / sigma - self.share * scaled.sum(0))

    def scores(self) -> np.ndarray:
        """Scores [N], larger for candidates that are likelier in; about 0 if nothing is known."""
        spread = self.share * (1 - self.share)
        return spread * np.linalg.solve(np.eye(len(self.match)) + spread * self.gram, self.match)
