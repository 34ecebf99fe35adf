"""Inversion: what of an image a vector of its patch gives away, by a linear decoder."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 16  # pixels of the square that is seen at a patch


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


def patch_pixels(image: np.ndarray, grid: tuple[int, int], side: int = SIDE) -> np.ndarray:
    """What is seen at each patch of an image: [h w, side²], squares about the patches' middles.

    Args:
        image: [H, W], as it went through the network; no side below `side` / 2.
        grid: (h, w) of its patches.
        side: of a square, in pixels; beyond the image's edges it is mirrored.
    """
    windows = sliding_window_view(np.pad(image, side // 2, "reflect"), (side, side))
    rows, columns = (
        ((np.arange(count) + 0.5) * length / count).astype(int)
        for count, length in zip(grid, image.shape, strict=True)
    )
    return windows[rows][:, columns].reshape(len(rows) * len(columns), -1)


def painted(
    shape: tuple[int, int], grid: tuple[int, int], places: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """An image [H, W] of squares at some of its patches, means where they overlap, NaN elsewhere.

    Args:
        shape: (H, W).
        grid: (h, w) of its patches.
        places: [N] of patches, row by row.
        pixels: [N, side²], what is seen there.
    """
    side = round(pixels.shape[1] ** 0.5)
    total, count = (np.zeros([length + side for length in shape]) for _ in range(2))
    for place, square in zip(places, pixels, strict=True):
        row, column = (
            int((at + 0.5) * length / number)
            for at, length, number in zip(divmod(int(place), grid[1]), shape, grid, strict=True)
        )
        total[row : row + side, column : column + side] += square.reshape(side, side)
        count[row : row + side, column : column + side] += 1
    inner = tuple(slice(side // 2, side // 2 + length) for length in shape)
    total, count = total[inner], count[inner]
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
