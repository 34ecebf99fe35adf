"""dp_gaussian: one private Gaussian of all patches, and Mahalanobis distance to it.

Sums over images: the mean patch, roughly; then, from close by, where less noise does, the mean
again and the second moment. What noise would hide of the covariance is not used.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from src.privacy.contributions import Means, Moments, to_matrix
from src.privacy.steps import Answer, Mechanism, PrivateBank, Step

LEAST = 1e-3  # of the noise edge, below which no eigenvalue is put


@dataclass(frozen=True)
class GaussianSettings:
    """Bounds and budget of dp_gaussian; public, so not to be tuned on what they protect.

    Attributes:
        far_limit: longest mean patch of an image that counts in full; unit patches have 1 at most.
        near_limit: the same from the first centre.
        square_limit: largest mean outer product of an image, in Frobenius norm.
        far, near: parts of the budget that the centre costs; the covariance has the rest.
    """

    far_limit: float = 0.8
    near_limit: float = 0.3
    square_limit: float = 0.14
    far: float = 0.04
    near: float = 0.06


GAUSSIAN = GaussianSettings()


@dataclass(frozen=True)
class Gaussian:
    """A mean [D], and eigenvalues [D], falling, with eigenvectors [D, D] in columns."""

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    def scaling(self, power: float = 1.0) -> np.ndarray:
        """Basis [D, D] in whose coordinates the variances are λ^(1 − power): 1 whitens."""
        return self.vectors * self.values ** (-power / 2)

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Patches [count, D] as it would have them."""
        normal = random.standard_normal((count, len(self.mean)))
        return self.mean + (normal * np.sqrt(self.values)) @ self.vectors.T


def dp_gaussian(dim: int, settings: GaussianSettings = GAUSSIAN) -> Mechanism:
    """The mechanism: its bank is one row, the mean, in coordinates that whiten the Gaussian."""
    found = yield from fit_gaussian(dim, settings)
    return PrivateBank(np.zeros((1, dim)), found.mean, found.scaling(), np.sqrt(dim))


def fit_gaussian(
    dim: int, settings: GaussianSettings, part: float = 1.0
) -> Generator[Step, Answer, Gaussian]:
    """The steps by which the Gaussian is found, for a part of a mechanism's budget.

    Args:
        dim: D.
        settings: bounds and split.
        part: of the budget.
    """
    far = Means(np.zeros(dim), settings.far_limit)
    answer = yield Step("centre", "mean patch", far, (part * settings.far,))
    centre = answer.sums[0] / answer.records
    near = Moments(centre, settings.near_limit, settings.square_limit)
    left = 1 - settings.far - settings.near
    fractions = (part * settings.near, part * left)
    answer = yield Step("moments", "mean patch and second moment", near, fractions)
    away, squares = answer.sums[0] / answer.records, to_matrix(answer.sums[1]) / answer.records
    sigma = answer.sigmas[1] / answer.records
    return Gaussian(centre + away, *eigen_above_noise(squares - np.outer(away, away), sigma))


def eigen_above_noise(noisy: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], falling, and vectors of a covariance that carries noise.

    Noise of deviation σ on the entries of `to_vector` has eigenvalues up to √2 σ √D in size (the
    semicircle's edge). Larger ones are kept; the others get the mean of what the trace, in which
    noise hardly shows, leaves for them.
    """
    values, vectors = np.linalg.eigh(noisy)
    values, vectors = values[::-1], vectors[:, ::-1]
    dim, edge = len(values), np.sqrt(2) * sigma * np.sqrt(len(values))
    kept = values > edge
    left = (values.sum() - values[kept].sum()) / max(1, dim - int(kept.sum()))
    tail = max(left, LEAST * edge, np.finfo(float).tiny)
    return np.maximum(np.where(kept, values, tail), tail), vectors
