"""Exact accounting of Gaussian noise: what (ε, δ) releases of sums with noise add up to.

Noise of standard deviation σ on a sum that one record changes by at most Δ (L2 norm) is μ-Gaussian
differentially private with μ = Δ/σ; releases compose to the root of the sum of their μ²; and μ is
equivalent to the curve δ(ε) of `delta_of` (Dong, Roth and Su, Gaussian Differential Privacy, 2022,
corollaries 2.13 and 3.3; Balle and Wang, 2018, theorem 8). No step of it is an approximation.
"""

from collections.abc import Callable, Iterable, Sequence
from math import exp, expm1, fsum, isfinite, sqrt

from scipy.special import log_ndtr

HALVINGS = 200  # until neighbouring floating-point numbers are reached; it stops there


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest δ with which μ-Gaussian privacy is (ε, δ)-private; in [0, 1].

    δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), by logarithms, so that a large ε does not overflow.

    Raises:
        ValueError: a negative or infinite argument.
    """
    if not (isfinite(mu) and isfinite(epsilon) and mu >= 0 and epsilon >= 0):
        raise ValueError(f"μ and ε must be finite and not negative, not {mu} and {epsilon}")
    if mu == 0:
        return 0.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, -exp(first) * expm1(min(0.0, second - first)))


def mu_for(epsilon: float, delta: float) -> float:
    """The largest μ that is (ε, δ)-private; never too large, by the last bit.

    Raises:
        ValueError: ε negative or infinite, δ not between 0 and 1.
    """
    _check_delta(delta)
    return _crossing(lambda mu: delta_of(mu, epsilon) > delta)[0]


def epsilon_for(mu: float, delta: float) -> float:
    """The smallest ε for which μ-Gaussian privacy is (ε, δ)-private; never too small.

    Raises:
        ValueError: μ negative or infinite, δ not between 0 and 1.
    """
    _check_delta(delta)
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    return _crossing(lambda epsilon: delta_of(mu, epsilon) <= delta)[1]


def composed(mus: Iterable[float]) -> float:
    """μ of several releases together, each of which may depend on the ones before."""
    return sqrt(fsum(mu * mu for mu in mus))


def split_sigmas(
    mu: float, sensitivities: Sequence[float], fractions: Sequence[float]
) -> list[float]:
    """Standard deviations with which releases compose to μ: σ_j = Δ_j / (μ √f_j).

    Args:
        mu: of all together; above 0.
        sensitivities: Δ_j, the largest change of a release by one record, in L2 norm.
        fractions: f_j above 0, which add up to 1: what part of μ² each release may spend.

    Raises:
        ValueError: μ, a fraction or a sensitivity is not positive, or fractions do not add up to 1.
    """
    if not (mu > 0 and all(part > 0 for part in (*fractions, *sensitivities))):
        raise ValueError("μ, sensitivities and fractions of a budget must be above 0")
    if abs(fsum(fractions) - 1) > 1e-9:
        raise ValueError(f"the fractions of a budget add up to {fsum(fractions):g}, not 1")
    return [
        sensitivity / (mu * sqrt(fraction))
        for sensitivity, fraction in zip(sensitivities, fractions, strict=True)
    ]


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"δ must lie between 0 and 1, not {delta}")


def _crossing(holds: Callable[[float], bool]) -> tuple[float, float]:
    """Numbers next to each other above 0, the second of which is the first for which it holds."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high
