"""What client and server tell each other, as plain data; without torch, so it is quick to load."""

from dataclasses import dataclass

import numpy as np

QUANTILES = 101


class BankRefused(ValueError):
    """A client's bank that cannot be merged; the message says why."""


@dataclass(frozen=True)
class Holding:
    """How much a client holds of one bank's images.

    Attributes:
        images: training images.
        patches: patches those have.
        share: rows the client would keep by itself; what it adds to the merged bank's budget.
    """

    images: int
    patches: int
    share: int


@dataclass(frozen=True)
class Survey:
    """What a client says of one bank before it sends rows: how many cover how much.

    Attributes:
        holding: what it holds.
        counts: [m] int64, ascending: numbers of rows it could send.
        radii: [m], never rising: covering radius of its patches by so many of them, and by the
            bank that is there already. Both empty where only the holding was asked for.
    """

    holding: Holding
    counts: np.ndarray
    radii: np.ndarray


@dataclass(frozen=True)
class ClientBank:
    """A client's coreset of one bank's patches, as it was sent.

    Attributes:
        features: [n, D] in the order picked, decoded; of several rounds one after the other.
        radius: every patch of the client lies within it of `features`, or of the bank that was
            there before (Euclidean; what coding does to rows included).
        share_radius: every patch lies within it of the client's own bank, its share.
        holding: what is behind it.
    """

    features: np.ndarray
    radius: float
    share_radius: float
    holding: Holding


@dataclass(frozen=True)
class Calibration:
    """How a client's normal training images score with a bank, their own rows left out.

    Attributes:
        quantiles: [101] of their image scores; empty where no image could be judged.
        images: how many could.
        radius: covering radius, measured: the largest distance of any of their patches.
    """

    quantiles: np.ndarray
    images: int
    radius: float
