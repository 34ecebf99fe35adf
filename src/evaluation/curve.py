"""A weighted ROC curve of few defective pixels against any number of normal ones.

As the threshold falls, x is the share of normal pixels above it and y the sum of the weights of
the defective pixels above it. Only the defective pixels are kept in memory; the normal ones are
counted between their scores. Steps of less than 1/STEPS are merged, so the curve is off by at
most that anywhere, for any distribution of scores and any limit. Ties stay tied.
"""

from collections.abc import Iterable, Iterator

import numpy as np

STEPS = 1 << 17
CHUNK = 1 << 22  # normal pixels sorted at a time


class WeightedCurve:
    """Arrays are [S], one entry per step, in ascending order of score."""

    def __init__(self, scores: np.ndarray, weights: np.ndarray) -> None:
        """scores, weights: [P] of the defective pixels; the weights sum to 1 at most."""
        self.low, self.high, self.weight = _merge_steps(scores, weights)
        self.normals = 0
        self.above = np.zeros(self.low.size, dtype=np.int64)  # normal pixels > high
        self.reached = np.zeros(self.low.size, dtype=np.int64)  # normal pixels >= low

    def add_normals(self, scores: np.ndarray) -> None:
        """Count sorted normal pixels, [N], into the curve."""
        self.normals += scores.size
        self.above += scores.size - np.searchsorted(scores, self.high, "right")
        self.reached += scores.size - np.searchsorted(scores, self.low, "left")

    def area(self, limit: float = 1.0) -> float:
        """The area up to a false-positive rate of `limit`, divided by the limit; in [0, 1]."""
        x, y = self._vertices()
        inside = np.searchsorted(x, limit, "right")
        end = slice(inside - 1, inside + 1)  # the vertices around the limit
        x, y = np.append(x[:inside], limit), np.append(y[:inside], np.interp(limit, x[end], y[end]))
        return float(np.clip(np.trapezoid(y, x) / limit, 0.0, 1.0))

    def _vertices(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners, x and y, [2S + 2]: a step is a straight line, and between two it is level."""
        after = np.cumsum(self.weight[::-1])
        before = np.append(0.0, after[:-1])
        x = np.stack([self.above[::-1], self.reached[::-1]], axis=1).reshape(-1) / self.normals
        y = np.stack([before, after], axis=1).reshape(-1)
        return np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, after[-1:]])


def sorted_chunks(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Join arrays of scores into sorted ones of about CHUNK values."""
    chunk: list[np.ndarray] = []
    for part in parts:
        chunk.append(part)
        if sum(array.size for array in chunk) >= CHUNK:
            yield np.sort(np.concatenate(chunk))
            chunk = []
    if chunk:
        yield np.sort(np.concatenate(chunk))


def _merge_steps(
    scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest score, highest score and weight of each step.

    The height is cut into cells of 1/STEPS, and neighbouring scores that begin and end in the
    same cell are one step. A score that crosses into another cell shares its beginning with no
    later score and its end with no earlier one, so it stays a step of its own.
    """
    distinct, inverse = np.unique(scores, return_inverse=True)
    weight = np.bincount(inverse, weights)
    cell = np.floor(np.append(0.0, np.cumsum(weight)) * STEPS)  # [distinct + 1]
    new = np.append(True, (np.diff(cell[:-1]) > 0) | (np.diff(cell[1:]) > 0))
    first = np.flatnonzero(new)
    last = np.append(first[1:], distinct.size) - 1
    return distinct[first], distinct[last], np.add.reduceat(weight, first)
