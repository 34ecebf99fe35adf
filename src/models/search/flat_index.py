"""Squared distances and indices of the closest rows: where N x M distances are formed.

Closest by matrix products, tile by tile, never N x M at once; the distance to a row found is then
computed again by difference, so that a row's distance to its own copy is exactly zero.
"""

import functools

import torch
from torch import Tensor

from src.models.search.distances import HALVES, Centres, Frame, Mask, product, tiles, uses_kernels

RESULT_BYTES = 128 * 2**20  # for results before they are reduced to the closest
PAIR_BYTES = 32  # for a query and a tile of rows, were each to be looked at
REFINED_ROWS = 1024
HEADROOM = 64.0  # how much larger than the rows queries may be without leaving half's range
FAR_OFF = 16.0  # |mean|^2 over the mean square around it, above which halves are not used as given


class FlatIndex:
    """Rows made ready for many exact searches on their device.

    Args:
        rows: [N, D], any float dtype; N at least 1.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = _ready(rows)

    def nearest(
        self, queries: Tensor, without: Tensor | None = None, group: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The row closest to each query.

        Args:
            queries: [M, D].
            without: [G, N] bool, rows to leave out of the searches of a group of queries.
            group: [M] int64, the group of each query.

        Returns:
            squared distances [M] float32, infinite where no row is left, and indices [M] int64.

        Raises:
            ValueError: queries that are not [M, D].
        """
        queries = self._ready(queries)
        index = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
        squared = torch.empty(len(queries), device=queries.device)
        if not len(queries):
            return squared, index
        mask = None
        if without is not None and group is not None:
            if (without.sum(0) > 1).any():  # a mask knows one number a row
                squared, index = self.few(queries, 1, without, group)
                return squared[:, 0], index[:, 0]
            owner = torch.where(without.any(0), without.int().argmax(0), -1)
            mask = group.int(), owner.int()
        rows = self._centres(queries)
        for part in tiles(len(queries), max(1, RESULT_BYTES // (PAIR_BYTES * rows.tiles))):
            its = mask and (mask[0][part], mask[1])
            squared[part], index[part] = self._closest(queries[part], rows, its)
        return squared, index

    def few(
        self, queries: Tensor, k: int, without: Tensor | None = None, group: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k closest rows of each query, which may leave some out.

        Args:
            queries: [M, D].
            k: at most N.
            without: [G, N] bool, rows to leave out of the searches of a group of queries.
            group: [M] int64, the group of each query.

        Returns:
            squared distances [M, k], ascending, infinite in place of rows left out; indices [M, k].
        """
        queries = self._ready(queries)
        squared = torch.empty(len(queries), k, device=queries.device)
        index = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        frame, rows, half_norms = self._placed
        for part in tiles(len(queries), max(1, RESULT_BYTES // (4 * len(rows)))):
            affinity = product(frame.place(queries[part]), rows, -half_norms)
            if without is not None and group is not None:
                affinity.masked_fill_(without[group[part]], -torch.inf)
            largest, found = affinity.max(1, keepdim=True) if k == 1 else affinity.topk(k)
            columns = [difference(queries[part], self.rows, column) for column in found.unbind(1)]
            gaps = torch.stack(columns, 1).masked_fill_(largest == -torch.inf, torch.inf)
            squared[part], order = gaps.sort(dim=1, stable=True)
            index[part] = found.gather(1, order)
        return squared, index

    def _closest(self, queries: Tensor, rows: Centres, mask: Mask | None) -> tuple[Tensor, Tensor]:
        affinity, at = rows.rough(queries, mask)
        best, tile = affinity.max(0)
        if at is not None:
            index = at.gather(0, tile[None])[0]
            squared = difference(queries, self.rows, index)
        else:
            # what is rough tells the few tiles of rows that may hold the closest
            error = rows.error(*rows.frame.lengths(queries))
            tile, picked = torch.nonzero(affinity >= best - 2 * error, as_tuple=True)
            found = rows.closest_in_tile(queries, picked, tile, mask)
            gaps = difference(queries, self.rows, found, picked)
            squared = torch.full_like(best, torch.inf).scatter_reduce_(0, picked, gaps, "amin")
            last = len(self.rows) - 1
            first = torch.where(gaps == squared[picked], found, last)
            index = torch.full(best.shape, last, device=best.device)
            index.scatter_reduce_(0, picked, first, "amin")
        return squared.masked_fill_(best == -torch.inf, torch.inf), index

    def _ready(self, queries: Tensor) -> Tensor:
        if queries.ndim != 2 or queries.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"queries are {tuple(queries.shape)}, rows have {self.rows.shape[1]} dimensions"
            )
        return _ready(queries)

    def _centres(self, queries: Tensor) -> Centres:
        if not uses_kernels(self.rows):
            return self._as_placed
        if self._near_origin and queries.dtype == self.rows.dtype:
            return self._as_they_are
        reach = _largest(queries)
        if reach <= HEADROOM * self._reach:
            return self._as_placed
        return Centres(self.rows, Frame.around(self._mean, reach))

    @functools.cached_property
    def _mean(self) -> Tensor:
        return self.rows.mean(0, dtype=torch.float32)

    @functools.cached_property
    def _reach(self) -> Tensor:
        return _largest(self.rows)

    @functools.cached_property
    def _near_origin(self) -> bool:
        """Whether rows in half precision can be used as they are."""
        if self.rows.dtype not in HALVES:
            return False
        as_they_are = Frame.as_it_is(self.rows.shape[1], self.rows.device)
        offset = self._mean.square().sum()
        around = as_they_are.lengths(self.rows)[0].square().mean() - offset
        return bool(offset <= FAR_OFF * around)

    @functools.cached_property
    def _as_placed(self) -> Centres:
        return Centres(self.rows, Frame.around(self._mean, HEADROOM * self._reach))

    @functools.cached_property
    def _as_they_are(self) -> Centres:
        return Centres(self.rows, Frame.as_it_is(self.rows.shape[1], self.rows.device))

    @property
    def _placed(self) -> tuple[Frame, Tensor, Tensor]:
        centres = self._as_placed
        rows = centres.frame.place(self.rows) if uses_kernels(self.rows) else centres.rows
        return centres.frame, rows, centres.half_norms


def difference(
    queries: Tensor, rows: Tensor, index: Tensor, picked: Tensor | None = None
) -> Tensor:
    """Squared distance of each query to rows[index], by difference: [n] float32.

    Args:
        queries: [M, D]; of these, those at `picked` [n] where that is given.
        index: [n] int64.
    """
    if uses_kernels(queries):
        from src.models.search import kernels

        return kernels.difference(queries, picked, rows, index)
    out = torch.empty(len(index), device=queries.device)
    for part in tiles(len(index), REFINED_ROWS):
        query = queries[part] if picked is None else queries[picked[part]]
        gap = query.float() - rows[index[part]].float()
        out[part] = (gap * gap).sum(1)
    return out


def _ready(rows: Tensor) -> Tensor:
    """Rows in a dtype and layout that products take."""
    known = rows.dtype == torch.float32 or rows.dtype in HALVES
    return (rows if known else rows.float()).contiguous()


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude."""
    return torch.linalg.vector_norm(rows, torch.inf).float()
