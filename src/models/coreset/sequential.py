"""Farthest-first selection one pick at a time: the fastest way for few picks from few rows.

One float64 matrix-vector product per pick. `blocks` is faster for everything else.
"""

import numpy as np
import numpy.typing as npt

from src.models.coreset.types import TAKEN


def select_sequentially(
    rows: np.ndarray, start: int, duplicates: np.ndarray, target_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pick rows farthest first; among equally distant rows, the first.

    Args:
        rows: [N, D], finite.
        start: index of the first pick.
        duplicates: indices of rows that repeat another row and are never picked.
        target_size: number of picks k, at most N minus the duplicates.

    Returns:
        picks [k], and squared covering radii [k]: the radius of all rows after each pick.
    """
    rows = rows.astype(np.float64)
    squared_norms = np.einsum("nd,nd->n", rows, rows)
    distances = np.full(len(rows), np.inf)  # squared, to the closest pick
    distances[duplicates] = TAKEN
    picks, radii = np.empty(target_size, np.int64), np.empty(target_size)
    pick = start
    for t in range(target_size):
        to_pick = squared_norms + squared_norms[pick] - 2 * (rows @ rows[pick])
        np.minimum(distances, to_pick.clip(min=0), out=distances)
        distances[pick] = TAKEN
        picks[t], pick = pick, int(distances.argmax())
        radii[t] = max(distances[pick], 0.0)
    return picks, radii
