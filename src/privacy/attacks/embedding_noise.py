"""legacy_embedding_noise: noise on each vector of a bank, kept for comparison; it hides no image.

An image owns many of a bank's vectors, and greedy selection lets every image decide which vectors
of the others are in it. So a privacy parameter by the vector says nothing about images, however it
is accounted: the release is written down as one without bound.
"""

import math

import numpy as np

from src.privacy.accounting import epsilon_for
from src.privacy.ledger import Release
from src.privacy.runner import Noise


def legacy_embedding_noise(
    rows: np.ndarray, sigma: float, noise: Noise, bank: str = "shared", number: int = 1
) -> tuple[np.ndarray, Release]:
    """Rows [N, D] with Gaussian noise on every value, and the release: «none at image level».

    Args:
        rows: a bank.
        sigma: standard deviation of the noise, 0 or more.
        noise: where it comes from.
        bank, number: the bank's name, and the round's number.
    """
    rows = np.asarray(rows)
    noisy = rows + sigma * noise(rows.size).reshape(rows.shape)
    what = "bank rows with noise on each; guarantee: none at image level"
    return noisy.astype(rows.dtype), Release("bank rows", number, what, math.inf, sigma, bank)


def image_epsilon(limit: float, vectors: int, sigma: float, delta: float) -> float:
    """ε of an image that owns so many vectors of norm at most `limit`, left out or put in.

    It holds only for vectors chosen without looking at any image, so not for a coreset; and is then
    what a claim for single vectors comes to.
    """
    return epsilon_for(limit * math.sqrt(vectors) / sigma, delta)
