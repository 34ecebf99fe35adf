"""Quotas keep to the budget, and the largest covering radius is the smallest it can be."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from src.federated.allocation import CURVE_POINTS, allocate_quotas, allocate_rows, curve_counts
from src.federated.types import ClientStats, RadiusCurve


def curve_of(radii: list[float], first: int = 0) -> RadiusCurve:
    """A curve whose radius is known at `first`, `first` + 1, ... rows."""
    counts = np.arange(first, first + len(radii))
    return RadiusCurve(ClientStats(1, 10_000, 1), counts, np.array(radii, float))


@st.composite
def clients(draw) -> dict[int, RadiusCurve]:
    curves = {}
    for client in range(draw(st.integers(1, 5))):
        radii = draw(st.lists(st.floats(0, 100), min_size=2, max_size=30))
        radii = np.sort(radii)[::-1] + np.linspace(1, 0, len(radii))  # strictly falling
        curves[client] = curve_of(list(radii), draw(st.integers(0, 1)))
    return curves


@settings(max_examples=500)
@given(clients(), st.integers(0, 200))
def test_quotas_add_up_to_the_budget_and_no_client_gets_more_rows_than_it_has(curves, rows) -> None:
    quotas = allocate_rows(curves, rows)
    available = {client: int(curve.counts[-1]) for client, curve in curves.items()}
    assert all(0 <= quotas[client] <= available[client] for client in curves)
    assert sum(quotas.values()) == min(rows, sum(available.values()))


@settings(max_examples=500)
@given(clients(), st.integers(1, 100))
def test_no_other_allocation_has_a_smaller_largest_radius(curves, rows) -> None:
    """For any smaller radius than the largest, the clients need more rows than the budget."""
    quotas = allocate_rows(curves, rows)
    left = {c: curve.radii[max(0, quotas[c] - curve.counts[0])] for c, curve in curves.items()}
    worst = max(left, key=left.__getitem__)
    if quotas[worst] == curves[worst].counts[-1]:
        return  # it sends all its rows
    below = left[worst] * (1 - 1e-9) - 1e-9
    assert sum(_rows_within(curve, below) for curve in curves.values()) > rows


def _rows_within(curve: RadiusCurve, radius: float) -> int:
    """Rows that reach the radius, counted one by one; all rows if even they do not."""
    return next(
        (int(n) for n, r in zip(curve.counts, curve.radii, strict=True) if r <= radius),
        int(curve.counts[-1]),
    )


def test_a_varied_client_gets_more_rows_and_a_covered_one_none() -> None:
    varied, uniform, covered = [9, 8, 7, 6, 5, 4], [9, 3, 2, 1, 0.5, 0.2], [3.9, 2, 1, 0.8, 0.3, 0]
    curves = {0: curve_of(varied), 1: curve_of(uniform), 2: curve_of(covered)}
    assert allocate_rows(curves, 6) == {0: 5, 1: 1, 2: 0}  # all within 4


def test_each_bank_has_its_own_budget_and_one_without_gets_a_row_from_each_client() -> None:
    varied, uniform = curve_of([9, 8, 7, 6, 5, 4]), curve_of([9, 3, 2, 1, 0.5, 0.2])
    curves = {0: {"a": varied, "b": varied}, 1: {"a": uniform}, 2: {"b": uniform, "c": uniform}}
    quotas = allocate_quotas(curves, {"a": 6, "c": 2})
    expected = allocate_rows({0: varied, 1: uniform}, 6)
    assert quotas == {0: {"a": expected[0], "b": 1}, 1: {"a": expected[1]}, 2: {"b": 1, "c": 2}}


@given(st.integers(0, 10**7), st.integers(0, 1))
def test_a_curve_has_few_points_from_the_first_count_to_the_last(most, first) -> None:
    counts = curve_counts(max(most, first), first)
    assert (counts[0], counts[-1]) == (first, max(most, first))
    assert (np.diff(counts) > 0).all()
    assert len(counts) <= CURVE_POINTS + 2
