"""A private threshold: a normal law of the training images' log scores under a private bank.

A private bank hardly depends on any single image, so images that helped to make it score as fresh
ones do. The threshold follows from the law's mean and deviation.
"""

from dataclasses import replace
from math import log

import numpy as np
from scipy.special import ndtr, ndtri

from src.privacy.queries import ScoreQuery
from src.privacy.runner import Mechanism, NoisySums, PrivateBank, Step

# the histogram runs from a quarter of the bank's spread to eight times it
LOWEST, HIGHEST, BINS = 1 / 4, 8.0, 32


def with_threshold(mechanism: Mechanism, part: float) -> Mechanism:
    """A mechanism that also spends a part of its budget, in (0, 1), on the scores of its bank."""
    reply: NoisySums | None = None
    try:
        while True:
            step = mechanism.send(reply)  # type: ignore[arg-type]  # None starts a generator
            fractions = tuple(fraction * (1 - part) for fraction in step.fractions)
            reply = yield replace(step, fractions=fractions)
    except StopIteration as stop:
        bank: PrivateBank = stop.value
    low, high = bank.spread * LOWEST, bank.spread * HIGHEST
    query = ScoreQuery(bank.rows, bank.origin, bank.basis, low, high, BINS)
    reply = yield Step("threshold", "how many images' scores lie in each bin", query, (part,))
    mean, deviation = fit_normal(reply.vectors[0] / reply.records)
    width = log(high / low)
    return replace(bank, log_scores=(log(low) + width * mean, width * deviation))


def fit_normal(shares: np.ndarray) -> tuple[float, float]:
    """Mean and deviation, on a scale from 0 to 1, of the normal law closest to a noisy histogram.

    By least squares, which is maximum likelihood for equal Gaussian noise on all bins, over a grid
    of a tenth of a bin.

    Args:
        shares: [B], of all values in equal bins from 0 to 1.
    """
    bins = len(shares)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    means = np.linspace(0, 1, 10 * bins + 1)
    deviations = np.geomspace(0.2, bins / 4, 60) / bins
    below = ndtr((edges - means[:, None, None]) / deviations[:, None])
    expected = np.diff(below, axis=2, prepend=0.0, append=1.0)
    error = ((expected - shares) ** 2).sum(2)
    mean, deviation = np.unravel_index(error.argmin(), error.shape)
    return float(means[mean]), float(deviations[deviation])


def threshold_of(log_scores: tuple[float, float], false_alarm_rate: float) -> float:
    """Image score that this share of normal images exceeds, if log scores are normal.

    Args:
        log_scores: mean and standard deviation, as `PrivateBank.log_scores`.
        false_alarm_rate: in (0, 1).
    """
    mean, deviation = log_scores
    return float(np.exp(mean + deviation * ndtri(1 - false_alarm_rate)))
