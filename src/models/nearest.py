"""Squared distance and index of the closest row.

Closest by matrix products, tile by tile, never N x M at once; the distance to the row found is
then computed again by difference, so that a row's distance to its own copy is exactly zero.
"""

import torch
from torch import Tensor

from src.models.products import HALVES, Centres, Frame, tiles, uses_kernels

CHUNK_ROWS = 16384  # rows made ready at a time
QUERIES = 65536  # queries whose results by tile of rows are held at a time
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
    queries, rows = _ready(queries), _ready(rows)
    best = torch.full((len(queries),), -torch.inf, device=queries.device)
    indices = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    if not len(queries):
        return best, indices
    frame = _frame(queries, rows)
    for chunk in tiles(len(rows), CHUNK_ROWS):
        centres = Centres(rows[chunk], frame, None if without is None else without[chunk])
        for part in tiles(len(queries), QUERIES):
            affinity, at = centres.closest(queries[part])
            closer = affinity > best[part]
            best[part] = torch.where(closer, affinity, best[part])
            indices[part] = torch.where(closer, at + chunk.start, indices[part])
    distances = difference(queries, rows, indices)
    if without is not None and without.all():
        distances.fill_(torch.inf)
    return distances, indices


def difference(
    queries: Tensor, rows: Tensor, index: Tensor, picked: Tensor | None = None
) -> Tensor:
    """Squared distance of each query to rows[index], by difference: [n] float32.

    Args:
        queries: [M, D]; of these, those at `picked` [n] where that is given.
        index: [n] int64.
    """
    if uses_kernels(queries):
        from src.models import kernels

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


def _frame(queries: Tensor, rows: Tensor) -> Frame:
    origin = rows.mean(0, dtype=torch.float32)
    return Frame.around(origin, torch.maximum(_largest(queries), _largest(rows)))


def _largest(rows: Tensor) -> Tensor:
    low, high = torch.aminmax(rows)
    return torch.maximum(-low, high).float()
