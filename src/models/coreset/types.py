"""What a selection returns and reports, and how it marks rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Progress = Callable[[int, int], None]  # called with (done, total)

TAKEN = -1.0  # the squared distance of rows that cannot be picked: picks and duplicates


@dataclass(frozen=True)
class Coreset:
    """A farthest-first selection."""

    indices: np.ndarray  # [k] int64, in the order picked; any prefix is the smaller coreset
    radii: np.ndarray  # [k] float32, Euclidean covering radius of all rows after each pick
    distinct: int  # number of distinct rows to pick from, an upper bound on k
    initial_radius: float = math.inf  # before the first pick, by the existing rows if there are any
