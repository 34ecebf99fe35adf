"""Exact nearest-neighbour search: squared distances and indices of the closest rows.

Matrix products find the closest row, tile by tile, without ever holding all N x M distances. The
distance to that row is then computed by difference, so a row is at distance zero from its copy.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from src.models.search.distances import (
    HALF_DTYPES,
    Centres,
    Mask,
    ProductScaling,
    near_origin,
    product,
    tiles,
    uses_kernels,
)

RESULT_BYTES = 128 * 2**20  # memory for the products of one step
PAIR_BYTES = 32  # memory per query and tile of rows, if every query has to look at every tile
PAIRED_ROWS = 1024  # rows per step of paired distances
HEADROOM = 64.0  # queries may be this much larger than the rows within the range of half precision


class Exclusion(NamedTuple):
    """Rows that groups of queries must not match."""

    rows: Tensor  # [G, N] bool, the rows that each group excludes
    group: Tensor  # [M] int64, the group of each query


class FlatIndex:
    """Rows [N, D] of any float dtype, prepared for many exact searches on their device."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = _supported(rows)
        self._mean = self.rows.mean(0, dtype=torch.float32)
        self._max_magnitude = _max_magnitude(self.rows)

    def nearest(self, queries: Tensor, exclusion: Exclusion | None = None) -> tuple[Tensor, Tensor]:
        """The row closest to each query [M, D].

        Returns:
            squared distances [M] float32, infinite if all rows are excluded, and indices [M] int64.
        """
        queries = self._checked(queries)
        squared = torch.empty(len(queries), device=queries.device)
        index = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
        if not len(queries):
            return squared, index
        mask = None
        if exclusion is not None:
            if (exclusion.rows.sum(0) > 1).any():  # a mask has one group per row
                squared, index = self.k_nearest(queries, 1, exclusion)
                return squared[:, 0], index[:, 0]
            group_of_row = torch.where(exclusion.rows.any(0), exclusion.rows.int().argmax(0), -1)
            mask = exclusion.group.int(), group_of_row.int()
        centres = self._centres_for(queries)
        for part in tiles(len(queries), max(1, RESULT_BYTES // (PAIR_BYTES * centres.tiles))):
            part_mask = mask and (mask[0][part], mask[1])
            squared[part], index[part] = self._closest(queries[part], centres, part_mask)
        return squared, index

    def k_nearest(
        self, queries: Tensor, k: int, exclusion: Exclusion | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k rows closest to each query [M, D]; k is at most N.

        Returns:
            squared distances [M, k] float32, ascending, infinite for excluded rows, and indices
            [M, k] int64.
        """
        queries = self._checked(queries)
        squared = torch.empty(len(queries), k, device=queries.device)
        index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        centres = self._shifted
        scaling = centres.scaling
        rows = scaling.apply(self.rows) if uses_kernels(self.rows) else centres.rows
        for part in tiles(len(queries), max(1, RESULT_BYTES // (4 * len(rows)))):
            affinity = product(scaling.apply(queries[part]), rows, -centres.half_norms)
            if exclusion is not None:
                affinity.masked_fill_(exclusion.rows[exclusion.group[part]], -torch.inf)
            largest, closest = affinity.max(1, keepdim=True) if k == 1 else affinity.topk(k)
            excluded = largest == -torch.inf
            squared[part], index[part] = rank_by_difference(
                queries[part], self.rows, closest, excluded
            )
        return squared, index

    def _closest(
        self, queries: Tensor, centres: Centres, mask: Mask | None
    ) -> tuple[Tensor, Tensor]:
        affinity, closest = centres.approximate(queries, mask)
        best, tile = affinity.max(0)
        if closest is not None:
            index = closest.gather(0, tile[None])[0]
            squared = paired_distances(queries, self.rows, index)
        else:
            # only tiles within the error bound of the best can hold the closest row
            error = centres.error_bound(*centres.scaling.norms(queries))
            tile, picked = torch.nonzero(affinity >= best - 2 * error, as_tuple=True)
            candidates = centres.closest_in_tile(queries, picked, tile, mask)
            exact = paired_distances(queries, self.rows, candidates, picked)
            squared = torch.full_like(best, torch.inf).scatter_reduce_(0, picked, exact, "amin")
            last = len(self.rows) - 1
            first = torch.where(exact == squared[picked], candidates, last)
            index = torch.full(best.shape, last, device=best.device)
            index.scatter_reduce_(0, picked, first, "amin")
        return squared.masked_fill_(best == -torch.inf, torch.inf), index

    def _checked(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"queries are {tuple(queries.shape)}, rows have {self.rows.shape[1]} dimensions"
            )
        return _supported(queries)

    def _centres_for(self, queries: Tensor) -> Centres:
        """The rows, prepared in the cheapest way that is accurate for these queries."""
        if not uses_kernels(self.rows):
            return self._shifted
        if self._unchanged and queries.dtype == self.rows.dtype:
            return self._unchanged
        max_magnitude = _max_magnitude(queries)
        if max_magnitude <= HEADROOM * self._max_magnitude:
            return self._shifted
        return Centres(self.rows, ProductScaling.around(self._mean, max_magnitude))

    @functools.cached_property
    def _unchanged(self) -> Centres | None:
        """The rows as they are; None if products of them would not be accurate."""
        if self.rows.dtype not in HALF_DTYPES:
            return None
        identity = ProductScaling.identity(self.rows.shape[1], self.rows.device)
        can_stay = near_origin(self._mean, identity.norms(self.rows)[0].square().mean())
        return Centres(self.rows, identity) if can_stay else None

    @functools.cached_property
    def _shifted(self) -> Centres:
        scaling = ProductScaling.around(self._mean, HEADROOM * self._max_magnitude)
        return Centres(self.rows, scaling)


def paired_distances(
    queries: Tensor, rows: Tensor, index: Tensor, picked: Tensor | None = None
) -> Tensor:
    """Squared distance of query `picked` to row `index`, by difference, for n pairs: [n] float32.

    By default, the pairs are those of all queries [M, D], in order, with a row [N, D] each.
    """
    if uses_kernels(queries):
        from src.models.search import kernels

        return kernels.paired_distances(queries, picked, rows, index)
    out = torch.empty(len(index), device=queries.device)
    for part in tiles(len(index), PAIRED_ROWS):
        query = queries[part] if picked is None else queries[picked[part]]
        difference = query.float() - rows[index[part]].float()
        out[part] = (difference * difference).sum(1)
    return out


def rank_by_difference(
    queries: Tensor, rows: Tensor, index: Tensor, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sort the rows `index` [M, k] of each query [M, D] by their exact distance.

    Returns:
        squared distances [M, k] float32, ascending, infinite where `excluded` [M, k] is true; and
        indices [M, k].
    """
    squared = torch.stack([paired_distances(queries, rows, i) for i in index.unbind(1)], 1)
    if excluded is not None:
        squared.masked_fill_(excluded, torch.inf)
    squared, order = squared.sort(dim=1, stable=True)
    return squared, index.gather(1, order)


def _supported(rows: Tensor) -> Tensor:
    """Rows in a dtype and layout that products accept."""
    supported = rows.dtype == torch.float32 or rows.dtype in HALF_DTYPES
    return (rows if supported else rows.float()).contiguous()


def _max_magnitude(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, torch.inf).float()
