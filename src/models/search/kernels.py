"""Triton GPU kernels: closest centres with tensor cores, paired distances, and the pick loop.

Import this module only where `distances.uses_kernels` is true. Callers have the same steps in plain
torch for other devices. Sizes that differ between calls are marked do_not_specialize, so that they
do not trigger a recompilation each.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from src.models.search.distances import Mask

# How rows become operands of half-precision products
UNCHANGED = 0  # the rows are in half precision already
ROUNDED = 1  # one product of rows rounded to half precision
SPLIT = 2  # three products of high and low parts, as accurate as float32


class Operands(NamedTuple):
    """Centres as operands of half-precision products, and how to scale the rows."""

    origin: Tensor  # [D] float32; like the scale, ignored if the mode is UNCHANGED
    scale: Tensor  # [] float32
    high: Tensor  # [b, D] centres rounded to half precision
    low: Tensor  # [b, D] the remainders
    half_norms: Tensor  # [b] float32, |c|^2 / 2
    mode: int  # UNCHANGED, ROUNDED or SPLIT


@triton.jit
def _load(rows, starts, k, dim, EVEN: tl.constexpr):
    at = rows + starts + k[None]
    return tl.load(at) if EVEN else tl.load(at, mask=k[None] < dim, other=0.0)


@triton.jit
def _products(
    rows, row, origin, scale, high, low, centre, dim,
    OPERANDS: tl.constexpr, EXACT: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # x.c for rows [BM] and centres [BN]
    row_start = row.to(tl.int64)[:, None] * dim
    centre_start = centre.to(tl.int64)[:, None] * dim
    if OPERANDS != 0:
        factor = tl.load(scale)
    # EXACT: add the parts outside the tensor cores, which truncate instead of rounding
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, dim, BK):
        k = start + tl.arange(0, BK)
        x = _load(rows, row_start, k, dim, EVEN)
        h = _load(high, centre_start, k, dim, EVEN)
        if OPERANDS == 0:
            if EXACT:
                total += tl.dot(x, tl.trans(h))
            else:
                total = tl.dot(x, tl.trans(h), total)
        else:
            x = (x.to(tl.float32) - tl.load(origin + k, mask=k < dim, other=0.0)[None]) * factor
            upper = x.to(tl.float16)
            if OPERANDS == 1:
                total = tl.dot(upper, tl.trans(h), total)
            else:
                rest = _load(low, centre_start, k, dim, EVEN)
                part = tl.dot(upper, tl.trans(h))
                part = tl.dot(upper, tl.trans(rest), part)
                part = tl.dot((x - upper.to(tl.float32)).to(tl.float16), tl.trans(h), part)
                total += part
    return total


@triton.jit(do_not_specialize=["n", "centres"])
def _affinity(
    rows, origin, scale, high, low, half_norms, asker, owner, best, at, n, centres, dim,
    OPERANDS: tl.constexpr, INDEX: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # run programs in groups of GROUP row tiles, so that the tiles in use stay in the cache
    across = tl.cdiv(centres, BN)
    first = tl.program_id(0) // (GROUP * across) * GROUP
    high_group = tl.minimum(tl.cdiv(n, BM) - first, GROUP)
    place = tl.program_id(0) % (GROUP * across)
    tile_m = first + place % high_group
    tile_n = place // high_group
    m = tile_m * BM + tl.arange(0, BM)
    c = tile_n * BN + tl.arange(0, BN)
    total = _products(
        rows, m % n, origin, scale, high, low, c % centres, dim, OPERANDS, INDEX, EVEN, BM, BN, BK
    )
    total -= tl.load(half_norms + c, mask=c < centres, other=float("inf"))[None]
    if MASKED:
        own = tl.load(owner + c, mask=c < centres, other=-1)[None]
        total = tl.where(own == tl.load(asker + m % n)[:, None], -float("inf"), total)
    out = tile_n.to(tl.int64) * n + m
    if INDEX:
        value, where = tl.max(total, 1, return_indices=True)
        tl.store(best + out, value, mask=m < n)
        tl.store(at + out, tile_n * BN + where, mask=m < n)
    else:
        tl.store(best + out, tl.max(total, 1), mask=m < n)


@triton.jit(do_not_specialize=["n", "centres", "tiles"])
def _affinity_in_tile(
    rows, picked, counts, tiles, origin, scale, high, low, half_norms, asker, owner, best, at,
    n, centres, dim,
    OPERANDS: tl.constexpr, MASKED: tl.constexpr, EVEN: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    # pairs of a row and a tile are sorted by tile; each program handles pairs of one tile
    lane = tl.arange(0, LANES)
    pairs = tl.load(counts + lane, mask=lane < tiles, other=0)
    programs = tl.cdiv(pairs, BM)
    block = tl.program_id(0) // (TILE // BN)
    side = tl.program_id(0) % (TILE // BN)
    tile = tl.sum((tl.cumsum(programs, 0) <= block).to(tl.int32))
    within = block - tl.sum(tl.where(lane < tile, programs, 0))
    m = tl.sum(tl.where(lane < tile, pairs, 0)) + within * BM + tl.arange(0, BM)
    there = m < tl.sum(tl.where(lane <= tile, pairs, 0))
    row = tl.load(picked + m, mask=there, other=0)
    c = tile * TILE + side * BN + tl.arange(0, BN)
    total = _products(
        rows, row, origin, scale, high, low, c % centres, dim, OPERANDS, True, EVEN, BM, BN, BK
    )
    total -= tl.load(half_norms + c, mask=c < centres, other=float("inf"))[None]
    if MASKED:
        own = tl.load(owner + c, mask=c < centres, other=-1)[None]
        total = tl.where(own == tl.load(asker + row)[:, None], -float("inf"), total)
    value, where = tl.max(total, 1, return_indices=True)
    out = side.to(tl.int64) * n + m
    tl.store(best + out, value, mask=there)
    tl.store(at + out, tile * TILE + side * BN + where, mask=there)


@triton.jit
def _paired_distances(
    queries, picked, rows, index, out, dim, PICKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    query = tl.load(picked + i) if PICKED else i
    row = tl.load(index + i).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, dim, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(queries + query * dim + k, mask=k < dim, other=0.0).to(tl.float32)
        y = tl.load(rows + row * dim + k, mask=k < dim, other=0.0).to(tl.float32)
        total += (x - y) * (x - y)
    tl.store(out + i, tl.sum(total))


@triton.jit
def _norms(
    rows, origin, scale, norms, rounding, dim, IDENTITY: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    rest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, dim, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(rows + i * dim + k, mask=k < dim, other=0.0).to(tl.float32)
        if not IDENTITY:
            x = (x - tl.load(origin + k, mask=k < dim, other=0.0)) * tl.load(scale)
            left = x - x.to(tl.float16).to(tl.float32)
            rest += left * left
        total += x * x
    tl.store(norms + i, tl.sqrt(tl.sum(total)))
    tl.store(rounding + i, tl.sqrt(tl.sum(rest)))


@triton.jit
def _row_hashes(rows, weights, hashes, dim, BITS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, dim, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(rows + i * dim + k, mask=k < dim, other=0.0) + 0.0  # turns -0.0 into 0.0
        if BITS == 16:
            word = x.to(tl.int16, bitcast=True).to(tl.int32)
        elif BITS == 32:
            word = x.to(tl.int32, bitcast=True)
        else:
            wide = x.to(tl.int64, bitcast=True)
            word = (wide ^ (wide >> 32)).to(tl.int32)
        word = word ^ (word >> 8) ^ (word >> 16)  # small integers differ in their high bits only
        total += word * tl.load(weights + k, mask=k < dim, other=0)
    tl.store(hashes + i, tl.sum(total))


@triton.jit(do_not_specialize=["most"])
def _pick(
    gram, norms, distances, bound, rival, picks, values, count, most, size, BLOCK: tl.constexpr
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    there = lane < size
    current = tl.load(distances + lane, mask=there, other=-1.0)
    norm = tl.load(norms + lane, mask=there, other=0.0)
    least = tl.load(bound)
    first_outside = tl.load(rival)
    picked = 0
    value, at = tl.max(current, 0, return_indices=True)  # the first among equals
    wins = (value > least) | ((value == least) & (at < first_outside))
    while wins & (value > -1.0) & (picked < most):
        tl.store(picks + picked, at)
        tl.store(values + picked, value)
        products = tl.load(gram + at.to(tl.int64) * size + lane, mask=there, other=0.0)
        to_pick = norm + tl.load(norms + at) - 2 * products
        current = tl.minimum(current, tl.maximum(to_pick, 0.0))
        current = tl.where(lane == at, -1.0, current)
        picked += 1
        value, at = tl.max(current, 0, return_indices=True)
        wins = (value > least) | ((value == least) & (at < first_outside))
    tl.store(count, picked)


def affinity(
    rows: Tensor, centres: Operands, mask: Mask | None, with_index: bool
) -> tuple[Tensor, Tensor]:
    """Largest x.c - |c|^2 / 2 over the centres c, for x = (row - origin) * scale of n rows.

    Returns:
        with index, affinities [n] float32 and centres [n] int64; otherwise the affinities in each
        tile of centres [tiles, n] float32, and an empty tensor.
    """
    n, dim, count = len(rows), rows.shape[1], len(centres.high)
    shape = _shape(rows.device, centres.mode)
    across = triton.cdiv(count, shape["BN"])
    best = torch.empty(across, n, dtype=torch.float32, device=rows.device)
    at = torch.empty(across if with_index else 0, n, dtype=torch.int32, device=rows.device)
    with _on(rows):
        _affinity[(triton.cdiv(n, shape["BM"]) * across,)](
            rows, *centres[:-1], *(mask or (rows, rows)), best, at,
            n, count, dim, OPERANDS=centres.mode, INDEX=with_index, MASKED=mask is not None,
            EVEN=dim % shape["BK"] == 0, GROUP=8, **shape,
        )  # fmt: skip
    return _best_of_tiles(best, at) if with_index else (best, at)


def closest_in_tile(
    rows: Tensor, picked: Tensor, counts: Tensor, centres: Operands, mask: Mask | None
) -> Tensor:
    """The centre of largest affinity in one tile, for n pairs of a row and a tile: [n] int64.

    `picked` [n] int64 is the row of each pair, by tile; `counts` [tiles] the pairs with each tile.
    """
    n, dim = len(picked), rows.shape[1]
    shape, tile = _shape(rows.device, centres.mode), tile_centres(rows.device)
    sides = tile // shape["BN"]
    best = torch.empty(sides, n, dtype=torch.float32, device=rows.device)
    at = torch.empty(sides, n, dtype=torch.int32, device=rows.device)
    with _on(rows):
        # upper bound on the programs: each tile's last program may be partly filled
        _affinity_in_tile[((n // shape["BM"] + len(counts)) * sides,)](
            rows, picked, counts, len(counts), *centres[:-1],
            *(mask or (rows, rows)), best, at, n, len(centres.high), dim,
            OPERANDS=centres.mode, MASKED=mask is not None, EVEN=dim % shape["BK"] == 0, TILE=tile,
            LANES=max(16, triton.next_power_of_2(len(counts))), **shape,
        )  # fmt: skip
    return _best_of_tiles(best, at)[1]


def _best_of_tiles(best: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    value, tile = best.max(0)
    return value, at.gather(0, tile[None])[0].long()


def tile_centres(device: torch.device) -> int:
    """Number of centres per tile in the results of `affinity` without indices."""
    return _shape(device, ROUNDED)["BN"]


def _shape(device: torch.device, mode: int) -> dict[str, int]:
    """Tile sizes, as large as the device's shared memory allows for prefetching."""
    shared = 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        shared = getattr(properties, "shared_memory_per_block_optin", 0)
    if shared < 200 * 2**10:
        return {"BM": 128, "BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3}
    if mode == SPLIT:
        return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}
    return {"BM": 128, "BN": 256, "BK": 64, "num_warps": 8, "num_stages": 3}


def paired_distances(queries: Tensor, picked: Tensor | None, rows: Tensor, index: Tensor) -> Tensor:
    """Squared distances of queries[picked] (or all queries) to rows[index], by difference."""
    index = index.contiguous()
    out = torch.empty(len(index), dtype=torch.float32, device=rows.device)
    if len(index):
        with _on(rows):
            _paired_distances[(len(index),)](
                queries, queries if picked is None else picked, rows, index, out, rows.shape[1],
                PICKED=picked is not None, BLOCK=512,
            )  # fmt: skip
    return out


def norms(rows: Tensor, origin: Tensor, scale: Tensor, is_identity: bool) -> tuple[Tensor, Tensor]:
    """|x| for x = (row - origin) * scale, and |x - half(x)|: [N] each. With identity, x = row."""
    out = torch.empty(2, len(rows), dtype=torch.float32, device=rows.device)
    with _on(rows):
        _norms[(len(rows),)](
            rows, origin, scale, out[0], out[1], rows.shape[1], IDENTITY=is_identity, BLOCK=512
        )
    return out[0], out[1]


def row_hashes(rows: Tensor, weights: Tensor) -> Tensor:
    """Hash of each row's bits: [N] int32. `weights` [D] are int32 and odd."""
    out = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
    with _on(rows):
        _row_hashes[(len(rows),)](
            rows, weights, out, rows.shape[1], BITS=8 * rows.element_size(), BLOCK=512
        )
    return out


def pick(
    gram: Tensor, norms: Tensor, distances: Tensor, bound: Tensor, rival: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """The pick loop of `working_set` in a single block: positions and squared distances."""
    size, most = len(norms), min(most, len(norms))
    picks = torch.empty(most, dtype=torch.int64, device=gram.device)
    values = torch.empty(most, dtype=gram.dtype, device=gram.device)
    count = torch.empty((), dtype=torch.int64, device=gram.device)
    block = triton.next_power_of_2(size)
    with _on(gram):
        _pick[(1,)](
            gram, norms, distances, bound, rival, picks, values, count, most, size,
            BLOCK=block, num_warps=min(16, max(4, block // 256)),
        )  # fmt: skip
    picked = int(count)
    return picks[:picked], values[:picked]


def _on(rows: Tensor) -> AbstractContextManager:
    """Make the rows' device the current one, where kernels launch."""
    return torch.cuda.device(rows.device) if rows.is_cuda else nullcontext()
