"""Who may send how many rows: the budget is kept, and the largest radius is the least there is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from src.federated.allocation import CURVE_POINTS, allot, curve_counts
from src.federated.types import Holding, Survey


def survey(radii: list[float], share: int = 1, first: int = 0) -> Survey:
    """A client whose radius by `first`, `first` + 1, ... rows is known at every number of rows."""
    counts = np.arange(first, first + len(radii))
    return Survey(Holding(1, 10_000, share), counts, np.array(radii, float))


@st.composite
def clients(draw) -> dict[int, Survey]:
    found = {}
    for client in range(draw(st.integers(1, 5))):
        radii = draw(st.lists(st.floats(0, 100), min_size=2, max_size=30))
        radii = np.sort(radii)[::-1] + np.linspace(1, 0, len(radii))  # falling, nowhere level
        found[client] = survey(list(radii), draw(st.integers(1, 50)), draw(st.integers(0, 1)))
    return found


@settings(max_examples=500)
@given(clients(), st.integers(0, 200), st.sampled_from(["proportional", "equal", "radius"]))
def test_rows_add_up_to_the_budget_and_nobody_gets_more_than_it_has(asked, rows, budget) -> None:
    given_ = allot(asked, rows, budget)
    most = {client: int(s.counts[-1]) for client, s in asked.items()}
    assert all(0 <= given_[client] <= most[client] for client in asked)
    assert sum(given_.values()) == min(rows, sum(most.values()))


@settings(max_examples=500)
@given(clients(), st.integers(1, 100))
def test_no_other_division_has_a_smaller_largest_radius(asked, rows) -> None:
    """For any radius below the largest left, the clients need more rows than there are."""
    given_ = allot(asked, rows, "radius")
    left = {c: s.radii[max(0, given_[c] - s.counts[0])] for c, s in asked.items()}
    worst = max(left, key=left.__getitem__)
    if given_[worst] == asked[worst].counts[-1]:
        return  # it sends all it has
    below = left[worst] * (1 - 1e-9) - 1e-9
    assert sum(_rows_within(s, below) for s in asked.values()) > rows


def _rows_within(asked: Survey, radius: float) -> int:
    """Counted one row after another; all its rows where even they do not reach the radius."""
    return next(
        (int(n) for n, r in zip(asked.counts, asked.radii, strict=True) if r <= radius),
        int(asked.counts[-1]),
    )


def test_radius_gives_a_varied_client_more_and_a_covered_one_nothing() -> None:
    varied, uniform, covered = [9, 8, 7, 6, 5, 4], [9, 3, 2, 1, 0.5, 0.2], [3.9, 2, 1, 0.8, 0.3, 0]
    asked = {0: survey(varied), 1: survey(uniform), 2: survey(covered)}
    assert allot(asked, 6, "radius") == {0: 5, 1: 1, 2: 0}  # all within 4


def test_equal_gives_what_a_small_client_cannot_use_to_the_others() -> None:
    asked = {
        0: survey([3, 2, 1]),
        1: survey(list(range(20, 0, -1))),
        2: survey(list(range(9)[::-1])),
    }
    assert allot(asked, 14, "equal") == {0: 2, 1: 6, 2: 6}


def test_proportional_goes_by_shares() -> None:
    asked = {i: survey(list(range(30, 0, -1)), share) for i, share in enumerate((10, 20, 5))}
    assert allot(asked, 35, "proportional") == {0: 10, 1: 20, 2: 5}
    assert allot(asked, 14, "proportional") == {0: 4, 1: 8, 2: 2}


@given(st.integers(0, 10**7), st.integers(0, 1))
def test_curve_is_told_at_few_numbers_of_rows_the_first_and_the_last_among_them(
    most, first
) -> None:
    counts = curve_counts(max(most, first), first)
    assert (counts[0], counts[-1]) == (first, max(most, first))
    assert (np.diff(counts) > 0).all()
    assert len(counts) <= CURVE_POINTS + 2
