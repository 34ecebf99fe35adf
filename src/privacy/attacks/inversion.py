"""Inversion: what a patch vector reveals of the image, by a linear decoder."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 16  # pixels, of the square that is decoded at a patch


@dataclass(frozen=True)
class Decoder:
    """A ridge regression from vectors [N, D] to pixels [N, Q]."""

    weights: np.ndarray  # [D, Q]
    mean: np.ndarray  # [D]
    mean_pixels: np.ndarray  # [Q]

    @classmethod
    def fit(cls, vectors: np.ndarray, pixels: np.ndarray, ridge: float = 1e-3) -> Self:
        """Learn from patches that the attacker holds.

        Args:
            vectors: [M, D].
            pixels: [M, Q], what is seen at those patches.
            ridge: weight of the penalty, as a multiple of the vectors' mean variance.
        """
        vectors, pixels = np.asarray(vectors, float), np.asarray(pixels, float)
        mean, mean_pixels = vectors.mean(0), pixels.mean(0)
        centred = vectors - mean
        covariance = centred.T @ centred / len(centred)
        penalty = ridge * max(np.trace(covariance) / len(covariance), 1e-12)
        cross = centred.T @ (pixels - mean_pixels) / len(centred)
        weights = np.linalg.solve(covariance + penalty * np.eye(len(covariance)), cross)
        return cls(weights, mean, mean_pixels)

    def decode(self, vectors: np.ndarray) -> np.ndarray:
        """Pixels [N, Q] of vectors [N, D]."""
        return (np.asarray(vectors, float) - self.mean) @ self.weights + self.mean_pixels


def correlations(decoded: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row [N]; 0 where either has all pixels alike.

    Their median is a lower bound on what a better decoder reaches.
    """
    decoded = decoded - decoded.mean(1, keepdims=True)
    originals = originals - originals.mean(1, keepdims=True)
    norms = np.linalg.norm(decoded, axis=1) * np.linalg.norm(originals, axis=1)
    products = (decoded * originals).sum(1)
    return np.divide(products, norms, out=np.zeros(len(decoded)), where=norms > 1e-12)


def patch_pixels(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The pixels at each patch of an image: [h w, SIDE²], squares around the patches' middles.

    Args:
        image: [H, W], as the network receives it; no side below SIDE / 2.
        grid: (h, w) of its patches. Beyond the image's edges, squares are mirrored.
    """
    windows = sliding_window_view(np.pad(image, SIDE // 2, "reflect"), (SIDE, SIDE))
    rows, columns = (
        ((np.arange(count) + 0.5) * length / count).astype(int)
        for count, length in zip(grid, image.shape, strict=True)
    )
    return windows[rows][:, columns].reshape(len(rows) * len(columns), -1)


def paint_patches(
    shape: tuple[int, ...], grid: tuple[int, int], places: np.ndarray, pixels: np.ndarray
) -> np.ndarray:
    """An image [H, W] of squares at some of its patches: means where they overlap, NaN elsewhere.

    Args:
        shape: (H, W).
        grid: (h, w) of its patches.
        places: [N], indices of patches in row-major order.
        pixels: [N, SIDE²], what is seen there.
    """
    total, count = (np.zeros([length + SIDE for length in shape]) for _ in range(2))
    for place, square in zip(places, pixels, strict=True):
        row, column = (
            int((index + 0.5) * length / number)
            for index, length, number in zip(divmod(place, grid[1]), shape, grid, strict=True)
        )
        total[row : row + SIDE, column : column + SIDE] += square.reshape(SIDE, SIDE)
        count[row : row + SIDE, column : column + SIDE] += 1
    inner = tuple(slice(SIDE // 2, SIDE // 2 + length) for length in shape)
    total, count = total[inner], count[inner]
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
