"""A run's private mechanism as its settings plan it: all of it public, and nothing spent yet."""

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from src.privacy.ledger import Adjacency, Budget, Release, Unit
from src.privacy.mechanisms.gaussian import GAUSSIAN, GaussianSettings, dp_gaussian
from src.privacy.runner import Mechanism, Terms, planned, with_scores


@dataclass(frozen=True)
class Plan:
    """What is to be released, and what all of it may cost.

    Attributes:
        epsilon, delta: of the guarantee, over all releases together.
        unit, adjacency: who is protected, from what change.
        scores: part of the budget that the threshold costs.
        gaussian: bounds and split of dp_gaussian.
    """

    epsilon: float
    delta: float
    unit: Unit = "image"
    adjacency: Adjacency = "null"
    scores: float = 0.02
    gaussian: GaussianSettings = GAUSSIAN

    def budget(self, records: int) -> Budget:
        """The budget of a run over so many images, or clients.

        Raises:
            ValueError: ε or δ cannot be for so many.
        """
        return Budget(self.epsilon, self.delta, records, self.unit, self.adjacency)

    def terms(self, mu: float, banks: int) -> Terms:
        """What the mechanism of each of so many banks may cost, of μ for all of them.

        An image is in one of them; a client may be in all, and what they cost adds up.
        """
        share = sqrt(banks) if self.unit == "client" else 1.0
        return Terms(mu / share, self.adjacency, self.unit)

    def start(self, dim: int, public: np.ndarray | None = None) -> Mechanism:
        """The mechanism of one bank, fresh.

        Args:
            dim: D of its patches.
            public: [N, D] patches of public images, of unit length.
        """
        return with_scores(dp_gaussian(dim, self.gaussian, public), self.scores)

    def releases(self, terms: Terms, banks: dict[str, Mechanism]) -> list[Release]:
        """All that fresh mechanisms of some banks will release."""
        return [
            release
            for name, mechanism in banks.items()
            for release in planned(mechanism, replace(terms, bank=name))
        ]
