"""Gaussian noise for released sums, and where its randomness comes from."""

import os
from collections.abc import Callable
from math import floor, log2

import numpy as np
from scipy.special import ndtri

Noise = Callable[[int], np.ndarray]  # n -> n independent standard normal numbers, float64

GRID_BITS = 20


def add_noise(vector: np.ndarray, sigma: float, noise: Noise) -> np.ndarray:
    """A vector with noise of standard deviation σ, rounded to a grid of about σ / 2^20.

    The rounding drops the last bits of floating-point noise, which can tell two sums apart
    (Mironov, On significance of the least significant bits for differential privacy, 2012).
    """
    step = 2.0 ** (floor(log2(sigma)) - GRID_BITS)
    return np.rint((vector + sigma * noise(vector.size)) / step) * step


def system_noise(count: int) -> np.ndarray:
    """Standard normal numbers from the system's randomness; nobody can draw them again.

    The inverse of the distribution function at the middles of 2^52 equal parts of (0, 1). The
    tails beyond ± 8.2 are cut off; they have a probability of 2e-16 per number.
    """
    integers = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(12)
    return ndtri((integers + 0.5) * 2.0**-52)


def seeded_noise(seed: int) -> Noise:
    """Noise that anybody can draw again: for tests, and simulations that say so."""
    return np.random.default_rng(seed).standard_normal
