"""Audits keep to their confidence, come near a true claim, and catch a false one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from src.privacy.accounting import epsilon_for
from src.privacy.attacks.auditing import (
    Guesses,
    guess,
    many_run_bound,
    many_run_epsilon,
    one_run_epsilon,
)

DELTA = 1e-5


def test_all_guesses_right_bound_epsilon_by_hand() -> None:
    # q^284 = 0.05 at q = 1 / (1 + e^-ε)
    q = 0.05 ** (1 / 284)
    assert one_run_epsilon(Guesses(600, 284, 284), 0.0) == pytest.approx(math.log(q / (1 - q)))
    assert one_run_epsilon(Guesses(600, 284, 284), DELTA) == pytest.approx(4.5, abs=0.1)
    assert one_run_epsilon(Guesses(600, 284, 142), DELTA) == 0
    assert one_run_epsilon(Guesses(600, 0, 0), DELTA) == 0


@given(st.integers(1, 300), st.data())
def test_one_run_bound_grows_with_what_was_right_and_falls_with_delta(guesses, data) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    bounds = [
        one_run_epsilon(Guesses(300, guesses, v), d)
        for v, d in ((right, 1e-3), (right, DELTA), (right, 0.0), (right + 1, 0.0))
    ]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_run_bound_keeps_its_confidence_for_randomized_response(epsilon: float) -> None:
    chance = 1 / (1 + math.exp(-epsilon))
    right = np.arange(301)
    above = [one_run_epsilon(Guesses(300, 300, int(v)), 0.0) > epsilon for v in right]
    assert binom.pmf(right, 300, chance)[above].sum() <= 0.05
    near = int(binom.median(300, chance))
    assert one_run_epsilon(Guesses(300, 300, near), 0.0) > 0.5 * epsilon


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (0, 0, 0), (10, 5, -1)])
def test_counts_that_do_not_agree_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="do not agree"):
        one_run_epsilon(Guesses(*counts), DELTA)


def test_many_run_bound_keeps_its_confidence() -> None:
    rng = np.random.default_rng(0)
    mu, above = 0.8, 0
    for _ in range(100):
        without, given_ = rng.normal(0, 1, 400), rng.normal(mu, 1, 400)
        above += many_run_epsilon(without, given_, mu / 2, DELTA) > epsilon_for(mu, DELTA)
    assert above <= 9  # 5 % of bounds may be above


def test_many_run_bound_by_hand() -> None:
    same = np.ones(100)
    assert many_run_epsilon(same, same, 0.5, DELTA) == 0
    mu = norm.isf(1 - 0.025 ** (1 / 1000)) - norm.ppf(1 - 0.025 ** (1 / 100))
    bound = many_run_epsilon(np.zeros(1000), same, 0.5, DELTA)
    assert bound == pytest.approx(epsilon_for(mu, DELTA))


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_bound_without_assumptions_keeps_its_confidence(mu: float) -> None:
    rng = np.random.default_rng(1)
    above, bounds = 0, []
    for _ in range(100):
        without, given_ = rng.normal(0, 1, 1000), rng.normal(mu, 1, 1000)
        bounds.append(many_run_bound(without, given_, DELTA))
        above += bounds[-1] > epsilon_for(mu, DELTA)
    assert above <= 9  # 5 % of bounds may be above
    assert np.median(bounds) > 0


def test_bound_without_assumptions_by_hand() -> None:
    apart = many_run_bound(np.zeros(2000), np.ones(2000), 0.0)
    end = 1 - 0.025 ** (1 / 1000)  # Clopper and Pearson's of none in 1,000
    assert apart == pytest.approx(math.log((1 - end) / end))
    assert many_run_bound(np.ones(100), np.ones(100), DELTA) == 0
    flipped = many_run_bound(np.r_[np.zeros(1000), np.ones(1000)], np.ones(2000), 0.0)
    assert flipped > 0
    with pytest.raises(ValueError, match="needs two runs"):
        many_run_bound(np.ones(1), np.ones(5), DELTA)


def test_guesses_are_of_the_ends_only() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    inside = np.array([True, False, True, False, True, False])
    assert guess(scores, inside, 2 / 3) == Guesses(canaries=6, guesses=4, right=3)
