"""Noise on a bank's vectors is what it says, and shows far too much of an image."""

import numpy as np
import pytest

from src.privacy.attacks.auditing import many_run_bound
from src.privacy.attacks.embedding_noise import (
    add_embedding_noise,
    noisy_row_scores,
    outlier_patches,
    sigma_for_vector,
    unit_rows,
)
from src.privacy.noise import seeded_noise, system_noise

DELTA = 1e-5


def test_noise_has_the_deviation_of_the_claim() -> None:
    rows = unit_rows(np.ones((500, 8)))
    sigma = sigma_for_vector(4, DELTA)
    assert sigma == pytest.approx(1.0812, abs=5e-5)
    noisy = add_embedding_noise(rows, sigma, seeded_noise(0))
    assert noisy.dtype == np.float32
    assert (noisy - rows).std() == pytest.approx(sigma, rel=0.05)


def test_a_claim_for_one_vector_is_false_for_an_image() -> None:
    rng = np.random.default_rng(0)
    rows, other = (outlier_patches(1, 16, 64, rng) for _ in range(2))
    scores = noisy_row_scores(rows, other, sigma_for_vector(4, DELTA), system_noise, 2000)
    assert many_run_bound(*scores, DELTA) > 4
    assert noisy_row_scores(rows, rows, 1.0, system_noise, 10)[0].tolist() == [0] * 10
