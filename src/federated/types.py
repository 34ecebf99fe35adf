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
    """How much a client holds for one bank."""

    images: int  # number of training images
    patches: int  # number of patches in them
    share: int  # rows the client keeps in its own bank, and adds to the budget of the merged bank


@dataclass(frozen=True)
class RadiusCurve:
    """How many rows of a client cover how much of its patches."""

    stats: ClientStats  # how much the client holds
    # [m] int64, ascending numbers of rows, from 0 if a merged bank exists, else from 1
    counts: np.ndarray
    # [m] float64, never rising: covering radius of the client's patches by its first `counts` rows
    # together with the merged bank (Euclidean)
    radii: np.ndarray


@dataclass(frozen=True)
class Bank:
    """Rows to score with."""

    features: np.ndarray  # [n, D], or [n, d] in the coordinates of `transform`
    # applied to patches before distances are taken; None leaves them as they are
    transform: "FeatureTransform | None" = None


@dataclass(frozen=True, kw_only=True)
class LocalBank(Bank):
    """The bank a client keeps for itself."""

    radius: float  # covering radius of the client's patches by it


@dataclass(frozen=True)
class ClientBank:
    """The rows a client has sent for one bank."""

    features: np.ndarray  # [n, D], decoded, in the order picked; rows of later rounds follow
    # every patch of the client lies within it of `features` or of the bank merged before
    # (Euclidean, coding errors included)
    radius: float
    share_radius: float  # covering radius of the client's patches by its local bank
    stats: ClientStats  # how much the client holds


@dataclass(frozen=True)
class SentRows:
    """Rows [n, D] that a client sent: as its images gave them, and as the server decodes them."""

    sources: np.ndarray
    decoded: np.ndarray


@dataclass(frozen=True)
class Certificate:
    """What a merged bank is known to cover."""

    radius: float  # every row that clients sent lies within it of the bank
    radius_bound: float  # every patch of every merged client lies within it of the bank
    # number of leading rows that selection over all patches of all clients would pick as well. It
    # stops growing when a client misses a round
    exact_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class MergedBank(Bank):
    """The bank merged from all clients."""

    # what it covers; None for a private bank, which certifies nothing
    certificate: Certificate | None = None
    # mean and standard deviation of the logarithm of normal image scores, for a private bank that
    # spent budget on them; else None
    log_scores: tuple[float, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """How a client's normal training images score with a bank that lacks their own rows."""

    quantiles: np.ndarray  # [101] quantiles of the image scores; empty if no image could be scored
    images: int  # number of images scored
    radius: float  # covering radius measured on the client's patches
