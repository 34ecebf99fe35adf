"""Audits keep to their confidence, come near a true claim, and catch a false one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from src.privacy.accounting import epsilon_for, mu_for
from src.privacy.attacks.auditing import (
    canary_scores,
    many_run_bound,
    many_run_epsilon,
    many_run_mu,
    membership,
    one_run_epsilon,
)
from src.privacy.queries import Moments, contribution, summed
from src.privacy.runner import Step, Terms, seeded_noise, system_noise

DELTA = 1e-5
PATCHES = 784


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_membership_is_the_share_of_pairs_that_are_told_apart(members, others) -> None:
    pairs = [(m < o) + 0.5 * (m == o) for m in members for o in others]
    found = membership(np.array(members), np.array(others))
    assert found.auc == pytest.approx(np.mean(pairs))
    for rate, caught in ((0.01, found.at_1_percent), (0.001, found.at_01_percent)):
        cuts = [t for t in [*members, *others] if np.mean([o < t for o in others]) <= rate]
        assert caught >= max((np.mean([m < t for m in members]) for t in cuts), default=0)
        if len(others) <= 100:  # no false positive is allowed
            assert caught == np.mean([m < min(others) for m in members])


def test_a_bank_that_holds_its_images_verbatim_gives_all_of_them_away() -> None:
    found = membership(np.zeros(50), np.linspace(0.1, 1, 200))
    assert (found.auc, found.at_1_percent, found.at_01_percent) == (1, 1, 1)


@pytest.mark.parametrize("scores", [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_membership_needs_scores(scores) -> None:
    with pytest.raises(ValueError, match="finite scores"):
        membership(*map(np.array, scores))


def test_all_guesses_right_bound_epsilon_by_hand() -> None:
    # q^284 = 0.05 at q = 1 / (1 + e^-ε)
    q = 0.05 ** (1 / 284)
    assert one_run_epsilon(600, 284, 284, 0.0) == pytest.approx(math.log(q / (1 - q)))
    assert one_run_epsilon(600, 284, 284, DELTA) == pytest.approx(4.5, abs=0.1)
    assert one_run_epsilon(600, 284, 142, DELTA) == 0
    assert one_run_epsilon(600, 0, 0, DELTA) == 0


@given(st.integers(1, 300), st.data())
def test_one_run_bound_grows_with_what_was_right_and_falls_with_delta(guesses, data) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    bounds = [
        one_run_epsilon(300, guesses, v, d)
        for v, d in ((right, 1e-3), (right, DELTA), (right, 0.0), (right + 1, 0.0))
    ]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_one_run_bound_keeps_its_confidence_for_randomized_response(epsilon: float) -> None:
    chance = 1 / (1 + math.exp(-epsilon))
    right = np.arange(301)
    above = [one_run_epsilon(300, 300, int(v), 0.0) > epsilon for v in right]
    assert binom.pmf(right, 300, chance)[above].sum() <= 0.05
    near = int(binom.median(300, chance))
    assert one_run_epsilon(300, 300, near, 0.0) > 0.5 * epsilon


@pytest.mark.parametrize("counts", [(10, 11, 5), (10, 5, 6), (0, 0, 0), (10, 5, -1)])
def test_counts_that_do_not_agree_are_refused(counts) -> None:
    with pytest.raises(ValueError, match="do not agree"):
        one_run_epsilon(*counts, DELTA)


def gaussian_core() -> tuple[Step, list[np.ndarray], np.ndarray]:
    """A step, some images, and a canary that moves both of its sums as far as they may be moved."""
    rng = np.random.default_rng(0)
    step = Step("moments", "moments", Moments(np.zeros(3), 0.3, 0.1), (0.2, 0.8))
    images = [rng.normal(0, 1, (20, 3)) for _ in range(50)]
    return step, images, np.tile([1.0, 0, 0], (PATCHES, 1))


def scores_of(step, images, canary, sigmas, runs: int, noise=system_noise):
    return canary_scores(
        summed(step.ask, images), contribution(step.ask, canary), sigmas, noise, runs
    )


@pytest.mark.parametrize("epsilon", [1, 2, 4, 8])
def test_bound_is_near_the_claim_of_the_gaussian_core_and_not_above_it(epsilon: float) -> None:
    step, images, canary = gaussian_core()
    sigmas = [r.sigma for r in Terms(mu_for(epsilon, DELTA)).releases(step)]
    without, given_ = scores_of(step, images, canary, sigmas, 200_000, seeded_noise(epsilon))
    assert 0.9 * epsilon <= many_run_epsilon(without, given_, DELTA) <= epsilon


def test_noise_for_one_patch_of_an_image_is_caught() -> None:
    step, images, canary = gaussian_core()
    honest = [r.sigma for r in Terms(mu_for(1, DELTA)).releases(step)]
    planted = [sigma / math.sqrt(PATCHES) for sigma in honest]
    without, given_ = scores_of(step, images, canary, planted, 2000)
    assert many_run_epsilon(without, given_, DELTA) > 8


def test_many_run_bound_keeps_its_confidence() -> None:
    rng = np.random.default_rng(0)
    mu, above = 0.8, 0
    for _ in range(100):
        without, given_ = rng.normal(0, 1, 400), rng.normal(mu, 1, 400)
        above += many_run_mu(without, given_) > mu
    assert above <= 9  # 5 % of bounds may be above


def test_many_run_bound_of_scores_that_say_nothing_is_zero() -> None:
    same = np.ones(100)
    assert many_run_mu(same, same) == 0
    assert many_run_epsilon(same, same, DELTA) == 0
    assert many_run_mu(np.zeros(1000), same) == pytest.approx(
        norm.isf(1 - 0.025 ** (1 / 500)) - norm.ppf(1 - 0.025 ** (1 / 50))
    )
    with pytest.raises(ValueError, match="needs two runs"):
        many_run_mu(same[:1], same)


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
