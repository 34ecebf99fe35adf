"""What client and server tell each other, as plain data; without torch, so it is quick to load."""

from dataclasses import dataclass

import numpy as np

QUANTILES = 101


class BankRefused(ValueError):
    """A client's bank that cannot be merged; the message says why."""


@dataclass(frozen=True)
class ClientBank:
    """A client's coreset of one bank's patches, as it is sent.

    Attributes:
        features: [n, D] in the order picked: the first `share` rows are the client's own bank.
        radius: every patch of the client lies within it of `features` (Euclidean).
        share: rows the client would keep by itself; what it adds to the merged bank's budget.
        share_radius: every patch lies within it of the first `share` rows.
        images: training images behind it.
        patches: patches those have.
    """

    features: np.ndarray
    radius: float
    share: int
    share_radius: float
    images: int
    patches: int


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
