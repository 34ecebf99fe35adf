"""Gaussian noise on each vector of a bank, as is often done: an experiment of the audit.

It is no mechanism of the product, since a claim of (ε, δ) for one vector protects no image: an
image owns many of a bank's vectors, and greedy selection lets every image decide which vectors of
other images enter the bank.
"""

import numpy as np

from src.privacy.accounting import mu_for
from src.privacy.clipping import normalize_patches
from src.privacy.noise import Noise

NO_GUARANTEE = (
    "Guarantee: none for an image, since the noise is set for one vector and an image owns many."
)


def sigma_for_vector(epsilon: float, delta: float) -> float:
    """Standard deviation of the noise that a claim of (ε, δ) for one unit vector takes."""
    return 1 / mu_for(epsilon, delta)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows [K, D] of unit length, float32, as a bank holds them."""
    return normalize_patches(rows).astype(np.float32)


def add_embedding_noise(rows: np.ndarray, sigma: float, noise: Noise) -> np.ndarray:
    """Rows [K, D] with independent noise of standard deviation `sigma` on every value."""
    noisy = rows + sigma * noise(rows.size).reshape(rows.shape)
    return noisy.astype(rows.dtype)


def noisy_row_scores(
    without: np.ndarray, given: np.ndarray, sigma: float, noise: Noise, runs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [runs] of noisy rows without a canary image and with it, by likelihood ratio.

    Args:
        without, given: rows [K, D] of unit length that greedy selection picks without the canary
            and with it, in order.
        sigma: standard deviation of the noise.
        noise: source of the noise.
        runs: how many of each kind.
    """
    change = (given - without).astype(np.float64)

    def scores(rows: np.ndarray) -> np.ndarray:
        noisy = (add_embedding_noise(rows, sigma, noise) for _ in range(runs))
        return np.array([((each - without) * change).sum() / sigma**2 for each in noisy])

    return scores(without), scores(given)


def outlier_patches(norm: float, dim: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Patches [count, dim] of an unusual image: random directions, each of length `norm`."""
    return norm * normalize_patches(random.standard_normal((count, dim)))
