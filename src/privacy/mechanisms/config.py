"""A run's private mechanism as its settings plan it: all of it public, and nothing spent yet."""

from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal, get_args

import numpy as np

from src.privacy.ledger import Adjacency, Budget, Release, Unit
from src.privacy.mechanisms.codebook import (
    CODEBOOK,
    CodebookSettings,
    dp_codebook,
    dp_gauss_codebook,
    k_means,
)
from src.privacy.mechanisms.gaussian import GAUSSIAN, GaussianSettings, dp_gaussian
from src.privacy.runner import Mechanism, Terms, planned, with_scores

Name = Literal["dp_gaussian", "dp_codebook", "dp_gauss_codebook"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Plan:
    """What is to be released, and what all of it may cost.

    Attributes:
        mechanism: which.
        epsilon, delta: of the guarantee, over all releases together.
        unit, adjacency: who is protected, from what change.
        scores: part of the budget that a threshold costs; 0 for none.
        gaussian, codebook: bounds and splits of the mechanisms.
        seed: of what mechanisms draw after the noise; it hides nothing.
    """

    mechanism: Name
    epsilon: float
    delta: float
    unit: Unit = "image"
    adjacency: Adjacency = "null"
    scores: float = 0.0
    gaussian: GaussianSettings = GAUSSIAN
    codebook: CodebookSettings = CODEBOOK
    seed: int = 0

    @property
    def needs_public(self) -> bool:
        """Whether it cannot do without public images."""
        return self.mechanism == "dp_codebook"

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

        Raises:
            ValueError: public images are needed, and there are none or too few.
        """
        match self.mechanism:
            case "dp_gaussian":
                made = dp_gaussian(dim, self.gaussian, public)
            case "dp_codebook":
                made = dp_codebook(self._anchors(public), self.codebook)
            case "dp_gauss_codebook":
                made = dp_gauss_codebook(dim, self.seed, self.codebook, self.gaussian, public)
        return with_scores(made, self.scores) if self.scores else made

    def _anchors(self, public: np.ndarray | None) -> np.ndarray:
        """Anchors [K, D] of cells: k-means on public patches."""
        cells, found = self.codebook.cells, 0 if public is None else len(public)
        if public is None or found < cells:
            raise ValueError(
                f"privacy.public-dir: public images have {found} patches, fewer than "
                f"privacy.cells = {cells}"
            )
        return k_means(public, cells, np.random.default_rng(self.seed))

    def releases(self, terms: Terms, banks: dict[str, Mechanism]) -> list[Release]:
        """All that fresh mechanisms of some banks will release."""
        return [
            release
            for name, mechanism in banks.items()
            for release in planned(mechanism, replace(terms, bank=name))
        ]
