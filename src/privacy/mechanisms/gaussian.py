"""dp_gaussian: one private Gaussian of all patches, scored by Mahalanobis distance.

The sums over records are the mean patch, roughly, where no public images give it; then, measured
from that centre and with less noise, the mean again and the second moment. Where noise hides the
covariance, public images fill it in, if there are any.
"""

from dataclasses import dataclass

import numpy as np

from src.privacy.mechanisms.denoise import denoise_covariance, shrink
from src.privacy.queries import MeanQuery, MomentQuery, to_matrix
from src.privacy.runner import Mechanism, NoisySums, PrivateBank, Step

PUBLIC_WEIGHT = 0.5  # of the public covariance, where noise hides the private one
RIDGE = 0.3  # isotropic part of a public covariance, since a few images do not determine all of it


@dataclass(frozen=True)
class GaussianSettings:
    """Clipping limits and budget split of dp_gaussian, for patches of unit length.

    They are public, so they must not be tuned on the images that they protect.
    """

    centre_limit: float = 0.9  # largest norm of a record's mean patch, measured from zero
    mean_limit: float = 0.35  # the same, measured from the centre
    square_limit: float = 0.155  # largest Frobenius norm of a record's mean outer product
    centre_part: float = 0.1  # part of the budget for the centre,
    mean_part: float = 0.1  # and for the mean; the covariance has the rest


DEFAULTS = GaussianSettings()


def dp_gaussian(
    dim: int, settings: GaussianSettings = DEFAULTS, public: np.ndarray | None = None
) -> Mechanism:
    """The mechanism. Its bank is one row, the mean, in coordinates that whiten the Gaussian.

    Args:
        dim: D.
        settings: limits and budget split.
        public: patches [N, D] of public images, of unit length.
    """
    remaining = 1.0
    if public is None:
        query = MeanQuery(np.zeros(dim), settings.centre_limit)
        centre = _mean((yield Step("centre", "mean patch", query, (settings.centre_part,))))
        remaining -= settings.centre_part
    else:
        centre = public.mean(0)
    moments = MomentQuery(centre, settings.mean_limit, settings.square_limit)
    fractions = (settings.mean_part, remaining - settings.mean_part)
    reply = yield Step("moments", "mean patch and second moment", moments, fractions)
    mean = _mean(reply)
    covariance = to_matrix(reply.vectors[1]) / reply.records - np.outer(mean, mean)
    values, vectors, kept = denoise_covariance(covariance, reply.sigmas[1] / reply.records)
    if public is not None:
        values, vectors = _fill_hidden(values, vectors, kept, np.cov(public.T, bias=True))
    return PrivateBank(np.zeros((1, dim)), centre + mean, whitening(values, vectors), np.sqrt(dim))


def fit_public_gaussian(public: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and whitening basis [D, D] of public patches [N, D], with a ridge."""
    covariance = np.cov(public.T, bias=True)
    ridge = RIDGE * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - RIDGE) * covariance + ridge * np.eye(len(covariance)))
    return public.mean(0), whitening(values[::-1], vectors[:, ::-1])


def whitening(values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Basis [D, D] in whose coordinates a covariance of these eigenvalues is the identity."""
    return vectors * values**-0.5


def _mean(reply: NoisySums) -> np.ndarray:
    """The mean [D] in a reply's first block, shrunk by its noise."""
    return shrink(reply.vectors[0] / reply.records, reply.sigmas[0] / reply.records)


def _fill_hidden(
    values: np.ndarray, vectors: np.ndarray, kept: int, public: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mix the public covariance [D, D] into a private one, in the eigenvectors beyond `kept`.

    Noise hides the private one there; the public one is scaled to its trace.
    """
    hidden = vectors[:, kept:]
    if not hidden.shape[1]:
        return values, vectors
    private = np.diag(values[kept:])
    tail = values[kept:].mean()
    prior = hidden.T @ public @ hidden
    prior *= tail * len(private) / max(np.trace(prior), np.finfo(float).tiny)
    prior = (1 - RIDGE) * prior + RIDGE * tail * np.eye(len(private))
    mixed, rotation = np.linalg.eigh((1 - PUBLIC_WEIGHT) * private + PUBLIC_WEIGHT * prior)
    mixed = np.concatenate([values[:kept], mixed[::-1]])
    order = np.argsort(-mixed, kind="stable")
    return mixed[order], np.hstack([vectors[:, :kept], hidden @ rotation[:, ::-1]])[:, order]
