"""What one image gives to a private sum, and the one place where that is bounded.

A mechanism asks a question (`Ask`): public numbers by which every client turns each of its images
into a few vectors. `contribution` bounds them, a client adds up those of its images, the server
adds the clients' sums, and only then noise. Whatever an image holds, it moves no sum by more than
the block's sensitivity: that is what the guarantee rests on.

A record is what the unit says: the patches of one image, or of a group of images that are nearly
the same part, or of all images of one client, put one after the other.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np

from src.privacy.ledger import Adjacency

SHRINK = 1 - 2.0**-50  # so that a scaled vector's norm is not above its limit by rounding


@dataclass(frozen=True)
class Block:
    """One vector that every record gives.

    Attributes:
        name: what it is.
        size: its length.
        limit: the most its L2 norm may be.
        acute: no two records' vectors have a negative inner product, as where no entry is negative
            or all are positive semidefinite matrices; one then changes into another within √2.
    """

    name: str
    size: int
    limit: float
    acute: bool = False

    def sensitivity(self, adjacency: Adjacency) -> float:
        """The most by which one record changes the sum: Δ, in L2 norm."""
        if adjacency == "null":
            return self.limit
        return self.limit * (sqrt(2) if self.acute else 2)


class Ask(Protocol):
    """What a server asks of every image: public, and the same for all clients."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The vectors that are asked for."""

    def measure(self, patches: np.ndarray) -> tuple[np.ndarray, ...]:
        """Those vectors for the patches [P, D] of one record, of unit length; not bounded yet."""


def bounded(vector: np.ndarray, limit: float) -> np.ndarray:
    """A vector in float64, scaled down where its L2 norm is above the limit.

    Raises:
        ValueError: NaN or infinite entries.
    """
    vector = np.asarray(vector, np.float64)
    if not np.isfinite(vector).all():
        raise ValueError("an image's contribution holds NaN or infinite values")
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0:
        return vector
    scaled = vector / largest  # since squares of huge values overflow
    norm = float(np.linalg.norm(scaled))
    if largest * norm <= limit * SHRINK:
        return vector
    return scaled / norm * (limit * SHRINK)


def unit_patches(patches: np.ndarray) -> np.ndarray:
    """Patches [P, D] in float64, each of unit L2 norm; those that are zero stay so.

    Raises:
        ValueError: not [P, D] with a patch at least, or NaN or infinite values.
    """
    rows = np.asarray(patches, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"a record's patches must be [P, D], not of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("an image's features hold NaN or infinite values")
    largest = np.abs(rows).max(1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def contribution(ask: Ask, patches: np.ndarray) -> tuple[np.ndarray, ...]:
    """What one record gives: for each block a vector that is no longer than its limit."""
    measured = ask.measure(unit_patches(patches))
    return tuple(
        bounded(vector, block.limit) for vector, block in zip(measured, ask.blocks, strict=True)
    )


def summed(ask: Ask, records: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """A client's part: the sum over its records, for each block; zeros where it has none."""
    sums = tuple(np.zeros(block.size) for block in ask.blocks)
    for patches in records:
        for total, vector in zip(sums, contribution(ask, patches), strict=True):
            np.add(total, vector, out=total)
    return sums


def added(parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """The sum over clients, block by block."""
    return tuple(np.sum(blocks, axis=0) for blocks in zip(*parts, strict=True))


@dataclass(frozen=True)
class Means:
    """The mean patch of each record, from a public point.

    Attributes:
        centre: [D], where it is measured from.
        limit: the longest that counts in full.
    """

    centre: np.ndarray
    limit: float

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One vector [D]."""
        return (Block("mean", len(self.centre), self.limit),)

    def measure(self, patches: np.ndarray) -> tuple[np.ndarray, ...]:
        """Mean of x − centre."""
        return (patches.mean(0) - self.centre,)


@dataclass(frozen=True)
class Moments:
    """First and second moments of each record's patches, from a public point.

    Attributes:
        centre: [D], where they are measured from.
        mean_limit: the longest mean that counts in full.
        square_limit: the largest mean outer product, in Frobenius norm.
    """

    centre: np.ndarray
    mean_limit: float
    square_limit: float

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The mean [D], and the mean outer product as a vector [D (D + 1) / 2]."""
        dim = len(self.centre)
        return (
            Block("mean", dim, self.mean_limit),
            Block("square", dim * (dim + 1) // 2, self.square_limit, acute=True),
        )

    def measure(self, patches: np.ndarray) -> tuple[np.ndarray, ...]:
        """Mean of x − centre, and of its outer product with itself."""
        away = patches - self.centre
        return away.mean(0), to_vector(away.T @ away / len(away))


@dataclass(frozen=True)
class Cells:
    """How each record's patches lie around public anchors.

    With n_c of its m patches nearest to anchor c, a record gives w_c = √(n_c / m), of norm 1, and
    w_c · mean(x − a_c), of the norm of its root mean square residual.

    Attributes:
        anchors: [K, d].
        limit: the longest residuals that count in full, over all cells together.
        origin, basis: [D] and [D, d]: patches are compared at (x − origin) @ basis, and the
            anchors lie there; None for x itself.
        told: of how many of the d coordinates, from the first, residuals are told; None for all.
    """

    anchors: np.ndarray
    limit: float
    origin: np.ndarray | None = None
    basis: np.ndarray | None = None
    told: int | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Weights [K], and residuals [K told] cell by cell."""
        return (
            Block("weights", len(self.anchors), 1.0, acute=True),
            Block("residuals", self.anchors[:, : self.told].size, self.limit),
        )

    def measure(self, patches: np.ndarray) -> tuple[np.ndarray, ...]:
        """Roots of the shares of the cells, and those times the cells' mean residuals."""
        if self.basis is not None:
            patches = (patches - (0 if self.origin is None else self.origin)) @ self.basis
        cell = closest(patches, self.anchors)
        counts = np.bincount(cell, minlength=len(self.anchors))
        away = (patches - self.anchors[cell])[:, : self.told]
        sums = np.zeros((len(self.anchors), away.shape[1]))
        np.add.at(sums, cell, away)
        scale = 1 / np.sqrt(np.maximum(counts, 1) * len(patches))
        return np.sqrt(counts / len(patches)), (sums * scale[:, None]).ravel()


def closest(rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Index of the anchor closest to each row: [P] int64."""
    return np.argmin((anchors * anchors).sum(1) - 2 * rows @ anchors.T, axis=1)


def to_vector(matrix: np.ndarray) -> np.ndarray:
    """A symmetric matrix [D, D] as a vector [D (D + 1) / 2] of the same norm."""
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * np.where(rows == columns, 1, sqrt(2))


def to_matrix(vector: np.ndarray) -> np.ndarray:
    """The symmetric matrix of a vector that `to_vector` made."""
    dim = int((sqrt(8 * len(vector) + 1) - 1) / 2)
    rows, columns = np.triu_indices(dim)
    matrix = np.zeros((dim, dim))
    matrix[rows, columns] = vector / np.where(rows == columns, 1, sqrt(2))
    return np.triu(matrix, 1).T + matrix
