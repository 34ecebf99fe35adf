"""How many rows each client may send so that together they keep to a budget.

The allocation looks for the one covering radius at which the rows that all clients need add up to
the budget. The largest radius of any client is then as small as the budget allows: a client with
varied images sends more rows, one with uniform images fewer.
"""

from collections.abc import Mapping

import numpy as np

from src.federated.types import RadiusCurve

CURVE_POINTS = 48  # points of a radius curve, about 700 bytes
EXACT_POINTS = 24  # points in an exact round, of which there are many
HALVINGS = 60


def curve_counts(most: int, first: int, points: int = CURVE_POINTS) -> np.ndarray:
    """Row counts at which a curve from `first` to `most` rows is sampled: [m] int64, ascending."""
    spread = np.geomspace(1, most, points) if most else np.empty(0)
    counts = np.unique(np.concatenate([[first], np.rint(spread), [most]]).astype(np.int64))
    return counts[counts >= first]


def allocate_rows(curves: Mapping[int, RadiusCurve], rows: int) -> dict[int, int]:
    """Divide a budget of rows among clients so that their largest covering radius is smallest.

    Args:
        curves: client -> its radius curve.
        rows: budget of all clients together.

    Returns:
        client -> quota; the quotas add up to `rows`, or to all rows there are if those are fewer.
    """
    clients = sorted(curves)
    available = np.array([curves[client].counts[-1] for client in clients])
    wanted = _rows_by_radius([curves[client] for client in clients], rows)
    quotas = _round_to_budget(wanted, available, rows)
    return dict(zip(clients, quotas.tolist(), strict=True))


def allocate_quotas(
    curves: Mapping[int, Mapping[str, RadiusCurve]], budgets: Mapping[str, int]
) -> dict[int, dict[str, int]]:
    """Divide the rows of several banks: client -> bank name -> quota.

    Args:
        curves: client -> bank name -> its radius curve.
        budgets: bank name -> rows of all clients together; a bank without one gets a row from
            each client, to begin with.
    """
    quotas: dict[int, dict[str, int]] = {client: {} for client in curves}
    for name in sorted({name for by_bank in curves.values() for name in by_bank}):
        asked = {client: by_bank[name] for client, by_bank in curves.items() if name in by_bank}
        rows = dict.fromkeys(asked, 1)
        if name in budgets:
            rows = allocate_rows(asked, budgets[name])
        for client, quota in rows.items():
            quotas[client][name] = quota
    return quotas


def _rows_by_radius(curves: list[RadiusCurve], rows: int) -> np.ndarray:
    """Rows that each client needs for the smallest common radius within the budget: [K] float.

    Clients that need one more row for any smaller radius get half a row extra: rounding serves
    them first.
    """
    low = min(float(curve.radii[-1]) for curve in curves)
    high = max(float(curve.radii[0]) for curve in curves)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _rows_needed(curves, middle).sum() <= rows:
            high = middle
        else:
            low = middle
    needed = _rows_needed(curves, high)
    if needed.sum() > rows:  # the budget is below the first point of the curves
        return needed * rows / needed.sum()
    return needed + 0.5 * (_rows_needed(curves, low) > needed)


def _rows_needed(curves: list[RadiusCurve], radius: float) -> np.ndarray:
    """Rows after which all patches lie within a radius, linear between curve points: [K]."""
    return np.ceil([np.interp(radius, c.radii[::-1], c.counts[::-1]) for c in curves])


def _round_to_budget(wanted: np.ndarray, available: np.ndarray, rows: int) -> np.ndarray:
    """Integers near `wanted` that add up to the budget, as far as rows are available."""
    quotas = np.minimum(np.floor(wanted + 1e-9).astype(np.int64), available)
    by_fraction = np.argsort(quotas - wanted, kind="stable")  # largest loss by rounding first
    while (left := min(rows, int(available.sum())) - int(quotas.sum())) > 0:
        open_ = [i for i in by_fraction if quotas[i] < available[i]][:left]
        step = max(1, min(left // len(open_), int(min(available[i] - quotas[i] for i in open_))))
        quotas[open_] += step
    return quotas
