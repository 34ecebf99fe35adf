"""dp_codebook and dp_gauss_codebook: how much of each cell the images fill, and where in it.

Both give a bank of cell centres. The first takes its cells from public data; the second makes them
from a private Gaussian and moves them by private Lloyd rounds.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from src.privacy.mechanisms.denoise import shrunk
from src.privacy.mechanisms.gaussian import GAUSSIAN, Gaussian, GaussianSettings, fit_gaussian
from src.privacy.queries import Cells, closest
from src.privacy.runner import Answer, Mechanism, PrivateBank, Step

LLOYD_ROUNDS = 10  # of k-means on samples, which cost nothing
DRAWN = 64  # samples a cell


@dataclass(frozen=True)
class CodebookSettings:
    """Bounds and budget of the codebooks; public, so not to be tuned on what they protect.

    Attributes:
        cells: K.
        limit: the longest residuals of an image that count in full, over all cells.
        weights: part of a round that its weights cost; the residuals have the rest.
        least: how many deviations of the noise a cell's weight must pass for the cell to stay.
        gaussian: part of dp_gauss_codebook that the Gaussian costs; the rounds share the rest.
        rounds: private Lloyd rounds of dp_gauss_codebook.
        power: to what power the Gaussian's deviations scale the coordinates; 1 whitens, 0 leaves.
        told: leading coordinates in which dp_gauss_codebook moves its centres.
    """

    cells: int = 256
    limit: float = 0.3
    weights: float = 0.3
    least: float = 2.0
    gaussian: float = 0.4
    rounds: int = 2
    power: float = 0.5
    told: int = 32


CODEBOOK = CodebookSettings()


def dp_codebook(anchors: np.ndarray, settings: CodebookSettings = CODEBOOK) -> Mechanism:
    """The mechanism on public anchors [K, D], as of unit patches of public images."""
    ask = Cells(np.asarray(anchors, np.float64), settings.limit)
    moved, filled = yield from lloyd_round(ask, settings, 1.0, "cells")
    return PrivateBank(moved[filled])


def dp_gauss_codebook(
    dim: int,
    seed: int,
    settings: CodebookSettings = CODEBOOK,
    gaussian: GaussianSettings = GAUSSIAN,
    public: np.ndarray | None = None,
) -> Mechanism:
    """The mechanism that needs no public data.

    Args:
        dim: D.
        seed: of the samples that the anchors are made from; it hides nothing.
        settings, gaussian: bounds and split.
        public: [N, D] patches of public images, of unit length, for the Gaussian.
    """
    found = yield from fit_gaussian(dim, gaussian, settings.gaussian, public)
    basis = found.scaling(settings.power)
    centres = _sampled_centres(found, basis, settings.cells, np.random.default_rng(seed))
    part = (1 - settings.gaussian) / settings.rounds
    for number in range(settings.rounds):
        ask = Cells(centres, settings.limit, found.mean, basis, settings.told)
        centres, filled = yield from lloyd_round(ask, settings, part, f"Lloyd round {number + 1}")
    spread = float(np.sqrt((found.values ** (1 - settings.power)).sum()))
    return PrivateBank(centres[filled], found.mean, basis, spread)


def lloyd_round(
    ask: Cells, settings: CodebookSettings, part: float, name: str
) -> Generator[Step, Answer, tuple[np.ndarray, np.ndarray]]:
    """Centres [K, d] moved to where the images are, and which cells [K] any are in.

    A cell's mean residual is a ratio of two noisy sums. It is shrunk by as much as noise alone
    would make it long (James and Stein's positive part), so a cell of few images keeps its anchor.
    """
    fractions = (part * settings.weights, part * (1 - settings.weights))
    answer = yield Step(name, "weights and residuals of cells", ask, fractions)
    weights, residuals = answer.sums[0], answer.sums[1].reshape(len(ask.anchors), -1)
    filled = weights > settings.least * answer.sigmas[0]
    if not filled.any():
        filled = weights == weights.max()
    divisor = np.maximum(weights, answer.sigmas[0])
    ratio = residuals / divisor[:, None]
    moved = ask.anchors.copy()
    moved[:, : ask.told] += shrunk(ratio, answer.sigmas[1] / divisor) * filled[:, None]
    return moved, filled


def k_means(rows: np.ndarray, cells: int, random: np.random.Generator) -> np.ndarray:
    """Centres [K, d] of rows [N, d], N at least K, by Lloyd's rounds from K of the rows."""
    centres = rows[random.choice(len(rows), cells, replace=False)].copy()
    for _ in range(LLOYD_ROUNDS):
        cell = closest(rows, centres)
        counts = np.bincount(cell, minlength=cells)
        sums = np.zeros_like(centres)
        np.add.at(sums, cell, rows)
        full = counts > 0
        centres[full] = sums[full] / counts[full, None]
    return centres


def _sampled_centres(
    found: Gaussian, basis: np.ndarray, cells: int, random: np.random.Generator
) -> np.ndarray:
    rows = (found.draw(DRAWN * cells, random) - found.mean) @ basis
    return k_means(rows, cells, random)
