"""Rows that repeat an earlier row, found without comparing every pair."""

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.sharding import Shard, Shards
from src.models.search.distances import tiles, uses_kernels

PAIRS = 4096


def copies(rows: Shards, start: int) -> Tensor:
    """Indices of rows equal to an earlier one, row `start` counting as the earliest.

    Rows of equal key are compared in full, so that keys which collide cost time and nothing else.
    -0.0 equals 0.0.
    """
    everything = torch.arange(len(rows), device=rows.lead)
    waiting = torch.cat([everything[start : start + 1], everything[everything != start]])
    keys = torch.cat([found.to(rows.lead) for found in rows.each(_keys)])
    found = [everything[:0]]
    while len(waiting):
        leader = _first_of_equals(keys[waiting])
        later = torch.nonzero(leader != everything[: len(waiting)]).squeeze(1)
        same = _equal(rows, waiting[later], waiting[leader[later]])
        found.append(waiting[later[same]])
        waiting = waiting[later[~same]]
    return torch.cat(found)


def _keys(shard: Shard) -> Tensor:
    # written into place: small results kept one by one would cut up the memory that tiles free
    keys = torch.empty(len(shard), dtype=torch.int32, device=shard.device)
    for part, tile in shard.tiles(shard.scratch):
        keys[part] = _row_keys(tile)
    return keys


def _row_keys(rows: Tensor) -> Tensor:
    """A 32-bit key for each row [N]; equal rows have equal keys."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    odd = np.random.default_rng(0).integers(-(2**30), 2**30, rows.shape[1]) * 2 + 1
    weights = torch.as_tensor(odd, dtype=torch.int32, device=rows.device)
    if uses_kernels(rows):
        from src.models.search import kernels

        return kernels.keys(rows, weights)
    bits = (rows + 0.0).view(words)  # + 0.0: one zero only
    bits = bits ^ bits >> 4 * rows.element_size()  # whole numbers differ in their high bits only
    return (bits.to(torch.int32) * weights).sum(1, dtype=torch.int32)


def _first_of_equals(keys: Tensor) -> Tensor:
    """For each key [M], the first position that holds an equal one."""
    _, group = torch.unique(keys, return_inverse=True)
    first = torch.full(keys.shape, len(keys), dtype=torch.int64, device=keys.device)
    first.scatter_reduce_(0, group, torch.arange(len(keys), device=keys.device), "amin")
    return first[group]


def _equal(rows: Shards, one: Tensor, other: Tensor) -> Tensor:
    """Whether rows one and rows other are equal, pair by pair: [M] bool."""
    same = torch.empty(len(one), dtype=torch.bool, device=one.device)
    for part in tiles(len(one), PAIRS):
        same[part] = (rows.take(one[part]) == rows.take(other[part])).all(1)
    return same
