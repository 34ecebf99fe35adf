"""dp_gaussian: one private Gaussian of all patches, and Mahalanobis distance to it.

Sums over images: the mean patch, roughly, where public images do not tell it; then, from close by,
where less noise does, the mean again and the second moment. What noise hides of the covariance is
taken from public images, as far as there are any.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from src.privacy.mechanisms.denoise import denoised, shrunk
from src.privacy.queries import Means, Moments, to_matrix
from src.privacy.runner import Answer, Mechanism, PrivateBank, Step

PUBLIC = 0.5  # weight of the public covariance, where noise hides the private one
RIDGE = 0.3  # part of that which is the same in all directions, as few images do not tell all


@dataclass(frozen=True)
class GaussianSettings:
    """Bounds and budget of dp_gaussian; public, so not to be tuned on what they protect.

    Attributes:
        far_limit: longest mean patch of an image that counts in full; unit patches have 1 at most.
        near_limit: the same from the first centre.
        square_limit: largest mean outer product of an image, in Frobenius norm.
        far, near: parts of the budget that the centre costs; the covariance has the rest.
    """

    far_limit: float = 0.9
    near_limit: float = 0.35
    square_limit: float = 0.155
    far: float = 0.1
    near: float = 0.1


GAUSSIAN = GaussianSettings()


@dataclass(frozen=True)
class Gaussian:
    """A mean [D], and eigenvalues [D], falling, with eigenvectors [D, D] in columns."""

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray

    def whitening(self) -> np.ndarray:
        """Basis [D, D] in whose coordinates every variance is 1."""
        return self.vectors * self.values**-0.5


def dp_gaussian(
    dim: int, settings: GaussianSettings = GAUSSIAN, public: np.ndarray | None = None
) -> Mechanism:
    """The mechanism: its bank is one row, the mean, in coordinates that whiten the Gaussian.

    Args:
        dim: D.
        settings: bounds and split.
        public: [N, D] patches of public images, of unit length.
    """
    gaussian = yield from fit_gaussian(dim, settings, public)
    return PrivateBank(np.zeros((1, dim)), gaussian.mean, gaussian.whitening(), np.sqrt(dim))


def fit_gaussian(
    dim: int,
    settings: GaussianSettings,
    public: np.ndarray | None = None,
) -> Generator[Step, Answer, Gaussian]:
    """The steps that fit the Gaussian.

    Args:
        dim: D.
        settings: bounds and split.
        public: [N, D] patches of public images, of unit length.
    """
    left = 1.0
    if public is None:
        far = Means(np.zeros(dim), settings.far_limit)
        answer = yield Step("centre", "mean patch", far, (settings.far,))
        centre = _mean(answer)
        left -= settings.far
    else:
        centre = public.mean(0)
    near = Moments(centre, settings.near_limit, settings.square_limit)
    fractions = (settings.near, left - settings.near)
    answer = yield Step("moments", "mean patch and second moment", near, fractions)
    away = _mean(answer)
    squares = to_matrix(answer.sums[1]) / answer.records - np.outer(away, away)
    values, vectors, kept = denoised(squares, answer.sigmas[1] / answer.records)
    if public is not None:
        values, vectors = _filled(values, vectors, kept, np.cov(public.T, bias=True))
    return Gaussian(centre + away, values, vectors)


def gaussian_of(public: np.ndarray) -> Gaussian:
    """The Gaussian of public patches [N, D]; with a ridge, as few images do not tell all of it."""
    covariance = np.cov(public.T, bias=True)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - RIDGE) * covariance + ridge * np.eye(len(covariance)))
    return Gaussian(public.mean(0), values[::-1], vectors[:, ::-1])


def _mean(answer: Answer) -> np.ndarray:
    """The mean [D] that the first block of an answer adds up to, nearer to zero by its noise."""
    mean, sigma = answer.sums[0] / answer.records, answer.sigmas[0] / answer.records
    return shrunk(mean[None], np.array([sigma]))[0]


def _filled(
    values: np.ndarray, vectors: np.ndarray, kept: int, public: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a covariance, with public structure where noise hides it.

    In the space of the eigenvectors beyond the first `kept` the public covariance [D, D], brought
    to the private one's trace there, has its weight beside the private one.
    """
    hidden = vectors[:, kept:]
    if not hidden.shape[1]:
        return values, vectors
    own = np.diag(values[kept:])
    tail = values[kept:].mean()
    there = hidden.T @ public @ hidden
    there *= tail * len(own) / max(np.trace(there), np.finfo(float).tiny)
    there = (1 - RIDGE) * there + RIDGE * tail * np.eye(len(own))
    mixed, turned = np.linalg.eigh((1 - PUBLIC) * own + PUBLIC * there)
    mixed = np.concatenate([values[:kept], mixed[::-1]])
    order = np.argsort(-mixed, kind="stable")
    return mixed[order], np.hstack([vectors[:, :kept], hidden @ turned[:, ::-1]])[:, order]
