"""Noise on a bank's vectors is what it says, and promises nothing for images."""

import math

import numpy as np
import pytest

from src.privacy.attacks.embedding_noise import image_epsilon, legacy_embedding_noise
from src.privacy.ledger import Budget, BudgetExceeded, Ledger, guarantee
from src.privacy.runner import seeded_noise


def test_noise_is_added_and_nothing_is_promised() -> None:
    rows = np.ones((500, 8), np.float32)
    noisy, release = legacy_embedding_noise(rows, 0.5, seeded_noise(0))
    assert noisy.dtype == np.float32
    assert (noisy - rows).std() == pytest.approx(0.5, rel=0.05)
    assert guarantee(Ledger().adding([release])).startswith("Guarantee: none at image level")
    with pytest.raises(BudgetExceeded, match="would bring ε to inf"):
        Ledger(Budget(8, 1e-5, 100)).adding([release])


def classic_sigma(epsilon: float, delta: float = 1e-5) -> float:
    """The textbook's noise for a sensitivity of 1, as such claims are made with it."""
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


@pytest.mark.parametrize(("claimed", "left_out", "replaced"), [(1, 40, 115), (10, 1917, 7166)])
def test_a_claim_for_single_vectors_is_a_large_one_for_images(claimed, left_out, replaced) -> None:
    sigma = classic_sigma(claimed)
    assert image_epsilon(1.0, 784, sigma, 1e-5) == pytest.approx(left_out, rel=0.02)
    assert image_epsilon(2.0, 784, sigma, 1e-5) == pytest.approx(replaced, rel=0.01)
