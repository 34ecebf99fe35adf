"""The accounting is exact: known values, an integral by hand, and Google's accountant agree."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from src.privacy.accounting import compose, delta_of, epsilon_for, mu_for

EPSILONS = (0.1, 0.5, 1, 2, 4, 8, 16, 40)
DELTAS = (1e-9, 1e-6, 1e-5, 1e-3)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 3.7306), (2, 1.9938), (4, 1.0812), (8, 0.6002)])
def test_noise_for_a_sensitivity_of_one(epsilon: float, sigma: float) -> None:
    assert 1 / mu_for(epsilon, 1e-5) == pytest.approx(sigma, abs=5e-5)


def loss_integral(mu: float, epsilon: float) -> float:
    """δ as the integral of how far one density exceeds e^ε times the other."""
    x = np.linspace(-15, 15 + mu, 2_000_001)
    excess = np.maximum(0, norm.pdf(x, mu) - np.exp(epsilon) * norm.pdf(x))
    return float(np.trapezoid(excess, x))


@pytest.mark.parametrize("mu", [0.1, 0.5, 1, 3])
@pytest.mark.parametrize("epsilon", [0, 0.5, 2, 5])
def test_delta_is_the_integral_of_the_excess(mu: float, epsilon: float) -> None:
    assert delta_of(mu, epsilon) == pytest.approx(loss_integral(mu, epsilon), abs=1e-9)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("delta", DELTAS)
def test_agrees_with_the_reference_accountant(epsilon: float, delta: float) -> None:
    # no dev extra: it asks for attrs below 24. pip install --no-deps dp-accounting; dm-tree
    reference = pytest.importorskip("dp_accounting")
    sigma = reference.get_sigma_gaussian(epsilon, delta)
    assert 1 / mu_for(epsilon, delta) == pytest.approx(sigma, rel=1e-3)
    assert epsilon_for(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-3)
    three = reference.ComposedDpEvent([reference.GaussianDpEvent(sigma * f) for f in (1, 2, 3)])
    together = reference.pld.PLDAccountant().compose(three).get_epsilon(delta)
    mine = epsilon_for(compose([1 / sigma, 1 / (2 * sigma), 1 / (3 * sigma)]), delta)
    assert mine == pytest.approx(together, rel=1e-3)


small = st.floats(1e-3, 30)


@given(small, st.floats(0, 100), st.sampled_from(DELTAS))
def test_what_is_asked_for_is_never_exceeded_and_nearly_used(mu, epsilon, delta: float) -> None:
    allowed = mu_for(epsilon, delta)
    assert delta_of(allowed, epsilon) <= delta
    assert delta_of(allowed * (1 + 1e-9), epsilon) > delta * (1 - 1e-6)
    enough = epsilon_for(mu, delta)
    assert delta_of(mu, enough) <= delta
    assert enough == 0 or delta_of(mu, enough * (1 - 1e-9)) > delta * (1 - 1e-6)


@given(small, small, st.floats(0, 50))
def test_less_noise_and_a_smaller_epsilon_need_a_larger_delta(one, other, epsilon: float) -> None:
    low, high = sorted((one, other))
    assert delta_of(low, epsilon) <= delta_of(high, epsilon) + 1e-12
    assert delta_of(low, epsilon + 1) <= delta_of(low, epsilon) + 1e-12


def test_a_large_epsilon_neither_overflows_nor_vanishes() -> None:
    # as μ grows, ε nears μ²/2 + μ times the normal quantile of 1 − δ
    for mu in (40.0, 1e3, 1e6):
        near = mu * mu / 2 + mu * norm.isf(1e-5)
        assert epsilon_for(mu, 1e-5) == pytest.approx(near, rel=2e-2)
    assert delta_of(1e-8, 1e3) == 0
    assert delta_of(0.0, 0.0) == 0
    assert delta_of(1e9, 1.0) == 1


@given(st.lists(st.floats(0, 10), max_size=6))
def test_releases_compose_as_one_of_independent_coordinates(mus: list[float]) -> None:
    assert compose(mus) == pytest.approx(float(np.linalg.norm(mus)) if mus else 0.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: delta_of(-1, 1), "not negative"),
        (lambda: delta_of(math.inf, 1), "finite"),
        (lambda: mu_for(math.nan, 1e-5), "finite"),
        (lambda: mu_for(1, 0), "between 0 and 1"),
        (lambda: epsilon_for(1, 1), "between 0 and 1"),
    ],
)
def test_what_cannot_be_accounted_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
