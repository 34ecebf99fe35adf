"""Distance and index of the closest row: the one place where N x M distances are formed.

Distances come from one matrix product a tile and never exist as a whole. Rows are taken relative
to the mean of the set searched, which keeps the cancellation in |q|^2 - 2 q.c + |c|^2 small, and
the distance to the row found is then computed again by difference, so that a row's distance to
its own copy is exactly zero.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_ROWS = 4096
TILE_COLUMNS = 1024
REFINED_ROWS = 1024


def nearest(queries: Tensor, rows: Tensor, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distance and index of the closest row, for each query.

    Args:
        queries: [M, D], any float dtype, on the device of `rows`.
        rows: [N, D], any float dtype; N at least 1.
        without: [N] bool, true for rows to leave out of the search.

    Returns:
        squared distances [M] float32 and indices [M] int64; infinite where all are left out.

    Raises:
        ValueError: no rows, or differing dimensions.
    """
    if len(rows) == 0:
        raise ValueError("nearest: there are no rows to search")
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"nearest: queries have {queries.shape[1]} dimensions, rows {rows.shape[1]}"
        )
    centre = rows.float().mean(0)
    distances = torch.empty(len(queries), dtype=torch.float32, device=queries.device)
    indices = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    for part in tiles(len(queries), TILE_ROWS):
        shifted = queries[part].float() - centre
        _, found = closest(shifted, rows, centre, without)
        indices[part] = found
        distances[part] = difference(queries[part], rows, found)
    if without is not None and without.all():
        distances.fill_(torch.inf)
    return distances, indices


def closest(
    shifted: Tensor, rows: Tensor, centre: Tensor, without: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Index of the closest row and its distance without the query's own norm, by matrix product.

    Args:
        shifted: queries minus `centre` [T, D] in the dtype to compute in.
        rows: [N, D], not shifted.
        centre: [D].
        without: [N] bool, true for rows to leave out.

    Returns:
        |c|^2 - 2 q.c of the closest row [T] (relative to the centre), and its index [T].
    """
    best = torch.full((len(shifted),), torch.inf, dtype=shifted.dtype, device=shifted.device)
    index = torch.zeros(len(shifted), dtype=torch.int64, device=shifted.device)
    for part in tiles(len(rows), TILE_COLUMNS):
        block = rows[part].to(shifted.dtype) - centre
        halves = torch.addmm((block * block).sum(1)[None] / 2, shifted, block.T, alpha=-1)
        if without is not None:
            halves[:, without[part]] = torch.inf
        least, at = halves.min(1)
        closer = least < best
        best = torch.where(closer, least, best)
        index = torch.where(closer, at + part.start, index)
    return best.mul_(2), index


def difference(
    queries: Tensor, rows: Tensor, index: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Squared distance of each query [M, D] to rows[index] [M, D], by difference: [M]."""
    out = torch.empty(len(queries), dtype=dtype, device=queries.device)
    for part in tiles(len(queries), REFINED_ROWS):
        gap = queries[part].to(dtype) - rows[index[part]].to(dtype)
        out[part] = (gap * gap).sum(1)
    return out


def tiles(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(length)."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
