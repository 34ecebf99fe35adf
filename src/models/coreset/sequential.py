"""Farthest-first selection pick by pick: the fastest way while the rows fit a processor's cache.

Single precision leads; where it cannot tell which of several rows is the farthest, they are
compared in double precision. So the picks are those of a loop in double precision.
"""

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

OUT = -np.inf  # the gap of rows that are out of the race: picked, or a copy of another
TILE = 1024


def one_by_one(
    rows: npt.NDArray[np.floating], start: int, repeated: Indices, target: int
) -> tuple[Indices, Doubles]:
    """Farthest-first picks; of equally far rows the first.

    Args:
        rows: [N, D], finite.
        start: the first pick.
        repeated: rows that are copies of others, which are never picked.
        target: picks wanted, at most N less those.

    Returns:
        picks [target], and the largest squared distance of any row to the first t + 1 of them,
        for each t: [target].
    """
    # a power of two changes no comparison, and brings all rows into single precision's range
    power = int(np.frexp(np.maximum(rows.max(), -rows.min()))[1])
    wide = rows.astype(np.float64)
    np.ldexp(wide, -power, out=wide)
    singles, window = _in_single_precision(wide)
    dim = rows.shape[1]
    to_others = np.ones(dim + 2, dtype=np.float32)
    judge = _Judge(wide, target)
    gaps = np.full(len(rows), np.inf, dtype=np.float32)  # half the squared distance to the picks
    gaps[repeated] = OUT
    to_pick = np.empty_like(gaps)
    order = [start]
    while len(order) <= target:
        pick = order[-1]
        judge.add(pick)
        np.negative(singles[pick, :dim], out=to_others[:dim])
        to_others[-1] = singles[pick, dim]
        np.dot(singles, to_others, out=to_pick)
        np.minimum(gaps, to_pick, out=gaps)
        gaps[pick] = OUT
        ahead = int(gaps.argmax())
        gap = gaps[ahead]
        if gap == OUT:
            break
        gaps[ahead] = OUT
        close = gaps.max() >= gap - window
        gaps[ahead] = gap
        order.append(judge.farthest(np.flatnonzero(gaps >= gap - window)) if close else ahead)
    squared = np.zeros(target)
    to_earlier = _to_earlier(wide[order] - wide.mean(0))
    squared[: len(to_earlier)] = to_earlier
    return np.array(order[:target]), np.ldexp(squared, 2 * power)


class _Judge:
    """Compares rows in double precision; it only looks at those it is asked about."""

    def __init__(self, rows: Doubles, most: int) -> None:
        self.rows, self.picks, self.count = rows, np.empty((most, rows.shape[1])), 0
        self.distances = np.full(len(rows), np.inf)
        self.seen = np.zeros(len(rows), dtype=np.int64)  # picks that a row's distance covers

    def add(self, pick: int) -> None:
        self.picks[self.count] = self.rows[pick]
        self.count += 1

    def farthest(self, candidates: Indices) -> int:
        """The candidate farthest from all picks, the first of equals."""
        for seen in np.unique(self.seen[candidates]):
            group, new = candidates[self.seen[candidates] == seen], self.picks[seen : self.count]
            if len(group) < len(new):
                closest = np.array([_squared(new - self.rows[row]).min() for row in group])
            else:
                closest = np.min([_squared(self.rows[group] - pick) for pick in new], axis=0)
            self.distances[group] = np.minimum(self.distances[group], closest)
        self.seen[candidates] = self.count
        return int(candidates[self.distances[candidates].argmax()])


def _in_single_precision(rows: Doubles) -> tuple[Singles, float]:
    """Rows from which one product gives half the squared distances to any of them.

    Returns:
        [N, D + 2]: x, |x|^2 / 2 and 1 for each row, around their mean. Its product with
        (-y, 1, |y|^2 / 2) is |x - y|^2 / 2. And how far two such values must lie apart to be
        told from each other.
    """
    singles = np.ones((len(rows), rows.shape[1] + 2), dtype=np.float32)
    np.subtract(rows, rows.mean(0), out=singles[:, :-2], casting="same_kind")
    half = _squared(singles[:, :-2]) / 2
    singles[:, -2] = half
    # summands add up to at most 4 * half.max(); many roundings grow like the root of their number
    error = np.finfo(np.float32).eps * rows.shape[1] ** 0.5 * 4 * half.max()
    return singles, 2 * float(error)


def _to_earlier(rows: Doubles) -> Doubles:
    """Squared distance of each row [k, D] but the first to the closest before it: [k - 1]."""
    squares = _squared(rows)
    closest = np.full(len(rows), np.inf)
    for start in range(0, len(rows), TILE):
        tile = slice(start, min(start + TILE, len(rows)))
        gaps = (
            squares[tile, None] + squares[None, : tile.stop] - 2 * rows[tile] @ rows[: tile.stop].T
        )
        gaps[np.triu_indices(len(gaps), start, gaps.shape[1])] = np.inf
        closest[tile] = gaps.min(1)
    return np.maximum(closest[1:], 0)


def _squared(gaps: npt.NDArray) -> npt.NDArray:
    return np.einsum("ij,ij->i", gaps, gaps)
