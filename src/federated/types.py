"""What clients and server exchange about banks, as plain data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from src.models.feature_transform import FeatureTransform

QUANTILES = 101  # of a client's image scores in a calibration


class BankRefused(ValueError):
    """A client's reply that cannot be used; the message says why."""


@dataclass(frozen=True)
class ClientStats:
    """How much a client holds for one bank.

    Attributes:
        images: number of training images.
        patches: number of patches in them.
        share: rows the client keeps in its own bank, and adds to the budget of the merged bank.
    """

    images: int
    patches: int
    share: int


@dataclass(frozen=True)
class RadiusCurve:
    """How many rows of a client cover how much of its patches.

    Attributes:
        stats: how much the client holds.
        counts: [m] int64, ascending numbers of rows, from 0 if a merged bank exists, else from 1.
        radii: [m] float64, never rising: covering radius of the client's patches by its first
            `counts` rows together with the merged bank (Euclidean).
    """

    stats: ClientStats
    counts: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True)
class Bank:
    """Rows to score with.

    Attributes:
        features: [n, D], or [n, d] in the coordinates of `transform`.
        transform: applied to patches before distances are taken; None leaves them as they are.
    """

    features: np.ndarray
    transform: "FeatureTransform | None" = None


@dataclass(frozen=True, kw_only=True)
class LocalBank(Bank):
    """The bank a client keeps for itself.

    Attributes:
        radius: covering radius of the client's patches by it.
    """

    radius: float


@dataclass(frozen=True)
class ClientBank:
    """The rows a client has sent for one bank.

    Attributes:
        features: [n, D], decoded, in the order picked; rows of later rounds follow.
        radius: every patch of the client lies within it of `features` or of the bank merged
            before (Euclidean, coding errors included).
        share_radius: covering radius of the client's patches by its local bank.
        stats: how much the client holds.
    """

    features: np.ndarray
    radius: float
    share_radius: float
    stats: ClientStats


@dataclass(frozen=True)
class SentRows:
    """Rows [n, D] that a client sent: as its images gave them, and as the server decodes them."""

    sources: np.ndarray
    decoded: np.ndarray


@dataclass(frozen=True)
class Certificate:
    """What a merged bank is known to cover.

    Attributes:
        radius: every row that clients sent lies within it of the bank.
        radius_bound: every patch of every merged client lies within it of the bank.
        exact_rows: number of leading rows that selection over all patches of all clients would
            pick as well. It stops growing when a client misses a round.
    """

    radius: float
    radius_bound: float
    exact_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class MergedBank(Bank):
    """The bank merged from all clients.

    Attributes:
        certificate: what it covers; None for a private bank, which certifies nothing.
        log_scores: mean and standard deviation of the logarithm of normal image scores, for a
            private bank that spent budget on them; else None.
    """

    certificate: Certificate | None = None
    log_scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """How a client's normal training images score with a bank that lacks their own rows.

    Attributes:
        quantiles: [101] quantiles of the image scores; empty if no image could be scored.
        images: number of images scored.
        radius: covering radius measured on the client's patches.
    """

    quantiles: np.ndarray
    images: int
    radius: float
