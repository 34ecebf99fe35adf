"""Greedy k-centre coreset: exact farthest-first selection at matrix-product speed.

Farthest-first traversal (Gonzalez 1985; PatchCore, Roth et al. 2022, algorithm 1) picks, again and
again, the row farthest from all picked so far. Distances to the picks only shrink, so a stale
distance is an upper bound. Hence blocks: take the rows of largest stale distance as a working
set, pick inside it as long as its largest distance is above every bound outside, then bring all
rows up to date against the whole block of picks in one pass of matrix products. Each pick is the
one the plain algorithm makes.

In one block few rows come closer. A product whose error is bounded finds those that may have
(`Centres.rough`: on a GPU one of half precision), and only they are then looked at exactly.

`select_sequentially` is faster for few picks from rows that fit a processor's cache.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.duplicates import copies
from src.models.coreset.sequential import select_sequentially
from src.models.coreset.sharding import Shard, Shards, side_by_side
from src.models.coreset.working_set import CHOSEN, pick_inside
from src.models.search.distances import HALVES, Centres, Frame, rows_not_finite, tiles, uses_kernels
from src.models.search.flat_index import FAR_OFF, difference

Rows = TypeVar("Rows", np.ndarray, Tensor)
Progress = Callable[[int, int], None]

IN_CACHE = 2**22  # values up to which rows are worked on pick by pick,
FEW = 2**28  # as long as values times picks are no more
STRETCH_BYTES = 64 * 2**20  # for results while rows are brought up to date, or 2 % of the rows
PAIR_BYTES = 32  # for a row and a tile of picks, were each to come closer
AHEAD = 64  # rows that are looked at in double precision for the start
FIRST_COVERED, MOST_COVERED = 256, 4096  # rows that are there already, taken in at a time


@dataclass(frozen=True)
class Coreset:
    """A farthest-first selection.

    Attributes:
        indices: [k] int64, rows in the order picked; any prefix is the smaller coreset.
        radii: [k] float32, covering radius (Euclidean) of all rows by the first t + 1 picks.
        distinct: number of distinct rows there were to pick from; k never exceeds it.
        before: covering radius of all rows before the first pick: by `covered`, else infinite.
    """

    indices: np.ndarray
    radii: np.ndarray
    distinct: int
    before: float = math.inf


def greedy_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Greedy k-centre coreset of the rows, exact, in the full dimension.

    Args:
        features: [N, D] float array or tensor; a tensor is worked on where it lies.
        target_size: rows to select, 1 to N.
        seed: fixes the start row, which is part of the coreset: the one that lies farthest along
            a direction drawn from the seed, whatever the order of the rows.

    Returns:
        [target_size, D] in the order picked, of the type and dtype given. Where fewer distinct
        rows exist, all of those, with a warning that says how many.

    Raises:
        ValueError: not a matrix of floating-point numbers, a target size out of range, or rows
            with NaN or infinite values.
    """
    chosen = farthest_first(features, target_size, seed)
    return features[_indices_like(features, chosen.indices)]


def random_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Uniform selection without replacement: [target_size, D], the baseline greedy is held against.

    Raises:
        ValueError: not a matrix of floating-point numbers, or a target size out of range.
    """
    _check_shape(features, target_size)
    picks = np.random.default_rng(seed).choice(len(features), target_size, replace=False)
    return features[_indices_like(features, picks)]


def farthest_first(
    features: Rows,
    target_size: int,
    seed: int = 42,
    *,
    covered: np.ndarray | Tensor | None = None,
    squared: np.ndarray | None = None,
    least: float = 0.0,
    devices: Sequence[str | torch.device] | None = None,
    progress: Progress | None = None,
    working_set: int | None = None,
) -> Coreset:
    """Select by farthest-first traversal; see `greedy_coreset_selection` for rows and errors.

    Args:
        covered: [M, D] rows of a bank that is there already. The selection goes on from it: the
            first pick is the row farthest from it, the seed does not matter, and rows that equal
            one of it are not picked. Taken in the features' precision.
        squared: [N] squared distances of the rows to such a bank, in place of `covered`, where they
            are known.
        least: no row is picked whose distance to the picks before it is smaller than this.
        devices: that share the rows and the work; None leaves both where the rows lie. Rows that
            do not fit a GPU stay where they are, a memory-mapped file too, and pass through it.
        progress: called with (picks made, target size) after each block.
        working_set: rows of the working set; chosen from the sizes when left out. Like the
            devices, it changes the time, and the picks only where distances tie to rounding.
    """
    _check_shape(features, target_size)
    given = _as_tensor(features)
    few = given.numel() <= IN_CACHE and given.numel() * target_size <= FEW
    goes_on = covered is not None or squared is not None
    if few and not goes_on:
        coreset = _pick_by_pick(given.cpu(), seed, target_size)
        if progress:
            progress(len(coreset.indices), len(coreset.indices))
    else:
        rows = Shards(given, [torch.device(d) for d in devices] if devices else None)
        there = None if covered is None or squared is not None else _like(given, covered)
        race = _Race(rows, seed, target_size, there, squared)
        size = working_set or _working_set_size(rows)
        while race.count < race.target and (not least or race.farthest_left() >= least):
            race.run_block(size)
            if progress:
                progress(race.count, race.target)
        coreset = race.result()
    if least:
        coreset = _no_closer_than(coreset, least)
    if coreset.distinct < target_size and not goes_on:
        warnings.warn(
            f"{target_size} rows were asked for but only {coreset.distinct} of {len(given)} are "
            "distinct: the coreset holds those",
            stacklevel=3,
        )
    return coreset


def _no_closer_than(coreset: Coreset, least: float) -> Coreset:
    """The picks whose distance to those before them, when they were picked, is at least `least`."""
    distances = np.concatenate([[coreset.before], coreset.radii[:-1]])[: len(coreset.indices)]
    count = int((distances >= least).sum())  # they never rise
    return replace(coreset, indices=coreset.indices[:count], radii=coreset.radii[:count])


def _pick_by_pick(rows: Tensor, seed: int, target: int) -> Coreset:
    if not torch.isfinite(torch.stack(torch.aminmax(rows))).all():
        _refuse(rows_not_finite(rows), len(rows))
    start = _start(Shards(rows), seed)
    repeated = copies(Shards(rows), start)
    distinct = len(rows) - len(repeated)
    wide = rows.double() if rows.dtype == torch.bfloat16 else rows  # which arrays do not have
    picks, squared = select_sequentially(
        wide.numpy(), start, repeated.numpy(), min(target, distinct)
    )
    return Coreset(picks, np.sqrt(squared).astype(np.float32), distinct)


class _Race:
    """The state of one selection: what is picked, and how far every row is from it."""

    def __init__(
        self,
        rows: Shards,
        seed: int,
        target: int,
        covered: Tensor | None,
        squared: np.ndarray | None,
    ) -> None:
        self.rows, self.lead = rows, rows.lead
        exact, rough = _frames(rows, covered)
        self.exact = exact
        self.runners = rows.each(
            lambda shard: _Runners(shard, exact.on(shard.device), rough.on(shard.device))
        )
        goes_on = covered is not None or squared is not None
        start = 0 if goes_on else _start(rows, seed)
        repeated = copies(rows, start)
        self.distinct = len(rows) - len(repeated)
        self.target = min(target, self.distinct)
        self.picks = torch.empty(self.target, dtype=torch.int64, device=self.lead)
        # farthest[t]: squared distance of pick t to the picks before it, when it was picked
        self.farthest = torch.empty(self.target, device=self.lead)
        self.count = 0
        self.before = math.inf
        self._leave(repeated)
        if not goes_on:
            infinite = torch.full((1,), torch.inf, device=self.lead)
            self._accept(torch.tensor([start], device=self.lead), infinite)
            return
        if squared is not None:
            for runners in self.runners:
                runners.stand_at(squared)
        elif covered is not None:
            self._pick_before(covered)
        self.before = self.farthest_left()
        self.distinct -= sum(runners.leave_covered() for runners in self.runners)
        self.target = min(self.target, self.distinct)

    def _pick_before(self, covered: Tensor) -> None:
        """Count rows that are no candidates [M, D] as picked before all others."""
        done = 0
        while done < len(covered):
            part = covered[done : done + min(MOST_COVERED, max(FIRST_COVERED, done))]
            self._update(part.to(self.lead), done)
            done += len(part)

    def farthest_left(self) -> float:
        """Distance to the picks of the row that is farthest from them."""
        squared = max(float(runners.distances.max()) for runners in self.runners)
        return math.sqrt(max(squared, 0.0))

    def run_block(self, size: int) -> None:
        """Pick inside one working set as long as it must hold the farthest row; then update."""
        members, distances, bound, rival = self._working_set(size)
        at, values = pick_inside(
            self.rows.take(members).float().sub_(self.exact.origin),
            distances,
            members,
            bound,
            rival,
            self.target - self.count,
        )
        self._accept(members[at], values)

    def result(self) -> Coreset:
        if not self.count:
            nothing = np.empty(0, np.float32)
            return Coreset(nothing.astype(np.int64), nothing, self.distinct, self.before)
        picked = self.farthest[1 : self.count].sqrt()
        distances = torch.cat([picked, picked.new_tensor([self.farthest_left()])])
        falling = distances.flip(0).cummax(0).values.flip(0)  # as it is, but for the last bits
        radii = falling.float().cpu().numpy()
        return Coreset(self.picks[: self.count].cpu().numpy(), radii, self.distinct, self.before)

    def _accept(self, picks: Tensor, values: Tensor) -> None:
        """Take the picks in, and bring every row's distance up to date."""
        before, after = self.count, self.count + len(picks)
        self.picks[before:after] = picks
        self.farthest[before:after] = values
        self.count = after
        self._leave(picks)
        self._update(self.rows.take(picks), before)

    def _update(self, centres: Tensor, before: int) -> None:
        side_by_side(
            lambda runners: runners.update(centres.to(runners.shard.device), before), self.runners
        )

    def _leave(self, indices: Tensor) -> None:
        """Take rows out of the race."""
        for runners, inside in zip(self.runners, self.rows.split(indices), strict=True):
            local = (indices[inside] - runners.shard.first).to(runners.shard.device)
            runners.distances[local] = CHOSEN

    def _working_set(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The `size` rows of largest distance, the first of equals; and what bounds all others.

        Returns:
            members: [B] indices, ascending.
            distances: of theirs [B].
            bound: the largest distance outside (CHOSEN where nothing is left outside).
            rival: the smallest index outside with that distance.
        """
        ahead = [runners.ahead(size + 1) for runners in self.runners]
        members = torch.cat([indices.to(self.lead) for indices, _ in ahead])
        distances = torch.cat([values.to(self.lead) for _, values in ahead])
        order = distances.sort(descending=True, stable=True).indices  # members are ascending
        inside = order[:size].sort().values
        outside = order[size : size + 1]
        if len(outside):
            bound, rival = distances[outside[0]], members[outside[0]]
        else:
            bound, rival = distances.new_tensor(CHOSEN), members.new_tensor(0)
        return members[inside], distances[inside], bound, rival


class _Runners:
    """The rows of one shard in the race.

    Attributes:
        distances: [n] squared, to the closest pick; CHOSEN for rows that are out.
    """

    def __init__(self, shard: Shard, exact: Frame, rough: Frame) -> None:
        self.shard, self.exact, self.rough = shard, exact, rough
        measured = [self.rough.lengths(tile) for _, tile in shard.tiles(shard.scratch)]
        self.lengths, self.lost = (torch.cat(values) for values in zip(*measured, strict=True))
        self.distances = torch.full((len(shard),), torch.inf, device=shard.device)

    def ahead(self, size: int) -> tuple[Tensor, Tensor]:
        """The `size` rows of largest distance still in the race, the first of equals.

        Returns:
            indices in the whole set [m], ascending, and distances [m].
        """
        if size >= len(self.distances):
            local = torch.nonzero(self.distances > CHOSEN).squeeze(1)
        else:
            least = torch.topk(self.distances, size, sorted=False).values.min()
            above = torch.nonzero(self.distances > least.clamp(min=CHOSEN)).squeeze(1)
            equal = torch.nonzero((self.distances == least) & (least > CHOSEN)).squeeze(1)
            local = torch.cat([above, equal[: size - len(above)]]).sort().values
        return local + self.shard.first, self.distances[local]

    def stand_at(self, squared: np.ndarray) -> None:
        """Take distances over that are known, [N] of the whole set."""
        mine = squared[self.shard.first : self.shard.first + len(self.shard)]
        known = torch.tensor(mine, dtype=torch.float32, device=self.shard.device)
        self.distances = torch.where(self.distances == CHOSEN, self.distances, known)

    def leave_covered(self) -> int:
        """Take out the rows at distance zero; returns how many those are."""
        zero = self.distances == 0
        self.distances[zero] = CHOSEN
        return int(zero.sum())

    def update(self, picks: Tensor, before: int) -> None:
        """Bring the distances up to date against new picks [b, D], when `before` were made."""
        exact, rough = Centres(picks, self.exact), Centres(picks, self.rough)
        # early on nearly every row finds a closer pick: to look for those is idle
        all_closer = rough.tiles == 1 and 2 * len(picks) >= before
        for part, rows in self.shard.tiles(self._stretch(rough.tiles)):
            current = self.distances[part]
            if all_closer:
                to_pick = difference(rows, picks, exact.closest(rows))
                torch.minimum(current, to_pick, out=current)
            else:
                picked, at = self._suspects(rows, part, rough, exact)
                to_pick = difference(rows, picks, at, picked)
                current.scatter_reduce_(0, picked, to_pick, "amin")

    def _suspects(
        self, rows: Tensor, part: slice, rough: Centres, exact: Centres
    ) -> tuple[Tensor, Tensor]:
        """Rows that may be closer to a new pick than to all before, and that pick.

        Returns:
            rows [n], one that comes near picks of several tiles once for each, and the closest
            of the tile's picks [n].
        """
        lengths, lost = self.lengths[part], self.lost[part]
        # closer: |x|^2 - 2 (affinity + error) < distance
        needed = (lengths.square() - self.distances[part] * self.rough.scale.square()) / 2
        affinity, at = rough.rough(rows)
        tile, picked = torch.nonzero(affinity > needed - rough.error(lengths, lost), as_tuple=True)
        if at is not None:
            return picked, at[tile, picked]
        return picked, exact.closest_in_tile(rows, picked, tile)

    def _stretch(self, tiles: int) -> int:
        """Rows brought up to date at a time: results for all their tiles stay little."""
        budget = max(STRETCH_BYTES, self.shard.rows.nbytes // 50)
        return max(1, budget // (PAIR_BYTES * tiles))


def _frames(rows: Shards, covered: Tensor | None) -> tuple[Frame, Frame]:
    """Where to form exact products, and rough ones, of the rows with each other and with `covered`.

    Around the mean is exact; the rows as they are need no copy, and will do when near the origin.

    Raises:
        ValueError: rows with NaN or infinite values.
    """
    seen = rows.each(_seen)
    sums, largest, squares = (
        torch.stack([values[i].to(rows.lead) for values in seen]) for i in range(3)
    )
    mean = sums.sum(0) / len(rows)
    if not torch.isfinite(mean).all():
        bad = rows.each(
            lambda shard: sum(rows_not_finite(tile) for _, tile in shard.tiles(shard.scratch))
        )
        _refuse(sum(bad), len(rows))
    reach = largest.amax().float()
    if covered is not None:
        longest = torch.linalg.vector_norm(covered.float(), dim=1).amax()
        reach = torch.maximum(reach, longest.to(reach.device))
    frame = Frame.around(mean.float(), reach)
    offset = mean.square().sum()
    around = squares.sum() / len(rows) - offset
    if not offset <= FAR_OFF * around or (uses_kernels(frame.origin) and rows.dtype not in HALVES):
        return frame, frame
    plain = Frame.as_it_is(rows.dim, rows.lead)
    return plain if uses_kernels(frame.origin) else frame, plain


def _start(rows: Shards, seed: int) -> int:
    """The row that lies farthest along a direction drawn from the seed; of equals the first.

    Which it is does not depend on the order of the rows, nor on who holds them.
    """
    direction = torch.as_tensor(np.random.default_rng(seed).standard_normal(rows.dim))
    ahead = rows.each(lambda shard: _ahead_along(shard, direction.float().to(shard.device)))
    indices = torch.cat([found.to(rows.lead) for found in ahead])  # ascending
    reach = (rows.take(indices).cpu().double() * direction).sum(1)
    return int(indices[int(reach.argmax())])


def _ahead_along(shard: Shard, direction: Tensor) -> Tensor:
    """The rows [m] of a shard that lie farthest along a direction [D], ascending.

    Enough of them that single precision's rounding leaves out none that may be the farthest.
    """
    reach = torch.empty(len(shard), device=shard.device)
    for where, stretch in shard.tiles(shard.scratch):
        for part in tiles(len(stretch), max(1024, len(shard) // 128)):
            reach[where][part] = stretch[part].float() @ direction
    return reach.topk(min(len(reach), AHEAD)).indices.sort().values + shard.first


def _seen(shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
    """Column sums [D], the largest length, and the sum of squares of a shard's rows."""
    sums, lengths = [], []
    as_it_is = Frame.as_it_is(shard.dim, shard.device)
    for _, stretch in shard.tiles(shard.scratch):
        lengths.append(as_it_is.lengths(stretch)[0].double())
        for part in tiles(len(stretch), max(1024, len(shard) // 128)):
            sums.append(stretch[part].sum(0, dtype=torch.float32).double())
    each = torch.cat(lengths)
    return torch.stack(sums).sum(0), each.max(), each.square().sum()


def _refuse(bad: int, of: int) -> None:
    if bad:
        raise ValueError(f"{bad} of {of} rows hold NaN or infinite values")


def _working_set_size(rows: Shards) -> int:
    """Rows of the working set: enough for long blocks, its Gram matrix small beside the rows."""
    if rows.lead.type == "cpu":
        return max(512, min(1024, len(rows) // 32))
    room = 0.02 * len(rows) * rows.dim * rows.dtype.itemsize  # float32, 8 % of the rows' bytes
    return int(max(512, min(4096, (math.sqrt(rows.dim**2 + 4 * room) - rows.dim) / 2)))


def _check_shape(features: Rows, target_size: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not of shape {tuple(features.shape)}")
    floating = (
        features.is_floating_point() if isinstance(features, Tensor) else features.dtype.kind == "f"
    )
    if not floating:
        raise ValueError(f"features must be floating-point numbers, not {features.dtype}")
    if not 1 <= target_size <= len(features):
        raise ValueError(
            f"target_size is {target_size}: it must be 1 to {len(features)} (the rows)"
        )


def _as_tensor(features: np.ndarray | Tensor) -> Tensor:
    """The rows as a tensor that shares their memory where it can; nothing writes to it."""
    if isinstance(features, Tensor):
        return features.detach().contiguous()
    with warnings.catch_warnings():  # of memory that is not writable: a file mapped read-only
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(features))


def _like(features: Tensor, covered: np.ndarray | Tensor) -> Tensor:
    """The rows that are there already, in the features' precision.

    Raises:
        ValueError: another dimension, or values that are not finite.
    """
    rows = _as_tensor(covered)
    if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
        raise ValueError(f"covered must be [M, {features.shape[1]}], not {tuple(rows.shape)}")
    rows = rows.to(features.dtype)
    bad = rows_not_finite(rows)
    if bad:
        raise ValueError(f"{bad} of {len(rows)} covered rows hold NaN or infinite values")
    return rows


def _indices_like(features: Rows, indices: np.ndarray) -> Rows:
    if isinstance(features, Tensor):
        return torch.as_tensor(indices, device=features.device)
    return indices
