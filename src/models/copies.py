"""Rows that repeat an earlier row, found without comparing every pair."""

import numpy as np
import torch
from torch import Tensor

from src.models.nearest import TILE_ROWS, tiles


def copies(rows: Tensor, start: int) -> Tensor:
    """Indices of rows [N, D] equal to an earlier one, row `start` counting as the earliest.

    Rows of equal key are compared in full, so that keys which collide cost time and nothing else.
    -0.0 equals 0.0.
    """
    everything = torch.arange(len(rows), device=rows.device)
    waiting = torch.cat([everything[start : start + 1], everything[everything != start]])
    keys = _row_keys(rows)
    found = [everything[:0]]
    while len(waiting):
        leader = _first_of_equals(keys[waiting])
        later = torch.nonzero(leader != everything[: len(waiting)]).squeeze(1)
        same = _equal(rows, waiting[later], waiting[leader[later]])
        found.append(waiting[later[same]])
        waiting = waiting[later[~same]]
    return torch.cat(found)


def _row_keys(rows: Tensor) -> Tensor:
    """A 64-bit key for each row [N]; equal rows have equal keys."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    odd = np.random.default_rng(0).integers(-(2**62), 2**62, rows.shape[1]) * 2 + 1
    weights = torch.as_tensor(odd, device=rows.device)
    keys = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for part in tiles(len(rows), TILE_ROWS):
        bits = (rows[part] + 0.0).view(words).long()  # + 0.0: one zero only
        bits ^= bits >> 4 * rows.element_size()  # whole numbers differ in their high bits only
        keys[part] = (bits * weights).sum(1)
    return keys


def _first_of_equals(keys: Tensor) -> Tensor:
    """For each key [M], the first position that holds an equal one."""
    _, group = torch.unique(keys, return_inverse=True)
    first = torch.full_like(keys, len(keys))
    first.scatter_reduce_(0, group, torch.arange(len(keys), device=keys.device), "amin")
    return first[group]


def _equal(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Whether rows[one] and rows[other] are equal, pair by pair: [M] bool."""
    same = torch.empty(len(one), dtype=torch.bool, device=rows.device)
    for part in tiles(len(one), TILE_ROWS):
        same[part] = (rows[one[part]] == rows[other[part]]).all(1)
    return same
