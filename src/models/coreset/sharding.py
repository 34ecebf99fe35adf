"""Rows that lie where they fit: on one device, spread over several, or left in host memory.

A selection works on shards. Each shard has a device that computes; its rows lie on that device, or
stay in host memory (a memory-mapped file, too) and pass through the device in tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from src.models.search.distances import tiles, uses_kernels

Part = TypeVar("Part")
Result = TypeVar("Result")
RESIDENT_SHARE = 0.8  # of a device's free memory that rows may take; beyond it they pass through
VALUES_A_DEVICE = 2**29  # fewer, and what devices tell each other outweighs what they share
SCRATCH_VALUES = 2**19  # of a tile for element-wise work
PASSING_BYTES = 256 * 2**20  # a tile of rows that passes through


class Shard:
    """Consecutive rows of a set, and the device that works on them.

    Attributes:
        rows: [n, D], on `device` or in host memory.
        device: where `tiles` and `take` give them.
        first: index of the first of them in the whole set.
    """

    def __init__(self, rows: Tensor, device: torch.device, first: int) -> None:
        self.device, self.first = device, first
        fits = rows.device == device or rows.nbytes <= RESIDENT_SHARE * free_memory(device)
        self.rows = rows.to(device) if fits else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """D, of the rows."""
        return self.rows.shape[1]

    @property
    def scratch(self) -> int:
        """Rows of a tile for element-wise work."""
        if uses_kernels(self.rows):
            return len(self)  # kernels need nothing beside their results
        return max(1, SCRATCH_VALUES // self.dim)

    @property
    def resident(self) -> bool:
        """Whether the rows lie on the device."""
        return self.rows.device == self.device

    def tiles(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """The rows on the device, tile by tile, `size` a tile where they lie there."""
        if self.resident:
            for part in tiles(len(self), size):
                yield part, self.rows[part]
        else:
            yield from self._passing()

    def take(self, indices: Tensor) -> Tensor:
        """Rows at indices [m] (int64, on the device, counted from the shard's first), there."""
        if self.resident:
            return self.rows[indices]
        return self.rows[indices.to(self.rows.device)].to(self.device)

    def _passing(self) -> Iterator[tuple[slice, Tensor]]:
        """Tiles from host memory; the next is on its way while one is worked on."""
        row_bytes = self.rows[:1].nbytes
        size = min(len(self), max(1, PASSING_BYTES // row_bytes))
        staging = [torch.empty(size, *self.rows.shape[1:], dtype=self.rows.dtype).pin_memory()]
        staging.append(torch.empty_like(staging[0]).pin_memory())
        copied = [torch.cuda.Event(), torch.cuda.Event()]
        stream, main = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)

        def send(number: int, part: slice) -> Tensor:
            at = number % 2
            copied[at].synchronize()  # the copy before last has left its place
            host = staging[at][: part.stop - part.start].copy_(self.rows[part])
            with torch.cuda.stream(stream):
                tile = host.to(self.device, non_blocking=True)
                copied[at].record(stream)
            return tile

        parts = list(tiles(len(self), size))
        coming = send(0, parts[0])
        for number, part in enumerate(parts):
            tile = coming
            main.wait_event(copied[number % 2])
            tile.record_stream(main)
            if number + 1 < len(parts):
                coming = send(number + 1, parts[number + 1])
            yield part, tile


class Shards:
    """A set of rows [N, D] as shards.

    Args:
        rows: on any device, or in host memory.
        devices: that share the work; the first also leads. None: the one on which the rows lie.
    """

    def __init__(self, rows: Tensor, devices: Sequence[torch.device] | None = None) -> None:
        devices = [_numbered(device) for device in devices or [rows.device]]
        self.lead = devices[0]
        self.dim, self.dtype = rows.shape[1], rows.dtype
        share = -(-len(rows) // len(devices))
        spans = list(tiles(len(rows), share))
        self.parts = [
            Shard(rows[span], device, span.start)
            for span, device in zip(spans, devices, strict=False)
        ]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def each(self, work: Callable[[Shard], Result]) -> list[Result]:
        """What `work` gives for each shard; several shards are worked on at once."""
        return side_by_side(work, self.parts)

    def take(self, indices: Tensor) -> Tensor:
        """Rows at indices [m] of the whole set (int64, on the lead), in that order, on the lead."""
        if len(self.parts) == 1:
            return self.parts[0].take(indices)
        out = torch.empty(len(indices), self.dim, dtype=self.dtype, device=self.lead)
        for part, inside in zip(self.parts, self.split(indices), strict=True):
            at = torch.nonzero(inside).squeeze(1)
            local = (indices[at] - part.first).to(part.device)
            out[at] = part.take(local).to(self.lead)
        return out

    def split(self, indices: Tensor) -> list[Tensor]:
        """For each shard, which of the indices [m] lie in it: [m] bool."""
        return [(indices >= part.first) & (indices < part.first + len(part)) for part in self.parts]


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`work` for each part, each in a thread of its own where there are several."""
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, parts))


def devices_for(values: int, device: torch.device | None = None) -> list[torch.device]:
    """The devices that are best to share the work on rows of so many values.

    Args:
        values: N times D.
        device: "cpu"; one GPU, "cuda:1"; or "cuda", any number of those that are visible. None
            for GPUs where there are any.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" or device.index is not None:
        return [device]
    most = max(1, values // VALUES_A_DEVICE)
    return [torch.device("cuda", i) for i in range(min(most, torch.cuda.device_count()))]


def _numbered(device: torch.device) -> torch.device:
    """The device, for "cuda" the very GPU that it stands for."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def free_memory(device: torch.device) -> float:
    """Bytes free on a GPU; without bound elsewhere."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")
