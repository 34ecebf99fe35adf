"""A canary comes near every claim, and catches noise that is too small however it came to be so."""

from dataclasses import replace

import numpy as np
import pytest

from src.privacy.accounting import mu_for
from src.privacy.attacks.auditing import many_run_epsilon
from src.privacy.attacks.canary import (
    CanaryStep,
    canary_patches,
    canary_reach,
    canary_scores,
    likelihood_threshold,
)
from src.privacy.noise import seeded_noise, system_noise
from src.privacy.queries import MeanQuery, MomentQuery, clipped_vectors, sum_records
from src.privacy.runner import PrivacyParams, Step, Sums

DELTA = 1e-5
PATCHES = 784  # of an image


def steps_at(epsilon: float, *queries, dim: int = 3) -> list[CanaryStep]:
    """Steps of a private mechanism on 50 images, and the change that a canary makes."""
    rng = np.random.default_rng(0)
    images = [rng.normal(0.5, 1, (20, dim)) for _ in range(50)]
    params, canary = PrivacyParams(mu_for(epsilon, DELTA)), canary_patches(np.full((1, dim), 0.4))
    steps = []
    for query in queries:
        part = 1 / (len(queries) * len(query.blocks))
        step = Step("step", "sums", query, tuple(part for _ in query.blocks))
        sums = Sums(sum_records(query, images), len(images))
        change = clipped_vectors(query, canary)
        steps.append(CanaryStep(step, params.releases(step), sums, change))
    return steps


@pytest.mark.parametrize(("epsilon", "runs"), [(1, 100_000), (2, 30_000), (4, 20_000), (8, 20_000)])
def test_many_runs_come_near_the_claim_and_not_above_it(epsilon: int, runs: int) -> None:
    queries = MomentQuery(np.full(3, 0.3), 0.3, 0.1), MeanQuery(np.zeros(3), 0.8)
    steps = steps_at(epsilon, *queries)
    assert canary_reach(steps) == pytest.approx(1, abs=1e-6)
    scores = canary_scores(steps, seeded_noise(epsilon), runs)
    bound = many_run_epsilon(*scores, likelihood_threshold(steps), DELTA)
    assert 0.9 * epsilon <= bound <= epsilon


@pytest.mark.parametrize("where", ["sigma", "noise"])
def test_noise_for_one_patch_of_an_image_is_caught(where: str) -> None:
    steps, noise = steps_at(1, MomentQuery(np.full(3, 0.3), 0.3, 0.1)), system_noise
    if where == "sigma":
        releases = [replace(r, sigma=r.sigma / PATCHES**0.5) for r in steps[0].releases]
        steps = [replace(steps[0], releases=releases)]
    else:
        noise = lambda count: system_noise(count) / PATCHES**0.5  # noqa: E731
    calls: list[tuple[int, int]] = []
    scores = canary_scores(steps, noise, 1000, lambda *call: calls.append(call))
    assert many_run_epsilon(*scores, likelihood_threshold(steps), DELTA) > 5
    assert calls == [(500, 1000), (1000, 1000)]


def test_a_canary_opposite_to_the_mean_reaches_every_limit() -> None:
    for query in (MeanQuery(np.zeros(3), 0.8), MomentQuery(np.full(3, 0.4), 0.3, 0.14)):
        [step] = steps_at(1, query)
        for change, block in zip(step.change, query.blocks, strict=True):
            assert np.linalg.norm(change) == pytest.approx(block.limit)
    assert np.linalg.norm(canary_patches(np.zeros((2, 3)))[0]) == 1
