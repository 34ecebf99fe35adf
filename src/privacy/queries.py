"""What one image gives to a private sum, and the one place where that is bounded.

A mechanism asks a question (`Ask`): public numbers by which every client turns each of its images
into a few vectors. `contribution` bounds them, a client adds up those of its images, the server
adds the clients' sums, and only then noise. Whatever an image holds, it moves no sum by more than
the block's sensitivity: that is what the guarantee rests on.

A record is what the unit says: one image, or a group of images that are nearly the same part, or
all images of one client. Of a record with several images all patches count alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar, Literal, Protocol

import numpy as np

from src.privacy.ledger import Adjacency

SHRINK = 1 - 2.0**-50  # so that a scaled vector's norm is not above its limit by rounding

Reads = Literal["patches", "scores"]  # of each image: its patches [P, D], or its score [1]
Record = np.ndarray | Iterable[np.ndarray]  # what is read of one image, or of each of several


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
    """What a server asks of every image: public, and the same for all clients.

    Attributes:
        reads: what of an image it looks at.
    """

    reads: ClassVar[Reads]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The vectors that are asked for."""

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Those vectors for one record, one image at least; not bounded yet."""


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


def contribution(ask: Ask, record: Record) -> tuple[np.ndarray, ...]:
    """What one record gives: for each block a vector that is no longer than its limit."""
    measured = ask.measure([record] if isinstance(record, np.ndarray) else record)
    return tuple(
        bounded(vector, block.limit) for vector, block in zip(measured, ask.blocks, strict=True)
    )


def summed(ask: Ask, records: Iterable[Record]) -> tuple[np.ndarray, ...]:
    """A client's part: the sum over its records, for each block; zeros where it has none."""
    sums = tuple(np.zeros(block.size) for block in ask.blocks)
    for record in records:
        for total, vector in zip(sums, contribution(ask, record), strict=True):
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

    reads: ClassVar[Reads] = "patches"
    centre: np.ndarray
    limit: float

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One vector [D]."""
        return (Block("mean", len(self.centre), self.limit),)

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Mean of x − centre."""
        count, total = 0, np.zeros(len(self.centre))
        for patches in _units(images):
            count, total = count + len(patches), total + patches.sum(0)
        return (total / count - self.centre,)


@dataclass(frozen=True)
class Moments:
    """First and second moments of each record's patches, from a public point.

    Attributes:
        centre: [D], where they are measured from.
        mean_limit: the longest mean that counts in full.
        square_limit: the largest mean outer product, in Frobenius norm.
    """

    reads: ClassVar[Reads] = "patches"
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

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Mean of x − centre, and of its outer product with itself."""
        dim = len(self.centre)
        count, total, square = 0, np.zeros(dim), np.zeros((dim, dim))
        for patches in _units(images):
            away = patches - self.centre
            count, total, square = count + len(away), total + away.sum(0), square + away.T @ away
        return total / count, to_vector(square / count)


@dataclass(frozen=True)
class Scores:
    """How each record's images score with a private bank: which bins of a logarithmic scale.

    Attributes:
        rows, origin, basis: the bank, which is installed for it.
        low, high: image scores between which the bins lie; what is beyond counts in the outermost.
        bins: how many.
    """

    reads: ClassVar[Reads] = "scores"
    rows: np.ndarray
    low: float
    high: float
    bins: int
    origin: np.ndarray | None = None
    basis: np.ndarray | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Shares of the record's images in the bins [bins]."""
        return (Block("scores", self.bins, 1.0, acute=True),)

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Shares of the images by log(s / low) / log(high / low), in equal bins from 0 to 1."""
        scores = np.maximum(np.concatenate(list(images)).astype(np.float64), self.low)
        if not np.isfinite(scores).all():
            raise ValueError("an image's score is NaN or infinite")
        at = np.log(scores / self.low) / log(self.high / self.low) * self.bins
        bins = np.minimum(at.astype(np.int64), self.bins - 1)
        return (np.bincount(bins, minlength=self.bins) / len(bins),)


def _units(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    return map(unit_patches, images)


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
