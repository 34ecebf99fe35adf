"""The private mechanism of a run, as its settings describe it: public, and nothing spent yet."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from src.privacy.ledger import Adjacency, Budget, Unit
from src.privacy.mechanisms.gaussian import DEFAULTS, GaussianSettings, dp_gaussian
from src.privacy.mechanisms.threshold import with_threshold
from src.privacy.runner import Mechanism, PrivacyParams


@dataclass(frozen=True)
class MechanismConfig:
    """A mechanism and what it may cost."""

    epsilon: float
    delta: float
    unit: Unit = "image"
    adjacency: Adjacency = "null"
    threshold_part: float = 0.02  # part of the budget that the threshold costs
    gaussian: GaussianSettings = DEFAULTS  # limits and budget split of dp_gaussian

    def budget(self, records: int) -> Budget:
        """The budget of a run over this many images, or clients.

        Raises:
            ValueError: ε or δ does not fit so many records.
        """
        return Budget(self.epsilon, self.delta, records, self.unit, self.adjacency)

    def params(self, mu: float, banks: int, replayable: bool = False) -> PrivacyParams:
        """Parameters of each bank's mechanism, for μ over all banks.

        An image is in one bank. A client may be in all, and their costs add up.
        """
        share = sqrt(banks) if self.unit == "client" else 1.0
        return PrivacyParams(mu / share, self.adjacency, self.unit, replayable)

    def start(self, dim: int, public: np.ndarray | None = None) -> Mechanism:
        """A fresh mechanism for one bank.

        Args:
            dim: D of its patches.
            public: patches [N, D] of public images, of unit length.
        """
        return with_threshold(dp_gaussian(dim, self.gaussian, public), self.threshold_part)
