"""Statistics of sharded rows that a selection starts from: the first pick and product scalings."""

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.sharding import Shard, Shards
from src.models.search.distances import (
    HALF_DTYPES,
    ProductScaling,
    count_nonfinite_rows,
    near_origin,
    tiles,
    uses_kernels,
)

START_CANDIDATES = 64  # rows per shard whose projection is compared in float64


def refuse_nonfinite(bad: int, total: int, what: str = "rows") -> None:
    """Raise ValueError if `bad` of `total` rows are not finite."""
    if bad:
        raise ValueError(f"{bad} of {total} {what} hold NaN or infinite values")


def start_row(rows: Shards, seed: int) -> int:
    """The row farthest along a random direction, the first among equals.

    It depends on neither the order of the rows nor how they are sharded.
    """
    direction = torch.as_tensor(np.random.default_rng(seed).standard_normal(rows.dim))
    candidates = rows.map(lambda shard: _start_candidates(shard, direction.float()))
    indices = torch.cat([x.to(rows.lead) for x in candidates])  # ascending
    projections = (rows.take(indices).cpu().double() * direction).sum(1)
    return int(indices[int(projections.argmax())])


def product_scalings(
    rows: Shards, existing: Tensor | None
) -> tuple[ProductScaling, ProductScaling]:
    """Scalings for exact and for approximate products of the rows with each other and `existing`.

    Products around the mean are exact. Approximate products use the rows unchanged if they are near
    the origin, which saves a copy. Rows that are not finite are refused.
    """
    sums, max_norms, sums_of_squares = (
        torch.stack([x.to(rows.lead) for x in parts])
        for parts in zip(*rows.map(_moments), strict=True)
    )
    mean = sums.sum(0) / len(rows)
    if not torch.isfinite(mean).all():
        counts = rows.map(lambda shard: sum(count_nonfinite_rows(x) for _, x in shard.tiles()))
        refuse_nonfinite(sum(counts), len(rows))
    max_norm = max_norms.amax().float()
    if existing is not None:
        longest = torch.linalg.vector_norm(existing.float(), dim=1).amax()
        max_norm = torch.maximum(max_norm, longest.to(max_norm.device))
    shifted = ProductScaling.around(mean.float(), max_norm)
    kernels = uses_kernels(shifted.origin)
    can_stay = near_origin(mean, sums_of_squares.sum() / len(rows))
    if not can_stay or (kernels and rows.dtype not in HALF_DTYPES):
        return shifted, shifted
    identity = ProductScaling.identity(rows.dim, rows.lead)
    return identity if kernels else shifted, identity


def _start_candidates(shard: Shard, direction: Tensor) -> Tensor:
    """Indices of the shard's rows farthest along a direction [D], ascending.

    Returns enough candidates that float32 rounding cannot drop the true maximum.
    """
    direction = direction.to(shard.device)
    projections = torch.empty(len(shard), device=shard.device)
    for where, tile in shard.tiles():
        for part in tiles(len(tile), _float_rows(shard)):
            projections[where][part] = tile[part].float() @ direction
    count = min(len(projections), START_CANDIDATES)
    return projections.topk(count).indices.sort().values + shard.first


def _moments(shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """Column sums [D], the largest norm, and the sum of squared norms."""
    sums, norms = [], []
    identity = ProductScaling.identity(shard.dim, shard.device)
    for _, tile in shard.tiles():
        norms.append(identity.norms(tile)[0].double())
        for part in tiles(len(tile), _float_rows(shard)):
            sums.append(tile[part].sum(0, dtype=torch.float32).double())
    joined = torch.cat(norms)
    return torch.stack(sums).sum(0), joined.max(), joined.square().sum()


def _float_rows(shard: Shard) -> int:
    """Rows to convert to float32 at a time, few beside the shard."""
    return max(1024, len(shard) // 128)
