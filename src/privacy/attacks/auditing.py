"""Audits: what an attacker finds out, and the least ε that is consistent with it.

A lower bound holds with its confidence whatever the mechanism is. Above the claimed ε it shows a
bug or a false claim; below, it shows nothing but how good the attack was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom, norm

from src.privacy.accounting import epsilon_for
from src.privacy.runner import Noise

CONFIDENCE = 0.95
HALVINGS = 60
MOST = 1000.0  # ε above which no bound is sought
DRAWN = 2**20  # noise values drawn at a time
TRIED = np.linspace(0.001, 0.999, 199)  # quantiles of the scores, as thresholds


@dataclass(frozen=True)
class Membership:
    """How well a score tells training images from others: true positive rates at false ones."""

    auc: float
    at_1_percent: float
    at_01_percent: float


def membership(members: np.ndarray, others: np.ndarray) -> Membership:
    """Tell members by small scores, such as the least distance of an image's patches to a bank.

    Args:
        members: [M] scores of images that were in.
        others: [N] of images from the same source that were not.

    Raises:
        ValueError: one of them is empty, or scores are not numbers.
    """
    members, others = np.sort(np.asarray(members, float)), np.sort(np.asarray(others, float))
    if not (members.size and others.size and np.isfinite([members.sum(), others.sum()]).all()):
        raise ValueError("membership needs finite scores of members and of others")
    below = np.searchsorted(others, members, "left")
    upto = np.searchsorted(others, members, "right")
    auc = 1 - float((below + upto).mean()) / (2 * len(others))

    def caught(rate: float) -> float:
        allowed = math.floor(rate * len(others) + 1e-9)  # so many others may be taken for members
        return float((members < others[allowed]).mean()) if allowed < len(others) else 1.0

    return Membership(auc, caught(0.01), caught(0.001))


def one_run_epsilon(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Least ε after one run (Steinke, Nasr and Jagielski, 2023, arXiv 2305.08846).

    Each canary was in with probability one half, independently; the attacker guessed some of them.

    Args:
        canaries: how many there were.
        guesses: of how many it was guessed whether they were in.
        right: how many guesses were right.
        delta: δ of the claim.
        confidence: of the bound.

    Raises:
        ValueError: counts that do not agree, δ outside [0, 1).
    """
    if not (0 <= right <= guesses <= canaries and canaries > 0 and 0 <= delta < 1):
        raise ValueError(
            f"{right} right of {guesses} guesses on {canaries} canaries at δ = {delta} do not agree"
        )
    low, high = 0.0, MOST
    if _chance(canaries, guesses, right, delta, low) > 1 - confidence:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _chance(canaries, guesses, right, delta, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _chance(canaries: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Bound on how likely an (ε, δ)-private mechanism lets so many guesses be right, or more.

    Were δ 0, each guess would be right with probability 1 / (1 + e^−ε) at most, whatever the others
    are. δ lets the count rise by i with probability 2 m δ / i at most, for any i.
    """
    chance = 1 / (1 + math.exp(-epsilon))
    sure = float(binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return sure
    steps = np.arange(1, right + 1)
    short = np.cumsum(binom.pmf(right - steps, guesses, chance))  # by at most so many
    return min(1.0, sure + 2 * canaries * delta * float((short / steps).max()))


def canary_scores(
    without: Sequence[np.ndarray],
    given: Sequence[np.ndarray],
    sigmas: Sequence[float],
    noise: Noise,
    runs: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [runs] of releases without a canary and with it: the likelihood ratio's logarithm.

    Args:
        without: each block's sum over all other images.
        given: what the canary adds to each block.
        sigmas: of each block's noise, as the mechanism draws it.
        noise: that the mechanism draws.
        runs: how many releases of each kind.
    """
    scores = np.zeros((2, runs))
    for total, canary, sigma in zip(without, given, sigmas, strict=True):
        step = max(1, DRAWN // len(total))
        for start in range(0, runs, step):
            some = min(step, runs - start)
            for side, base in enumerate((total, total + canary)):
                drawn = base + sigma * noise(some * len(base)).reshape(some, -1)
                scores[side, start : start + some] += (drawn - total) @ canary / sigma**2
    return scores[0], scores[1]


def many_run_bound(
    without: np.ndarray, given: np.ndarray, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Least ε by scores of independent runs, as `many_run_mu`, whatever the noise is.

    (ε, δ)-privacy asks of any test that 1 − FNR ≤ δ + e^ε FPR, and the same with the two exchanged
    (Kairouz, Oh and Viswanath, 2015, theorem 2.1). With n runs of a kind that judge, no more than
    about ln(n / 3.7) can be shown at 95 %.

    Args:
        without, given: [N] and [M] scores, two of each at least, larger with the canary.
        delta: δ of the claim.
        confidence: of the bound.

    Raises:
        ValueError: fewer scores.
    """
    false_positive, false_negative = _error_rates(
        without, given, lambda wrong, missed: _epsilon_at(wrong, missed, delta), confidence
    )
    return max(0.0, _epsilon_at(false_positive, false_negative, delta))


def _epsilon_at(false_positive: float, false_negative: float, delta: float) -> float:
    ratios = (
        (1 - delta - false_negative) / false_positive,
        (1 - delta - false_positive) / false_negative,
    )
    return math.log(max(*ratios, math.exp(-MOST / 2)))


def many_run_mu(
    without: np.ndarray,
    given: np.ndarray,
    confidence: float = CONFIDENCE,
    threshold: float | None = None,
) -> float:
    """Least μ by the scores of independent runs without a canary and with it, which are larger.

    Clopper and Pearson's upper ends of the two error rates at a threshold give
    μ ≥ Φ⁻¹(1 − FPR) − Φ⁻¹(FNR) (Nasr et al., 2023, arXiv 2302.07956).

    Args:
        without, given: [N] and [M] scores, two of each at least. Runs must be independent: scores
            of several images in one run are not.
        confidence: of the bound.
        threshold: chosen before any score was seen; without, half of the runs choose it and the
            others judge.
    """
    return max(0.0, _mu_at(*_error_rates(without, given, _mu_at, confidence, threshold)))


def _mu_at(false_positive: float, false_negative: float) -> float:
    return float(norm.isf(false_positive) - norm.ppf(false_negative))


def _error_rates(
    without: np.ndarray,
    given: np.ndarray,
    bound: Callable[[float, float], float],
    confidence: float,
    threshold: float | None = None,
) -> tuple[float, float]:
    """Upper ends of both error rates at a threshold.

    If it is not given one half of the runs chooses it, by the largest bound; the other judges it.
    """
    if min(len(without), len(given)) < 2:
        raise ValueError("a bound over many runs needs two runs with and two without the canary")

    def at(some: slice, limit: float) -> tuple[float, float]:
        out, in_ = without[some], given[some]
        false_positive = _upper_end(int((out > limit).sum()), len(out), confidence)
        false_negative = _upper_end(int((in_ <= limit).sum()), len(in_), confidence)
        return false_positive, false_negative

    if threshold is not None:
        return at(slice(None), threshold)
    choosing, judging = slice(0, None, 2), slice(1, None, 2)
    limits = np.unique(np.quantile(np.concatenate([without[choosing], given[choosing]]), TRIED))
    return at(judging, max(limits, key=lambda limit: bound(*at(choosing, limit))))


def _upper_end(count: int, of: int, confidence: float) -> float:
    """Upper end of the interval for a rate; both rates' hold together with the confidence."""
    return float(beta.isf((1 - confidence) / 2, count + 1, of - count)) if count < of else 1.0


def many_run_epsilon(
    without: np.ndarray,
    given: np.ndarray,
    delta: float,
    confidence: float = CONFIDENCE,
    threshold: float | None = None,
) -> float:
    """Least ε at δ, by `many_run_mu`, of a mechanism whose noise is Gaussian.

    Of any other mechanism the bound on μ holds, but not its translation.
    """
    return epsilon_for(many_run_mu(without, given, confidence, threshold), delta)
