"""Finds the closest centre of each row with matrix products.

|q - c|^2 = |q|^2 - 2 a(q, c), where a(q, c) = q.c - |c|^2 / 2 is the affinity. The closest centre
is the one with the largest affinity, and one product gives the affinities of many rows to many
centres.

On a GPU, tensor cores multiply half-precision numbers. With x = high + low, three products summed
in float32 are as accurate as float32; one product of the high parts costs a third and has a bounded
error. On a CPU the product runs as a 1 x 1 convolution: torch passes it to oneDNN, which is as fast
as the best matrix product on all processors, and twice as fast as torch's own on some.
"""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS = 4096  # rows per product on a CPU
TILE_CENTRES = 1024  # centres per product on a CPU
FAR_FROM_ORIGIN = 16.0  # |mean|^2 over the variance, above which cancellation costs precision
HALF_DTYPES = (torch.float16, torch.bfloat16)
HAS_TRITON = importlib.util.find_spec("triton") is not None
Mask = tuple[Tensor, Tensor]  # [M] and [b] int32: a query ignores centres with its own number


@dataclass(frozen=True)
class ProductScaling:
    """Coordinates in which products are formed: (x - origin) * scale."""

    origin: Tensor  # [D]; shifting rows by it limits the cancellation in |q - c|^2
    scale: Tensor  # [], a power of two that brings rows into half precision's range; 1 on a CPU
    is_identity: bool = False  # rows are used as they are

    @classmethod
    def around(cls, origin: Tensor, max_magnitude: Tensor) -> "ProductScaling":
        """Scaling for rows whose values are at most `max_magnitude` in magnitude."""
        scale = torch.ones((), device=origin.device)
        if uses_kernels(origin):
            reach = (max_magnitude + origin.abs().max()).clamp(1e-30, 1e30)
            scale = torch.exp2(14 - torch.ceil(torch.log2(reach)))  # values up to 2^14 of 2^16
        return cls(origin, scale)

    @classmethod
    def identity(cls, dim: int, device: torch.device) -> "ProductScaling":
        """Scaling that leaves rows unchanged."""
        return cls(torch.zeros(dim, device=device), torch.ones((), device=device), is_identity=True)

    def to(self, device: torch.device) -> "ProductScaling":
        """The same scaling on another device."""
        return ProductScaling(self.origin.to(device), self.scale.to(device), self.is_identity)

    def apply(self, rows: Tensor) -> Tensor:
        """Scaled rows, float32."""
        rows = rows.float()
        return rows if self.is_identity else (rows - self.origin) * self.scale

    def norms(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Norms |x| of the scaled rows x, and their rounding errors |x - half(x)|: [N] each."""
        if uses_kernels(rows):
            from src.models.search import kernels

            return kernels.norms(rows, self.origin, self.scale, self.is_identity)
        norms = torch.linalg.vector_norm(self.apply(rows), dim=1)
        return norms, torch.zeros_like(norms)


class Centres:
    """Rows [b, D] prepared for queries to be compared with, in `tiles` tiles of `tile` rows.

    On a GPU, a scaling that is the identity needs rows in half precision.
    """

    def __init__(self, rows: Tensor, scaling: ProductScaling) -> None:
        self.scaling = scaling
        scaled = scaling.apply(rows)
        squared_norms = (scaled * scaled).sum(1)
        self.half_norms = squared_norms / 2  # |c|^2 / 2
        self.max_norm, self.max_rounding = squared_norms.max().sqrt(), squared_norms.new_zeros(())
        self.kernels: Any = None
        if uses_kernels(rows):
            from src.models.search import kernels

            self.kernels = kernels
            self.tile = kernels.tile_centres(rows.device)
            if scaling.is_identity:
                self.high = self.low = rows.contiguous()
            else:
                self.high = scaled.half()
                self.low = (scaled - self.high).half()
                self.max_rounding = torch.linalg.vector_norm(scaled - self.high, dim=1).max()
        else:
            self.rows, self.tile = scaled, TILE_CENTRES
        self.tiles = -(-len(rows) // self.tile)

    def closest(self, queries: Tensor) -> Tensor:
        """Index of the closest centre to each query [M, D], with float32 accuracy: [M] int64."""
        if self.kernels:
            operands = self._operands(self.kernels.SPLIT)
            return self.kernels.affinity(queries, operands, None, with_index=True)[1]
        affinity, index = self._by_products(queries, None)
        return index.gather(0, affinity.argmax(0, keepdim=True))[0]

    def closest_in_tile(
        self, queries: Tensor, picked: Tensor, tile: Tensor, mask: Mask | None = None
    ) -> Tensor:
        """The closest centre to query `picked` in `tile` (ascending), for n pairs: [n] int64.

        Only the GPU kernels can.
        """
        counts = torch.bincount(tile, minlength=self.tiles)
        operands = self._operands(self.kernels.SPLIT)
        return self.kernels.closest_in_tile(queries, picked, counts, operands, mask)

    def approximate(
        self, queries: Tensor, mask: Mask | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Affinity of queries [M, D] to the closest centre of each tile, within `error_bound`.

        Returns:
            affinities [tiles, M], -infinity where the mask ignores a whole tile; and the centres'
            indices [tiles, M], or None with GPU kernels.
        """
        if self.kernels:
            operands = self._operands(self.kernels.ROUNDED)
            return self.kernels.affinity(queries, operands, mask, with_index=False)[0], None
        return self._by_products(queries, mask)

    def error_bound(self, norms: Tensor, rounding: Tensor) -> Tensor:
        """Bound [M] on the error of `approximate`, and of squared norms, from `scaling.norms`."""
        dim, epsilon = self.scaling.origin.numel(), torch.finfo(torch.float32).eps
        # tensor cores truncate their sums after every 16 summands; a CPU rounds
        relative = epsilon * (dim / 8 if self.kernels else math.sqrt(dim))
        operands = rounding * self.max_norm + (norms + rounding) * self.max_rounding
        products = relative * norms * self.max_norm
        return operands + products + 8 * epsilon * (norms + self.max_norm).square()

    def _by_products(self, queries: Tensor, mask: Mask | None) -> tuple[Tensor, Tensor]:
        best = self.half_norms.new_empty(self.tiles, len(queries))
        index = torch.empty(best.shape, dtype=torch.int64, device=best.device)
        for part in tiles(len(queries), TILE_ROWS):
            scaled = self.scaling.apply(queries[part])
            for number, tile in enumerate(tiles(len(self.rows), self.tile)):
                affinities = product(scaled, self.rows[tile], -self.half_norms[tile])
                if mask is not None:
                    affinities.masked_fill_(mask[0][part, None] == mask[1][None, tile], -torch.inf)
                best[number, part], index[number, part] = affinities.max(1)
                index[number, part] += tile.start
        return best, index

    def _operands(self, mode: int) -> Any:
        mode = self.kernels.UNCHANGED if self.scaling.is_identity else mode
        parts = self.high, self.low, self.half_norms
        return self.kernels.Operands(self.scaling.origin, self.scaling.scale, *parts, mode)


def near_origin(mean: Tensor, mean_square: Tensor) -> bool:
    """Whether rows of this mean [D] and mean squared norm need no shift before products."""
    offset = mean.square().sum()
    return bool(offset <= FAR_FROM_ORIGIN * (mean_square - offset))


def product(rows: Tensor, others: Tensor, bias: Tensor) -> Tensor:
    """Rows @ others.T + bias: [M, D], [N, D], [N] -> [M, N]."""
    if rows.dtype != torch.float32 or rows.device.type != "cpu" or not len(rows):
        with _full_precision():
            return torch.addmm(bias, rows, others.T)
    image = rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)
    out = F.conv2d(image, others.contiguous()[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(rows), len(others))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Run float32 products in full precision, whatever the process allows elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(length)."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def count_nonfinite_rows(rows: Tensor) -> int:
    """Number of rows [N, D] with NaN or infinite values."""
    parts = tiles(len(rows), TILE_ROWS)
    return sum(int((~torch.isfinite(rows[part]).all(1)).sum()) for part in parts)


def uses_kernels(rows: Tensor) -> bool:
    """Whether products of these rows run in our GPU kernels."""
    return rows.is_cuda and HAS_TRITON
