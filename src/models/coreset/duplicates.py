"""Finds rows that repeat an earlier row without comparing every pair."""

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.sharding import Shard, Shards
from src.models.search.distances import tiles, uses_kernels

PAIRS = 4096  # pairs of rows per comparison


def find_duplicates(rows: Shards, start: int) -> Tensor:
    """Indices of rows that equal an earlier row, where row `start` counts as the earliest.

    Rows of equal hash are compared in full, so hash collisions only cost time. -0.0 equals 0.0.
    """
    indices = torch.arange(len(rows), device=rows.lead)
    remaining = torch.cat([indices[start : start + 1], indices[indices != start]])
    hashes = torch.cat([x.to(rows.lead) for x in rows.map(_hashes)])
    duplicates = [indices[:0]]
    while len(remaining):
        leader = _first_of_equals(hashes[remaining])
        later = torch.nonzero(leader != indices[: len(remaining)]).squeeze(1)
        same = _equal(rows, remaining[later], remaining[leader[later]])
        duplicates.append(remaining[later[same]])
        remaining = remaining[later[~same]]
    return torch.cat(duplicates)


def _hashes(shard: Shard) -> Tensor:
    # one tensor for all: small results kept per tile would fragment the memory that tiles free
    hashes = torch.empty(len(shard), dtype=torch.int32, device=shard.device)
    for part, tile in shard.tiles():
        hashes[part] = _row_hashes(tile)
    return hashes


def _row_hashes(rows: Tensor) -> Tensor:
    """A 32-bit hash of each row [N]; equal rows have equal hashes."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    odd = np.random.default_rng(0).integers(-(2**30), 2**30, rows.shape[1]) * 2 + 1
    weights = torch.as_tensor(odd, dtype=torch.int32, device=rows.device)
    if uses_kernels(rows):
        from src.models.search import kernels

        return kernels.row_hashes(rows, weights)
    bits = (rows + 0.0).view(words)  # + 0.0 turns -0.0 into 0.0
    bits = bits ^ bits >> 4 * rows.element_size()  # small integers differ in their high bits only
    return (bits.to(torch.int32) * weights).sum(1, dtype=torch.int32)


def _first_of_equals(hashes: Tensor) -> Tensor:
    """For each hash [M], the first position with an equal one."""
    _, group = torch.unique(hashes, return_inverse=True)
    first = torch.full(hashes.shape, len(hashes), dtype=torch.int64, device=hashes.device)
    first.scatter_reduce_(0, group, torch.arange(len(hashes), device=hashes.device), "amin")
    return first[group]


def _equal(rows: Shards, one: Tensor, other: Tensor) -> Tensor:
    """Whether rows `one` equal rows `other`, pair by pair: [M] bool."""
    same = torch.empty(len(one), dtype=torch.bool, device=one.device)
    for part in tiles(len(one), PAIRS):
        same[part] = (rows.take(one[part]) == rows.take(other[part])).all(1)
    return same
