"""The closest of some centres to each row, by matrix products, the fastest way a device has.

|q - c|^2 = |q|^2 - 2 a(q, c) with the affinity a(q, c) = q.c - |c|^2 / 2: the closest centre is
the one of largest affinity, and one product gives the affinities of many rows to many centres.

On a GPU, tensor cores multiply halves: x = high + low, three products, summed in float32, have
float32's accuracy; one product of the high halves has an error that is bounded, at a third of the
cost. On a CPU the product is a 1 x 1 convolution, which torch gives to oneDNN: on processors of
every make that is as fast as the best matrix product, and on some twice as fast as torch's own.
"""

import functools
import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS = 4096  # rows and centres of one product where its result is written out
TILE_CENTRES = 1024
Mask = tuple[Tensor, Tensor]
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Frame:
    """Coordinates in which products are formed: (x - origin) * scale.

    Attributes:
        origin: [D]; rows are taken relative to it, which keeps the cancellation in |q - c|^2 small.
        scale: a power of two that brings the rows into half precision's range; 1 on a CPU.
        plain: rows may be used as they are, neither moved nor scaled.
    """

    origin: Tensor
    scale: Tensor
    plain: bool = False

    @classmethod
    def around(cls, origin: Tensor, largest: Tensor) -> "Frame":
        """A frame for rows whose values are at most `largest` in magnitude."""
        scale = torch.ones((), device=origin.device)
        if uses_kernels(origin):
            reach = (largest + origin.abs().max()).clamp(1e-30, 1e30)
            scale = torch.exp2(14 - torch.ceil(torch.log2(reach)))  # values up to 2^14 of 2^16
        return cls(origin, scale)

    @classmethod
    def as_it_is(cls, dim: int, device: torch.device) -> "Frame":
        """The rows' own coordinates."""
        return cls(torch.zeros(dim, device=device), torch.ones((), device=device), plain=True)

    def on(self, device: torch.device) -> "Frame":
        """The same frame on another device."""
        return Frame(self.origin.to(device), self.scale.to(device), self.plain)

    def place(self, rows: Tensor) -> Tensor:
        """Rows in this frame, in float32."""
        rows = rows.float()
        return rows if self.plain else (rows - self.origin) * self.scale

    def lengths(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """|x| of rows in this frame, and |x - operand| for the operand of a rough product: [N]."""
        if uses_kernels(rows):
            from src.models.search import kernels

            return kernels.lengths(rows, self.origin, self.scale, self.plain)
        lengths = torch.linalg.vector_norm(self.place(rows), dim=1)
        return lengths, torch.zeros_like(lengths)


class Centres:
    """Rows made ready for others to be compared with them.

    Args:
        rows: [b, D], on the device of the frame.
        frame: where to form the products. A plain frame on a GPU takes rows in half precision.

    Attributes:
        given: the rows.
        tile: centres of a tile, for each of which `rough` answers.
    """

    def __init__(self, rows: Tensor, frame: Frame) -> None:
        self.frame, self.given = frame, rows
        placed = frame.place(rows)
        squares = (placed * placed).sum(1)
        self.half_norms = squares / 2
        self.longest, self.most_lost = squares.max().sqrt(), squares.new_zeros(())
        if not uses_kernels(rows):
            self.rows, self.tile = placed, TILE_CENTRES
            return
        from src.models.search import kernels

        self.tile = kernels.tile_centres(rows.device)
        if frame.plain:
            self.high = self.low = rows.contiguous()
        else:
            self.high = placed.half()
            self.low = (placed - self.high).half()
            self.most_lost = torch.linalg.vector_norm(placed - self.high, dim=1).max()

    @property
    def tiles(self) -> int:
        """How many tiles of centres there are."""
        return -(-len(self.given) // self.tile)

    def closest(self, queries: Tensor) -> Tensor:
        """The closest centre to each query [M, D], to float32's accuracy: [M] int64."""
        if uses_kernels(self.half_norms):
            from src.models.search import kernels

            operands = self._operands(kernels.SPLIT)
            return kernels.affinity(queries, *operands, None, with_index=True)[1]
        affinity, at = self._by_products(queries, None)
        return at.gather(0, affinity.argmax(0, keepdim=True))[0]

    def closest_in_tile(
        self, queries: Tensor, picked: Tensor, tile: Tensor, mask: Mask | None = None
    ) -> Tensor:
        """The closest centre of one tile, for pairs of a query and a tile; only by our kernels.

        Args:
            queries: [M, D], not placed.
            picked: [n] int64, the query of each pair.
            tile: [n] int64, the tile of each pair, ascending.
            mask: as for `rough`.

        Returns:
            [n] int64, an index among all centres.
        """
        from src.models.search import kernels

        counts = torch.bincount(tile, minlength=self.tiles)
        operands = self._operands(kernels.SPLIT)
        return kernels.affinity_in_tile(queries, picked, counts, *operands, mask)[1]

    def rough(self, queries: Tensor, mask: Mask | None = None) -> tuple[Tensor, Tensor | None]:
        """Affinity to the closest centre of each tile, off by at most `error`.

        Args:
            queries: [M, D], not placed.
            mask: numbers of the queries [M] and of the centres [b], int32: a query looks at no
                centre that has its number. Where none is left its affinity is -infinity.

        Returns:
            [tiles, M]; and which centre it is [tiles, M], unless our kernels formed the products.
        """
        if uses_kernels(self.half_norms):
            from src.models.search import kernels

            operands = self._operands(kernels.ROUNDED)
            return kernels.affinity(queries, *operands, mask, with_index=False)[0], None
        return self._by_products(queries, mask)

    def error(self, lengths: Tensor, lost: Tensor) -> Tensor:
        """What `rough` may be off by for queries whose `Frame.lengths` these are: [M].

        It also covers the rounding of the squared lengths themselves.
        """
        dim, rounding = self.frame.origin.numel(), torch.finfo(torch.float32).eps
        # tensor cores cut their sums off after every 16 summands; a CPU rounds
        relative = rounding * (dim / 8 if uses_kernels(self.half_norms) else math.sqrt(dim))
        operands = lost * self.longest + (lengths + lost) * self.most_lost
        return (
            operands
            + relative * lengths * self.longest
            + 8 * rounding * (lengths + self.longest).square()
        )

    def _by_products(self, queries: Tensor, mask: Mask | None) -> tuple[Tensor, Tensor]:
        best = self.half_norms.new_empty(self.tiles, len(queries))
        at = torch.empty(best.shape, dtype=torch.int64, device=best.device)
        for part in tiles(len(queries), TILE_ROWS):
            placed = self.frame.place(queries[part])
            for number, among in enumerate(tiles(len(self.rows), self.tile)):
                affinities = product(placed, self.rows[among], -self.half_norms[among])
                if mask is not None:
                    asker, owner = mask[0][part, None], mask[1][None, among]
                    affinities.masked_fill_(asker == owner, -torch.inf)
                best[number, part], at[number, part] = affinities.max(1)
                at[number, part] += among.start
        return best, at

    def _operands(self, operands: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        if self.frame.plain:
            from src.models.search import kernels

            operands = kernels.AS_THEY_ARE
        place = (self.frame.origin, self.frame.scale)
        return *place, self.high, self.low, self.half_norms, operands


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
    """float32 means float32, whatever the process has allowed its matrix products elsewhere."""
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


def rows_not_finite(rows: Tensor) -> int:
    """How many rows [N, D] hold NaN or infinite values."""
    parts = tiles(len(rows), TILE_ROWS)
    return sum(int((~torch.isfinite(rows[part]).all(1)).sum()) for part in parts)


def uses_kernels(rows: Tensor) -> bool:
    """Whether products of these rows run in our GPU kernels."""
    return rows.is_cuda and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
