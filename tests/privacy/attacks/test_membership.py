"""Attacks know what they should, and catch noise that is too small however it came to be so."""

import math
from dataclasses import replace

import numpy as np
import pytest

from src.privacy.accounting import mu_for
from src.privacy.attacks.auditing import many_run_epsilon
from src.privacy.attacks.inversion import painted, patch_pixels
from src.privacy.attacks.membership import (
    Asked,
    Attack,
    Tracing,
    core_scores,
    guess,
    reach,
    worst_patches,
)
from src.privacy.mechanisms.denoise import shrunk
from src.privacy.mechanisms.gaussian import dp_gaussian
from src.privacy.queries import Means, Moments, contribution, summed
from src.privacy.runner import (
    Answer,
    Step,
    Sums,
    Terms,
    in_process,
    replayed,
    run_mechanism,
    seeded_noise,
    system_noise,
)

DELTA = 1e-5


def images(count: int, dim: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0.5, 1, (20, dim)) for _ in range(count)]


def asked_at(epsilon: float, *asks, dim: int = 3) -> list[Asked]:
    """Steps of a private mechanism on 50 images, and a canary that is one patch all over."""
    terms, held = Terms(mu_for(epsilon, DELTA)), images(50, dim)
    canary = worst_patches(np.full((1, dim), 0.4))
    found = []
    for ask in asks:
        step = Step("step", "sums", ask, tuple(1 / (2 * len(asks)) for _ in ask.blocks))
        sums = Sums(summed(ask, held), len(held))
        found.append(Asked(step, terms.releases(step), sums, contribution(ask, canary)))
    return found


def test_many_runs_of_the_core_come_near_the_claim_and_not_above_it() -> None:
    asked = asked_at(4, *(Moments(np.full(3, c), 0.3, 0.1) for c in (0.3, 0.4)))
    assert reach(asked) == pytest.approx(1, abs=1e-6)
    scores = core_scores(asked, seeded_noise(0), 20_000)
    assert 0.9 * 4 <= many_run_epsilon(*scores, DELTA) <= 4


@pytest.mark.parametrize("where", ["sigma", "noise"])
def test_noise_for_one_patch_of_an_image_is_caught(where: str) -> None:
    asked, noise = asked_at(1, Moments(np.full(3, 0.3), 0.3, 0.1)), system_noise
    if where == "sigma":
        less = [replace(r, sigma=r.sigma / 28) for r in asked[0].releases]
        asked = [replace(asked[0], releases=less)]
    else:
        noise = lambda count: system_noise(count) / 28  # noqa: E731
    told: list[tuple[int, int]] = []
    scores = core_scores(asked, noise, 1000, lambda *now: told.append(now))
    assert many_run_epsilon(*scores, DELTA) > 5
    assert told == [(500, 1000), (1000, 1000)]


def test_a_canary_opposite_to_the_mean_reaches_every_limit() -> None:
    for ask in (Means(np.zeros(3), 0.8), Moments(np.full(3, 0.4), 0.3, 0.14)):
        [one] = asked_at(1, ask)
        for given, block in zip(one.given, ask.blocks, strict=True):
            assert np.linalg.norm(given) == pytest.approx(block.limit)
    assert np.linalg.norm(worst_patches(np.zeros((2, 3)))[0]) == 1


def test_tracing_is_the_best_linear_estimate() -> None:
    """Worked out as the conditional mean of jointly Gaussian numbers."""
    rng = np.random.default_rng(0)
    vectors, known = rng.normal(size=(5, 4)), rng.normal(size=4)
    sums, sigma, share = rng.normal(size=4), 0.7, 0.3
    tracing = Tracing(5, share)
    tracing.add([vectors], Answer((sums,), (sigma,), 5), [known])
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
        tracing.add([vectors], Answer((sums,), (sigma,), 40))
        found = guess(tracing.scores(), inside, 1.0)
        assert found.guesses == 40
        if right:
            assert found.right >= right - 2 * abs(int(inside.sum()) - 20)
            assert found.epsilon(0.0, 0.95) > 1
        else:
            assert found.epsilon(0.0, 0.95) < 0.5


def test_guesses_are_of_the_ends_only() -> None:
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    inside = np.array([True, False, True, False, True, False])
    found = guess(scores, inside, 2 / 3)
    assert (found.canaries, found.guesses, found.right) == (6, 4, 3)


def test_attack_has_the_keys_of_the_file() -> None:
    figures = Attack(np.zeros(3), np.ones(20)).figures()
    assert figures["auc"] == figures["tpr_at_1_percent"] == figures["tpr_at_0.1_percent"] == 1
    assert (figures["members"], figures["others"]) == (3, 20)


def test_replay_asks_what_the_run_asked() -> None:
    answers: list[Answer] = []
    made = run_mechanism(
        dp_gaussian(3),
        in_process([images(30, 3)]),
        Terms(1.0),
        seeded_noise(0),
        list,
        keep=answers.append,
    )
    pairs, bank = replayed(dp_gaussian(3), answers)
    np.testing.assert_array_equal(bank.basis, made.basis)
    assert [step.name for step, _ in pairs] == ["centre", "moments"]
    mean, sigma = (each[0] / answers[0].records for each in (answers[0].sums, answers[0].sigmas))
    centre = shrunk(mean[None], np.array([sigma]))[0]
    np.testing.assert_array_equal(pairs[1][0].ask.centre, centre)
    for other, said in ((answers[:1], "1 times"), (answers[::-1], "blocks"), ([], "0 times")):
        with pytest.raises(ValueError, match=said):
            replayed(dp_gaussian(3), other)


def test_squares_of_all_patches_make_the_image_again() -> None:
    image = np.random.default_rng(0).random((40, 48))
    squares = patch_pixels(image, (5, 6))
    assert squares.shape == (30, 256)
    whole = painted(image.shape, (5, 6), np.arange(30), squares)
    np.testing.assert_allclose(whole, image)
    one = painted(image.shape, (5, 6), np.array([8]), squares[[8]])
    rows, columns = np.nonzero(np.isfinite(one))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 19, 12, 27)
    assert math.isnan(one[0, 0])
