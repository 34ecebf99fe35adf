"""Inversion: what of an image a vector of its patch gives away, by a linear decoder."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Inversion:
    """What a decoder made of vectors.

    Attributes:
        pixels: [N, Q], its reconstructions.
        correlations: [N] with the originals; 0 where either is all of one value.
    """

    pixels: np.ndarray
    correlations: np.ndarray

    @property
    def median(self) -> float:
        """Median correlation: a lower bound on what a better decoder would reach."""
        return float(np.median(self.correlations))


def invert(
    known: np.ndarray,
    known_pixels: np.ndarray,
    vectors: np.ndarray,
    pixels: np.ndarray,
    ridge: float = 1e-3,
) -> Inversion:
    """Decode vectors by a ridge regression on an attacker's own images.

    Args:
        known: [M, D], vectors of patches that the attacker holds.
        known_pixels: [M, Q], what is seen at those patches.
        vectors: [N, D], to be decoded.
        pixels: [N, Q], what they show, to judge by.
        ridge: weight of the penalty, as a multiple of the vectors' mean variance.

    Raises:
        ValueError: counts or dimensions that do not agree, or no row.
    """
    agree = len(known) == len(known_pixels) and len(vectors) == len(pixels)
    if not (agree and len(known) and len(vectors) and known.shape[1] == vectors.shape[1]):
        raise ValueError("vectors and pixels of an inversion must agree in number and dimension")
    known, known_pixels = np.asarray(known, float), np.asarray(known_pixels, float)
    mean, mean_pixels = known.mean(0), known_pixels.mean(0)
    away = known - mean
    square = away.T @ away / len(away)
    penalty = ridge * max(np.trace(square) / len(square), 1e-12)
    cross = away.T @ (known_pixels - mean_pixels) / len(away)
    decoder = np.linalg.solve(square + penalty * np.eye(len(square)), cross)
    made = (np.asarray(vectors, float) - mean) @ decoder + mean_pixels
    return Inversion(made, _correlations(made, np.asarray(pixels, float)))


def _correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one = one - one.mean(1, keepdims=True)
    other = other - other.mean(1, keepdims=True)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = (one * other).sum(1)
    return np.divide(products, lengths, out=np.zeros(len(one)), where=lengths > 1e-12)
