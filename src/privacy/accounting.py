"""Exact accounting of Gaussian noise: the (ε, δ) guarantee of several noisy sums together.

A sum that one record changes by at most Δ (L2 norm), with noise of standard deviation σ, is
μ-Gaussian differentially private for μ = Δ/σ. Releases compose to the root of the sum of their μ².
μ is equivalent to the curve δ(ε) of `delta_of` (Dong, Roth and Su, Gaussian Differential Privacy,
2022, corollaries 2.13 and 3.3; Balle and Wang, 2018, theorem 8). Nothing here is an approximation.
"""

from collections.abc import Callable, Iterable
from math import exp, expm1, fsum, isfinite, sqrt

from scipy.special import log_ndtr


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest δ for which μ-Gaussian privacy is (ε, δ)-private; in [0, 1].

    δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ), by logarithms, so that a large ε does not overflow.

    Raises:
        ValueError: an argument is negative or infinite.
    """
    if not (isfinite(mu) and isfinite(epsilon) and mu >= 0 and epsilon >= 0):
        raise ValueError(f"μ and ε must be finite and not negative, not {mu} and {epsilon}")
    if mu == 0:
        return 0.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return max(0.0, -exp(first) * expm1(min(0.0, second - first)))


def mu_for(epsilon: float, delta: float) -> float:
    """The largest μ that is (ε, δ)-private, rounded down to the last bit.

    Raises:
        ValueError: ε is negative or infinite, or δ is not between 0 and 1.
    """
    _check_delta(delta)
    return _bisect(lambda mu: delta_of(mu, epsilon) > delta)[0]


def epsilon_for(mu: float, delta: float) -> float:
    """The smallest ε for which μ-Gaussian privacy is (ε, δ)-private, rounded up to the last bit.

    Raises:
        ValueError: μ is negative or infinite, or δ is not between 0 and 1.
    """
    _check_delta(delta)
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    return _bisect(lambda epsilon: delta_of(mu, epsilon) <= delta)[1]


def compose(mus: Iterable[float]) -> float:
    """μ of several releases together, each of which may depend on the earlier ones."""
    return sqrt(fsum(mu * mu for mu in mus))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"δ must lie between 0 and 1, not {delta}")


def _bisect(holds: Callable[[float], bool]) -> tuple[float, float]:
    """Neighbouring floats above 0; the second is the first for which a monotone condition holds.

    SciPy's root finders return either side of the root; a guarantee needs the safe one.
    """
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high
