"""How many rows each client may send, so that all together keep to a budget.

`proportional` to its patches needs no word from the others. `equal` gives every client as many.
`radius` finds the one covering radius at which what the clients need adds up to the budget: the
largest radius of any client is then as small as the budget allows, a client with varied images
sends more and one with uniform images less.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from src.federated.types import Survey

Budget = Literal["proportional", "equal", "radius"]
CURVE_POINTS = 48  # of a radius curve: some seven hundred bytes
EXACT_POINTS = 24  # of one in an exact round, of which there are many
HALVINGS = 60


def curve_counts(most: int, first: int, points: int = CURVE_POINTS) -> np.ndarray:
    """Numbers of rows at which a curve of `first` to `most` rows is told: [m] int64, ascending."""
    spread = np.geomspace(1, most, points) if most else np.empty(0)
    counts = np.unique(np.concatenate([[first], np.rint(spread), [most]]).astype(np.int64))
    return counts[counts >= first]


def allot(surveys: Mapping[int, Survey], rows: int, budget: Budget) -> dict[int, int]:
    """Rows that each client may send.

    Args:
        surveys: client -> what it could send, its curve included.
        rows: that all may send together.
        budget: how they are divided. Proportional is by the clients' shares.

    Returns:
        client -> rows; together `rows`, or all that the clients have where that is less.
    """
    clients = sorted(surveys)
    most = np.array([surveys[client].counts[-1] for client in clients])
    if budget == "radius":
        wanted = _by_radius([surveys[client] for client in clients], rows)
    else:
        shares = [surveys[client].holding.share for client in clients]
        weights = np.array(shares if budget == "proportional" else [1] * len(clients), float)
        wanted = _by_weight(weights, most, rows)
    given = _rounded(wanted, most, rows)
    return dict(zip(clients, given.tolist(), strict=True))


def _by_weight(weights: np.ndarray, most: np.ndarray, rows: int) -> np.ndarray:
    """Shares of `rows` by weight, where nobody gets more than its most: [K] float."""
    given = np.zeros(len(weights))
    while (open_ := given < most).any() and rows - given.sum() > 1e-6:
        left = (rows - given.sum()) * weights * open_ / (weights * open_).sum()
        given = np.minimum(given + left, most)
    return given


def _by_radius(surveys: list[Survey], rows: int) -> np.ndarray:
    """Rows that each needs for the smallest radius that the budget allows: [K] float.

    Half a row more for those who would need another one for any smaller radius.
    """
    low = min(float(survey.radii[-1]) for survey in surveys)
    high = max(float(survey.radii[0]) for survey in surveys)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _needed(surveys, middle).sum() <= rows:
            high = middle
        else:
            low = middle
    needed = _needed(surveys, high)
    if needed.sum() > rows:  # fewer rows than the first of each
        return needed * rows / needed.sum()
    return needed + 0.5 * (_needed(surveys, low) > needed)


def _needed(surveys: list[Survey], radius: float) -> np.ndarray:
    """Rows after which all patches lie within the radius; between a curve's points a line: [K]."""
    return np.ceil([np.interp(radius, s.radii[::-1], s.counts[::-1]) for s in surveys])


def _rounded(wanted: np.ndarray, most: np.ndarray, rows: int) -> np.ndarray:
    """Whole numbers near those wanted that add up to the budget, as far as there are rows."""
    given = np.minimum(np.floor(wanted + 1e-9).astype(np.int64), most)
    by_fraction = np.argsort(given - wanted, kind="stable")  # who lost most comes first
    while (left := min(rows, int(most.sum())) - int(given.sum())) > 0:
        room = [i for i in by_fraction if given[i] < most[i]][:left]
        step = max(1, min(left // len(room), int(min(most[i] - given[i] for i in room))))
        given[room] += step
    return given
