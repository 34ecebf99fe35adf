"""Membership: scores tell training images from others, by distance and by tracing in sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.privacy.attacks.auditing import guess, one_run_epsilon
from src.privacy.attacks.membership import Attack, Tracing
from src.privacy.runner import NoisySums


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_membership_is_the_share_of_pairs_that_are_told_apart(members, others) -> None:
    pairs = [(m < o) + 0.5 * (m == o) for m in members for o in others]
    attack = Attack(np.array(members), np.array(others))
    assert attack.auc == pytest.approx(np.mean(pairs))
    for rate in (0.01, 0.001):
        caught = attack.true_positive_rate(rate)
        cuts = [t for t in [*members, *others] if np.mean([o < t for o in others]) <= rate]
        assert caught >= max((np.mean([m < t for m in members]) for t in cuts), default=0)
        if len(others) <= 100:  # no false positive is allowed
            assert caught == np.mean([m < min(others) for m in members])


def test_a_bank_that_holds_its_images_verbatim_gives_all_of_them_away() -> None:
    metrics = Attack(np.zeros(50), np.linspace(0.1, 1, 200)).metrics()
    assert metrics["auc"] == metrics["tpr_at_1_percent"] == metrics["tpr_at_0.1_percent"] == 1
    assert (metrics["members"], metrics["others"]) == (50, 200)


@pytest.mark.parametrize("scores", [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_membership_needs_scores(scores) -> None:
    with pytest.raises(ValueError, match="finite scores"):
        Attack(*map(np.array, scores))


def test_tracing_is_the_best_linear_estimate() -> None:
    """Worked out as the conditional mean of jointly Gaussian numbers."""
    rng = np.random.default_rng(0)
    vectors, known = rng.normal(size=(5, 4)), rng.normal(size=4)
    sums, sigma, share = rng.normal(size=4), 0.7, 0.3
    tracing = Tracing(5, share)
    tracing.add([vectors], NoisySums((sums,), (sigma,), 5), [known])
    spread = share * (1 - share)
    covariance = spread * vectors.T @ vectors + sigma**2 * np.eye(4)
    away = sums - known - share * vectors.sum(0)
    expected = spread * vectors @ np.linalg.solve(covariance, away)
    np.testing.assert_allclose(tracing.scores(), expected)


def test_tracing_finds_who_is_in_sums_with_hardly_any_noise_and_nobody_behind_much() -> None:
    rng = np.random.default_rng(0)
    vectors, inside = rng.normal(size=(40, 60)), rng.random(40) < 0.5
    for sigma, right in ((0.01, 40), (1e6, None)):
        tracing = Tracing(40, 0.5)
        sums = vectors[inside].sum(0) + sigma * rng.normal(size=60)
        tracing.add([vectors], NoisySums((sums,), (sigma,), 40))
        guesses = guess(tracing.scores(), inside, 1.0)
        assert guesses.guesses == 40
        if right:
            assert guesses.right >= right - 2 * abs(int(inside.sum()) - 20)
            assert one_run_epsilon(guesses, 0.0) > 1
        else:
            assert one_run_epsilon(guesses, 0.0) < 0.5
