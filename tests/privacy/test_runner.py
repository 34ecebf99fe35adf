"""A mechanism runs by sums alone, pays what its params say, and takes its noise from the system."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from single_bank import ask_clients, run_bank

from src.privacy.accounting import compose
from src.privacy.ledger import Budget, BudgetExceeded, Ledger, Release
from src.privacy.mechanisms.denoise import shrink
from src.privacy.mechanisms.gaussian import dp_gaussian
from src.privacy.mechanisms.threshold import fit_normal, threshold_of, with_threshold
from src.privacy.noise import seeded_noise, system_noise
from src.privacy.queries import ScoreQuery, SumQuery, sum_records
from src.privacy.runner import (
    NoisySums,
    PrivacyParams,
    PrivateBank,
    Sums,
    planned_releases,
    replay,
)

DIM, IMAGES = 6, 40


def images(seed: int = 0, count: int = IMAGES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(1, 0.3, (int(rng.integers(1, 20)), DIM)) for _ in range(count)]


def run(clients, params: PrivacyParams, noise=system_noise) -> tuple[PrivateBank, list[Release]]:
    releases: list[Release] = []
    bank = run_bank(dp_gaussian(DIM), ask_clients(*clients), params, noise, releases.extend)
    return bank, releases


@pytest.mark.parametrize("adjacency", ["null", "replace"])
def test_all_of_the_budget_is_spent_and_no_more(adjacency) -> None:
    bank, releases = run([images()], PrivacyParams(0.7, adjacency))
    assert compose(release.mu for release in releases) == pytest.approx(0.7)
    assert np.isfinite(bank.rows).all()
    assert {release.adjacency for release in releases} == {adjacency}


@given(st.integers(0, 2**32 - 1))
def test_the_bank_does_not_depend_on_who_holds_the_images(seed: int) -> None:
    held = images(seed)
    cut = int(np.random.default_rng(seed).integers(IMAGES + 1))
    one, _ = run([held], PrivacyParams(1e6), seeded_noise(1))
    two, _ = run([held[cut:], held[:cut]], PrivacyParams(1e6), seeded_noise(1))
    np.testing.assert_allclose(one.rows, two.rows, atol=1e-6)


def test_nothing_is_asked_of_the_images_that_the_ledger_refuses() -> None:
    ledger = Ledger(Budget(1, 1e-5, IMAGES))
    asked = []

    def asking(query):
        asked.append(query)
        return ask_clients(images())(query)

    def reserve(releases) -> None:
        nonlocal ledger
        ledger = ledger.with_releases(releases)

    mechanism = dp_gaussian(DIM)
    with pytest.raises(BudgetExceeded):
        run_bank(mechanism, asking, PrivacyParams(ledger.budget.mu * 10), system_noise, reserve)
    assert not asked
    run_bank(dp_gaussian(DIM), asking, PrivacyParams(ledger.budget.mu), system_noise, reserve)
    assert ledger.epsilon == pytest.approx(1)
    with pytest.raises(BudgetExceeded, match="would bring ε"):
        run_bank(dp_gaussian(DIM), asking, PrivacyParams(0.01), system_noise, reserve)


def test_what_a_run_will_release_is_known_before_it_starts() -> None:
    params = PrivacyParams(0.5)
    _, releases = run([images()], params)
    assert planned_releases({"bank": dp_gaussian(DIM)}, params) == releases


def test_a_run_that_broke_off_goes_on_without_asking_again() -> None:
    replies: list[NoisySums] = []
    asking, params = ask_clients(images()), PrivacyParams(1.0)
    whole = run_bank(dp_gaussian(DIM), asking, params, system_noise, record=replies.append)
    asked: list[SumQuery] = []

    def counting(query: SumQuery):
        asked.append(query)
        return asking(query)

    again = run_bank(dp_gaussian(DIM), counting, params, system_noise, recorded=replies)
    np.testing.assert_array_equal(whole.rows, again.rows)
    assert not asked
    run_bank(dp_gaussian(DIM), counting, params, system_noise, recorded=replies[:-1])
    assert len(asked) == 1


def test_two_runs_differ_by_their_noise_and_a_seed_gives_it_back() -> None:
    params = PrivacyParams(1.0)
    drawn = [run([images()], params)[0] for _ in range(2)]
    assert repr(drawn[0]) != repr(drawn[1])
    again = [run([images()], params, seeded_noise(5))[0] for _ in range(2)]
    np.testing.assert_array_equal(again[0].rows, again[1].rows)


def test_released_sums_lie_on_a_grid_much_finer_than_the_noise() -> None:
    replies: list[NoisySums] = []
    asking, params = ask_clients(images()), PrivacyParams(0.3)
    run_bank(dp_gaussian(DIM), asking, params, system_noise, record=replies.append)
    for reply in replies:
        for released, sigma in zip(reply.vectors, reply.sigmas, strict=True):
            steps = released / 2.0 ** (math.floor(math.log2(sigma)) - 20)
            np.testing.assert_array_equal(steps, np.rint(steps))
            assert np.abs(steps).max() > 1000


def test_system_noise_is_standard_normal_and_never_the_same() -> None:
    drawn = system_noise(20_000)
    assert drawn.dtype == np.float64
    assert kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05
    assert not np.intersect1d(drawn, system_noise(20_000)).size


@pytest.mark.parametrize("wrong", [np.zeros(3), np.full(DIM, np.nan)])
def test_a_sum_that_is_not_what_was_asked_for_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a sum of mean"):
        run_bank(dp_gaussian(DIM), lambda _: Sums((wrong,), 1), PrivacyParams(1.0), system_noise)


def test_normal_law_is_found_in_a_histogram_with_noise() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.4, 0.05, 600)
    counts = np.histogram(values, np.linspace(0, 1, 33))[0] + rng.normal(0, 8, 32)
    mean, deviation = fit_normal(counts / 600)
    assert mean == pytest.approx(0.4, abs=0.01)
    assert deviation == pytest.approx(0.05, rel=0.25)
    exact = np.histogram(values, np.linspace(0, 1, 33))[0] / 600
    assert fit_normal(exact) == pytest.approx((values.mean(), values.std()), rel=0.06)


def test_threshold_lets_the_set_share_of_log_normal_scores_pass() -> None:
    scores = np.exp(np.random.default_rng(0).normal(1.0, 0.2, 100_000))
    assert (scores > threshold_of((1.0, 0.2), 0.05)).mean() == pytest.approx(0.05, abs=0.005)


def test_threshold_costs_its_part_and_the_bank_the_rest() -> None:
    """The images' scores here are their number of patches."""
    replies: list[NoisySums] = []
    held = images()

    def asking(query):
        if isinstance(query, ScoreQuery):
            return Sums(sum_records(query, [np.array([float(len(i))]) for i in held]), len(held))
        return ask_clients(held)(query)

    releases: list[Release] = []
    whole = with_threshold(dp_gaussian(DIM), 0.1)
    bank = run_bank(
        whole, asking, PrivacyParams(100.0), seeded_noise(0), releases.extend, record=replies.append
    )
    assert compose(r.mu for r in releases) == pytest.approx(100.0)
    assert releases[-1].mu == pytest.approx(100.0 * 0.1**0.5)
    logs = np.log([len(i) for i in held])
    assert bank.log_scores[0] == pytest.approx(np.median(logs), abs=0.5)


def test_replay_asks_what_the_run_asked() -> None:
    replies: list[NoisySums] = []
    bank = run_bank(
        dp_gaussian(DIM),
        ask_clients(images()),
        PrivacyParams(1.0),
        seeded_noise(0),
        record=replies.append,
    )
    steps, again = replay(dp_gaussian(DIM), replies)
    np.testing.assert_array_equal(again.basis, bank.basis)
    assert [step.name for step, _ in steps] == ["centre", "moments"]
    mean, sigma = replies[0].vectors[0] / IMAGES, replies[0].sigmas[0] / IMAGES
    np.testing.assert_array_equal(steps[1][0].query.centre, shrink(mean, sigma))
    for other, said in ((replies[:1], "1 times"), (replies[::-1], "blocks"), ([], "0 times")):
        with pytest.raises(ValueError, match=said):
            replay(dp_gaussian(DIM), other)
