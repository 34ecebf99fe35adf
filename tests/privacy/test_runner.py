"""A mechanism runs by sums alone, pays what its terms say, and takes its noise from the system."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from src.privacy.accounting import composed
from src.privacy.ledger import Budget, BudgetExceeded, Ledger, Release
from src.privacy.mechanisms.gaussian import dp_gaussian
from src.privacy.queries import Ask, Scores, summed
from src.privacy.runner import (
    Answer,
    PrivateBank,
    Sums,
    Terms,
    in_process,
    normal_of,
    planned,
    run_mechanism,
    seeded_noise,
    system_noise,
    threshold_of,
    with_scores,
)

DIM, IMAGES = 6, 40


def images(seed: int = 0, count: int = IMAGES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(1, 0.3, (int(rng.integers(1, 20)), DIM)) for _ in range(count)]


def run(clients, terms: Terms, noise=system_noise) -> tuple[PrivateBank, list[Release]]:
    releases: list[Release] = []
    bank = run_mechanism(dp_gaussian(DIM), in_process(clients), terms, noise, releases.extend)
    return bank, releases


@pytest.mark.parametrize("adjacency", ["null", "replace"])
def test_all_of_the_budget_is_spent_and_no_more(adjacency) -> None:
    bank, releases = run([images()], Terms(0.7, adjacency))
    assert composed(release.mu for release in releases) == pytest.approx(0.7)
    assert np.isfinite(bank.rows).all()
    assert {release.adjacency for release in releases} == {adjacency}


@given(st.integers(0, 2**32 - 1))
def test_the_bank_does_not_depend_on_who_holds_the_images(seed: int) -> None:
    held = images(seed)
    cut = int(np.random.default_rng(seed).integers(IMAGES + 1))
    one, _ = run([held], Terms(1e6), seeded_noise(1))
    two, _ = run([held[cut:], held[:cut]], Terms(1e6), seeded_noise(1))
    np.testing.assert_allclose(one.rows, two.rows, atol=1e-6)


def test_nothing_is_asked_of_the_images_that_the_ledger_refuses() -> None:
    ledger = Ledger(Budget(1, 1e-5, IMAGES))
    asked = []

    def asking(ask):
        asked.append(ask)
        return in_process([images()])(ask)

    def note(releases) -> None:
        nonlocal ledger
        ledger = ledger.adding(releases)

    mechanism = dp_gaussian(DIM)
    with pytest.raises(BudgetExceeded):
        run_mechanism(mechanism, asking, Terms(ledger.budget.mu * 10), system_noise, note)
    assert not asked
    run_mechanism(dp_gaussian(DIM), asking, Terms(ledger.budget.mu), system_noise, note)
    assert ledger.epsilon == pytest.approx(1)
    with pytest.raises(BudgetExceeded, match="would bring ε"):
        run_mechanism(dp_gaussian(DIM), asking, Terms(0.01), system_noise, note)


def test_what_a_run_will_release_is_known_before_it_starts() -> None:
    terms = Terms(0.5, bank="tiles", round=3)
    _, releases = run([images()], terms)
    assert planned(dp_gaussian(DIM), terms) == releases


def test_a_run_that_broke_off_goes_on_without_asking_again() -> None:
    answers: list[Answer] = []
    asking, terms = in_process([images()]), Terms(1.0)
    whole = run_mechanism(dp_gaussian(DIM), asking, terms, system_noise, list, keep=answers.append)
    asked: list[Ask] = []

    def counting(ask: Ask):
        asked.append(ask)
        return asking(ask)

    again = run_mechanism(dp_gaussian(DIM), counting, terms, system_noise, list, had=answers)
    np.testing.assert_array_equal(whole.rows, again.rows)
    assert not asked
    run_mechanism(dp_gaussian(DIM), counting, terms, system_noise, list, had=answers[:-1])
    assert len(asked) == 1


def test_two_runs_differ_by_their_noise_and_a_seed_gives_it_back() -> None:
    terms = Terms(1.0)
    drawn = [run([images()], terms)[0] for _ in range(2)]
    assert repr(drawn[0]) != repr(drawn[1])
    again = [run([images()], terms, seeded_noise(5))[0] for _ in range(2)]
    np.testing.assert_array_equal(again[0].rows, again[1].rows)


def test_released_sums_lie_on_a_grid_much_finer_than_the_noise() -> None:
    answers: list[Answer] = []
    asking, terms = in_process([images()]), Terms(0.3)
    run_mechanism(dp_gaussian(DIM), asking, terms, system_noise, list, keep=answers.append)
    for answer in answers:
        for released, sigma in zip(answer.sums, answer.sigmas, strict=True):
            steps = released / 2.0 ** (math.floor(math.log2(sigma)) - 20)
            np.testing.assert_array_equal(steps, np.rint(steps))
            assert np.abs(steps).max() > 1000


def test_system_noise_is_standard_normal_and_never_the_same() -> None:
    drawn = system_noise(20_000)
    assert drawn.dtype == np.float64
    assert kstest(drawn, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.05
    assert not np.intersect1d(drawn, system_noise(20_000)).size


def test_distances_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    patches, rows = rng.normal(size=(9, DIM)), rng.normal(size=(5, 2))
    origin, basis = rng.normal(size=DIM), rng.normal(size=(DIM, 2))
    plain = [
        min(((x - origin) @ basis - row) @ ((x - origin) @ basis - row) for row in rows)
        for x in patches
    ]
    bank = PrivateBank(rows, origin, basis)
    np.testing.assert_allclose(bank.squared_distances(patches), plain, atol=1e-12)


def test_a_sum_that_is_not_what_was_asked_for_is_refused() -> None:
    for wrong in ((np.zeros(3),), (np.full(DIM, np.nan),)):
        with pytest.raises(ValueError, match="a sum of mean"):
            run_mechanism(
                dp_gaussian(DIM), lambda ask, w=wrong: Sums(w, 1), Terms(1.0), system_noise, list
            )


def test_normal_law_is_found_in_a_histogram_with_noise() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.4, 0.05, 600)
    counts = np.histogram(values, np.linspace(0, 1, 33))[0] + rng.normal(0, 8, 32)
    mean, deviation = normal_of(counts / 600)
    assert mean == pytest.approx(0.4, abs=0.01)
    assert deviation == pytest.approx(0.05, rel=0.25)
    exact = np.histogram(values, np.linspace(0, 1, 33))[0] / 600
    assert normal_of(exact) == pytest.approx((values.mean(), values.std()), rel=0.06)


def test_threshold_lets_the_set_share_of_log_normal_scores_pass() -> None:
    scores = np.exp(np.random.default_rng(0).normal(1.0, 0.2, 100_000))
    assert (scores > threshold_of((1.0, 0.2), 0.05)).mean() == pytest.approx(0.05, abs=0.005)


def test_threshold_costs_its_part_and_the_bank_the_rest() -> None:
    """The images' scores here are their number of patches."""
    answers: list[Answer] = []
    held = images()

    def asking(ask):
        if isinstance(ask, Scores):
            return Sums(summed(ask, [np.array([float(len(i))]) for i in held]), len(held))
        return in_process([held])(ask)

    releases: list[Release] = []
    whole = with_scores(dp_gaussian(DIM), 0.1)
    bank = run_mechanism(
        whole, asking, Terms(100.0), seeded_noise(0), releases.extend, keep=answers.append
    )
    assert composed(r.mu for r in releases) == pytest.approx(100.0)
    assert releases[-1].mu == pytest.approx(100.0 * 0.1**0.5)
    logs = np.log([len(i) for i in held])
    assert bank.scores[0] == pytest.approx(np.median(logs), abs=0.5)
