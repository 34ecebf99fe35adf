"""Rows spread over one or more devices, or left in host memory.

A selection works on shards. Each shard has a device that computes. Its rows lie on that device, or
stay in host memory (or in a memory-mapped file) and are copied to the device tile by tile.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from src.models.search.distances import tiles, uses_kernels

Part = TypeVar("Part")
Result = TypeVar("Result")
RESIDENT_SHARE = 0.8  # rows move to a device if they take at most this share of its free memory
VALUES_PER_DEVICE = 2**29  # with fewer, communication outweighs the shared work
TILE_VALUES = 2**19  # values per tile of element-wise work
COPY_BYTES = 256 * 2**20  # bytes per tile copied from host memory


class Shard:
    """Consecutive rows of a set, and the device that works on them."""

    def __init__(self, rows: Tensor, device: torch.device, first: int) -> None:
        self.device = device  # where `tiles` and `take` return rows
        self.first = first  # index of the first row in the whole set
        fits = rows.device == device or rows.nbytes <= RESIDENT_SHARE * free_memory(device)
        self.rows = rows.to(device) if fits else rows  # [n, D], on the device or in host memory
        self.dim = rows.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def tiles(self, size: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The rows on the device, in tiles of `size` rows, or as element-wise work needs them.

        Rows in host memory come in tiles of their own size.
        """
        if self.rows.device != self.device:
            yield from self._copied_tiles()
            return
        if size is None:  # kernels need no scratch memory
            size = len(self) if uses_kernels(self.rows) else max(1, TILE_VALUES // self.dim)
        for part in tiles(len(self), size):
            yield part, self.rows[part]

    def take(self, indices: Tensor) -> Tensor:
        """Rows on the device, at indices [m] int64 into the shard."""
        return self.rows[indices.to(self.rows.device)].to(self.device)

    def _copied_tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Tiles from host memory; the next one is copied while the current one is in use."""
        row_bytes = self.rows[:1].nbytes
        size = min(len(self), max(1, COPY_BYTES // row_bytes))
        staging = [torch.empty(size, *self.rows.shape[1:], dtype=self.rows.dtype).pin_memory()]
        staging.append(torch.empty_like(staging[0]).pin_memory())
        copied = [torch.cuda.Event(), torch.cuda.Event()]
        stream, main = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)

        def send(number: int, part: slice) -> Tensor:
            slot = number % 2
            copied[slot].synchronize()  # the previous copy from this buffer has ended
            host = staging[slot][: part.stop - part.start].copy_(self.rows[part])
            with torch.cuda.stream(stream):
                tile = host.to(self.device, non_blocking=True)
                copied[slot].record(stream)
            return tile

        parts = list(tiles(len(self), size))
        upcoming = send(0, parts[0])
        for number, part in enumerate(parts):
            tile = upcoming
            main.wait_event(copied[number % 2])
            tile.record_stream(main)
            if number + 1 < len(parts):
                upcoming = send(number + 1, parts[number + 1])
            yield part, tile


class Shards:
    """A set of rows [N, D] as shards; by default one, on the device of the rows."""

    def __init__(self, rows: Tensor, devices: Sequence[str | torch.device] | None = None) -> None:
        # the device of a tensor tells the index of a plain "cuda"
        workers = [torch.empty(0, device=device).device for device in devices or [rows.device]]
        self.lead = workers[0]
        self.dim, self.dtype = rows.shape[1], rows.dtype
        spans = tiles(len(rows), -(-len(rows) // len(workers)))
        self.parts = [
            Shard(rows[span], device, span.start)
            for span, device in zip(spans, workers, strict=False)
        ]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def map(self, function: Callable[[Shard], Result]) -> list[Result]:
        """`function` of each shard; several shards run in parallel."""
        return run_parallel(function, self.parts)

    def take(self, indices: Tensor) -> Tensor:
        """Rows at indices [m] int64 of the whole set, in that order, on the lead."""
        if len(self.parts) == 1:
            return self.parts[0].take(indices)
        out = torch.empty(len(indices), self.dim, dtype=self.dtype, device=self.lead)
        for part, inside in zip(self.parts, self.masks(indices), strict=True):
            out[inside] = part.take(indices[inside] - part.first).to(self.lead)
        return out

    def masks(self, indices: Tensor) -> list[Tensor]:
        """For each shard, which of the indices [m] lie in it: [m] bool."""
        return [(indices >= part.first) & (indices < part.first + len(part)) for part in self.parts]


def run_parallel(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`function` of each part; several parts run in one thread each."""
    if len(parts) == 1:
        return [function(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(function, parts))


def devices_for(values: int, device: torch.device | None = None) -> list[torch.device]:
    """The devices that share the work on rows of this many values (N times D) fastest.

    "cpu" and "cuda:1" work alone; "cuda", the default with GPUs, means any number of them.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" or device.index is not None:
        return [device]
    most = max(1, values // VALUES_PER_DEVICE)
    return [torch.device("cuda", i) for i in range(min(most, torch.cuda.device_count()))]


def free_memory(device: torch.device) -> float:
    """Free bytes on a GPU; infinite on other devices."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")
