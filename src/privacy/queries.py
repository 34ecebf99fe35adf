"""Sum queries: what a private mechanism asks of every record.

A query holds public numbers, by which each client turns each of its records into a few vectors.
The vectors are clipped; the client adds up its records, the server adds up the clients, and only
then adds noise. A record is what the privacy unit says: one image, a group of images, or all images
of a client.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log, sqrt
from typing import Protocol

import numpy as np

from src.privacy.clipping import clip, normalize_patches
from src.privacy.ledger import Adjacency

Record = np.ndarray | Iterable[np.ndarray]  # one image, or several: patches [P, D] or a score [1]


@dataclass(frozen=True)
class Block:
    """One vector that a query asks of every record."""

    name: str  # what the vector is
    size: int  # its length
    limit: float  # the largest L2 norm it may have
    # whether no two records' vectors have a negative inner product, as when no entry is negative or
    # all are positive semidefinite matrices. Replacing one by another then moves the sum by at most
    # √2 times the limit
    acute: bool = False

    def sensitivity(self, adjacency: Adjacency) -> float:
        """Δ: the largest change of the sum by one record, in L2 norm."""
        if adjacency == "null":
            return self.limit
        return self.limit * (sqrt(2) if self.acute else 2)


class SumQuery(Protocol):
    """A question to every record: public, and the same for all clients."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The vectors that it asks of every record."""

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The vectors of one record with at least one image, before clipping."""


def clipped_vectors(query: SumQuery, record: Record) -> tuple[np.ndarray, ...]:
    """The vectors of one record, each clipped to its block's limit."""
    vectors = query.measure([record] if isinstance(record, np.ndarray) else record)
    return tuple(
        clip(vector, block.limit) for vector, block in zip(vectors, query.blocks, strict=True)
    )


def sum_records(query: SumQuery, records: Iterable[Record]) -> tuple[np.ndarray, ...]:
    """Sum of the clipped vectors of some records, block by block; zeros for no records."""
    sums = tuple(np.zeros(block.size) for block in query.blocks)
    for record in records:
        for total, vector in zip(sums, clipped_vectors(query, record), strict=True):
            np.add(total, vector, out=total)
    return sums


def add_sums(parts: Iterable[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Sum over clients, block by block."""
    return tuple(np.sum(blocks, axis=0) for blocks in zip(*parts, strict=True))


@dataclass(frozen=True)
class MeanQuery:
    """The mean patch of each record, measured from a public centre."""

    centre: np.ndarray  # [D]
    limit: float  # the largest norm of a record's mean

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The mean [D]."""
        return (Block("mean", len(self.centre), self.limit),)

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Mean of x − centre over the record's patches."""
        count, total = 0, np.zeros(len(self.centre))
        for patches in map(normalize_patches, images):
            count, total = count + len(patches), total + patches.sum(0)
        return (total / count - self.centre,)


@dataclass(frozen=True)
class MomentQuery:
    """First and second moments of each record's patches, measured from a public centre."""

    centre: np.ndarray  # [D]
    mean_limit: float  # the largest norm of a record's mean
    square_limit: float  # the largest Frobenius norm of a record's mean outer product

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
        for patches in map(normalize_patches, images):
            offsets = patches - self.centre
            count += len(offsets)
            total, square = total + offsets.sum(0), square + offsets.T @ offsets
        return total / count, to_vector(square / count)


@dataclass(frozen=True)
class ScoreQuery:
    """A histogram of each record's image scores under a private bank, on a logarithmic scale."""

    rows: np.ndarray
    origin: np.ndarray
    basis: np.ndarray
    low: float
    high: float
    bins: int  # how many

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Shares of the record's images in the bins [bins]."""
        return (Block("scores", self.bins, 1.0, acute=True),)

    def measure(self, images: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Shares of the images by log(s / low) / log(high / low), in equal bins from 0 to 1."""
        scores = np.maximum(np.concatenate(list(images)).astype(np.float64), self.low)
        if not np.isfinite(scores).all():
            raise ValueError("an image's score is NaN or infinite")
        positions = np.log(scores / self.low) / log(self.high / self.low) * self.bins
        bins = np.minimum(positions.astype(np.int64), self.bins - 1)
        return (np.bincount(bins, minlength=self.bins) / len(bins),)


def to_vector(matrix: np.ndarray) -> np.ndarray:
    """A symmetric matrix [D, D] as a vector [D (D + 1) / 2] of the same norm."""
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * np.where(rows == columns, 1, sqrt(2))


def to_matrix(vector: np.ndarray) -> np.ndarray:
    """The symmetric matrix [D, D] of a vector made by `to_vector`."""
    dim = int((sqrt(8 * len(vector) + 1) - 1) / 2)
    rows, columns = np.triu_indices(dim)
    matrix = np.zeros((dim, dim))
    matrix[rows, columns] = vector / np.where(rows == columns, 1, sqrt(2))
    return np.triu(matrix, 1).T + matrix
