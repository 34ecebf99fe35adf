"""Lower bounds on ε: the smallest ε that is consistent with what attacks on a mechanism achieve.

A bound holds with its confidence, whatever the mechanism is. Above the claimed ε it shows a bug or
a false claim. Below, it shows only how good the attack was.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm

from src.privacy.accounting import epsilon_for

CONFIDENCE = 0.95
MAX_EPSILON = 1000.0  # above which no bound is sought
QUANTILES = np.linspace(0.001, 0.999, 199)  # of the scores, tried as thresholds


@dataclass(frozen=True)
class Guesses:
    """How many of an attacker's guesses about canaries, in or out, were right."""

    canaries: int
    guesses: int
    right: int


def guess(scores: np.ndarray, inside: np.ndarray, part: float) -> Guesses:
    """Guess "in" for the canaries with the largest scores, "out" for as many with the smallest.

    Args:
        scores: [m], larger for canaries that seem to be in.
        inside: [m] bool, whether each canary was in.
        part: of the canaries to guess, chosen before the scores are seen.
    """
    half = round(part * len(scores) / 2)
    order = np.argsort(scores, kind="stable")
    lowest, highest = order[:half], order[len(order) - half :]
    right = int((~inside[lowest]).sum() + inside[highest].sum())
    return Guesses(len(scores), 2 * half, right)


def one_run_epsilon(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """Smallest ε after one run (Steinke, Nasr and Jagielski, 2023, arXiv 2305.08846).

    Each canary was in with probability one half, independently of the others.

    Args:
        guesses: of some of the canaries.
        delta: δ of the claim.
        confidence: of the bound.

    Raises:
        ValueError: the counts do not agree, or δ is outside [0, 1).
    """
    canaries, count, right = guesses.canaries, guesses.guesses, guesses.right
    if not (0 <= right <= count <= canaries and canaries > 0 and 0 <= delta < 1):
        raise ValueError(
            f"{right} right of {count} guesses on {canaries} canaries at δ = {delta} do not agree"
        )

    def excess(epsilon: float) -> float:
        return _chance(canaries, count, right, delta, epsilon) - (1 - confidence)

    return 0.0 if excess(0.0) > 0 else float(brentq(excess, 0.0, MAX_EPSILON))


def _chance(canaries: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Largest probability of so many right guesses about an (ε, δ)-private mechanism.

    With δ = 0 each guess is right with probability 1 / (1 + e^−ε) at most, whatever the others are.
    δ lifts the count by i with probability 2 m δ / i at most, for any i.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    pure = float(binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return pure
    steps = np.arange(1, right + 1)
    missed_by = np.cumsum(binom.pmf(right - steps, guesses, chance))
    return min(1.0, pure + 2 * canaries * delta * float((missed_by / steps).max()))


def many_run_epsilon(
    without: np.ndarray,
    given: np.ndarray,
    threshold: float,
    delta: float,
    confidence: float = CONFIDENCE,
) -> float:
    """Smallest ε from independent runs of a mechanism with Gaussian noise.

    Upper ends of both error rates (Clopper and Pearson) give μ ≥ Φ⁻¹(1 − FPR) − Φ⁻¹(FNR), and μ
    gives ε (Nasr et al., 2023, arXiv 2302.07956).

    Args:
        without, given: scores [N] and [M] of runs without a canary and with it, larger with it.
            Scores of several images in one run are not independent.
        threshold: of the scores, chosen before any is seen.
        delta: δ of the claim.
        confidence: of the bound.
    """
    false_positive, false_negative = _error_rates(without, given, threshold, confidence)
    mu = float(norm.isf(false_positive) - norm.ppf(false_negative))
    return epsilon_for(max(0.0, mu), delta)


def many_run_bound(
    without: np.ndarray, given: np.ndarray, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Smallest ε from independent runs, whatever the noise is; arguments as `many_run_epsilon`.

    (ε, δ)-privacy demands of any test that 1 − FNR ≤ δ + e^ε FPR, and the same with the two rates
    exchanged (Kairouz, Oh and Viswanath, 2015, theorem 2.1). Half of the runs choose the threshold
    and the other half is judged. With n judged runs of each kind, no bound above about ln(n / 3.7)
    is possible at 95 %.

    Raises:
        ValueError: there are fewer than two scores of a kind.
    """
    if min(len(without), len(given)) < 2:
        raise ValueError("a bound over many runs needs two runs with and two without the canary")

    def bound_at(runs: slice, threshold: float) -> float:
        positive, negative = _error_rates(without[runs], given[runs], threshold, confidence)
        ratios = (1 - delta - negative) / positive, (1 - delta - positive) / negative
        return math.log(max(*ratios, math.exp(-MAX_EPSILON / 2)))

    choosing, judging = slice(0, None, 2), slice(1, None, 2)
    scores = np.concatenate([without[choosing], given[choosing]])
    thresholds = np.unique(np.quantile(scores, QUANTILES))
    best = max(thresholds, key=lambda threshold: bound_at(choosing, threshold))
    return max(0.0, bound_at(judging, best))


def _error_rates(
    without: np.ndarray, given: np.ndarray, threshold: float, confidence: float
) -> list[float]:
    """Upper ends of the false positive and the false negative rate, which hold together."""
    rates = []
    for errors in (without > threshold, given <= threshold):
        count, total = int(errors.sum()), len(errors)
        end = beta.isf((1 - confidence) / 2, count + 1, total - count) if count < total else 1.0
        rates.append(float(end))
    return rates
