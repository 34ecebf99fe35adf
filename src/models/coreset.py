"""Greedy k-centre coreset: exact farthest-first selection at matrix-product speed.

Farthest-first traversal (Gonzalez 1985; PatchCore, Roth et al. 2022, algorithm 1) picks, again and
again, the row farthest from all picked so far. Distances to the picks only shrink, so a stale
distance is an upper bound. Hence blocks: take the rows of largest stale distance as a working
set, pick inside it as long as its largest distance is above every bound outside, then bring all
rows up to date against the whole block of picks in one pass of matrix products. Each pick is the
one the plain algorithm makes.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from src.models.copies import copies
from src.models.nearest import TILE_ROWS, closest, difference, tiles

Rows = TypeVar("Rows", np.ndarray, Tensor)
Progress = Callable[[int, int], None]

SMALL = 2**31  # multiply-adds below which everything is computed in float64
CHUNK = 64  # picks between two looks at whether the working set still holds the farthest row
CHOSEN = -1.0  # the distance that marks a row as out of the race: picked, or a copy of another


@dataclass(frozen=True)
class Coreset:
    """A farthest-first selection.

    Attributes:
        indices: [k] int64, rows in the order picked; any prefix is the smaller coreset.
        radii: [k] float32, covering radius (Euclidean) of all rows by the first t + 1 picks.
        distinct: number of distinct rows there were; k never exceeds it.
    """

    indices: np.ndarray
    radii: np.ndarray
    distinct: int


def greedy_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Greedy k-centre coreset of the rows, exact, in the full dimension.

    Args:
        features: [N, D] float array or tensor; a tensor is worked on where it lies.
        target_size: rows to select, 1 to N.
        seed: fixes the start row, which is part of the coreset.

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
    progress: Progress | None = None,
    working_set: int | None = None,
) -> Coreset:
    """Select by farthest-first traversal; see `greedy_coreset_selection` for rows and errors.

    Args:
        progress: called with (picks made, target size) after each block.
        working_set: rows of the working set; chosen from the sizes when left out. It changes the
            time, never the picks.
    """
    _check_shape(features, target_size)
    rows = _as_tensor(features)
    _check_finite(rows)
    start = int(np.random.default_rng(seed).integers(len(rows)))
    race = _Race(rows, start, target_size)
    size = working_set or _working_set_size(len(rows))
    while race.count < race.target:
        race.run_block(size)
        if progress:
            progress(race.count, race.target)
    if race.distinct < target_size:
        warnings.warn(
            f"{target_size} rows were asked for but only {race.distinct} of {len(rows)} are "
            "distinct: the coreset holds those",
            stacklevel=3,
        )
    return race.result()


class _Race:
    """The state of one selection: what is picked, and how far every row is from it."""

    def __init__(self, rows: Tensor, start: int, target: int) -> None:
        small = len(rows) * target * rows.shape[1] < SMALL
        self.rows = rows
        self.dtype = torch.float64 if small else torch.float32
        # float64 needs no centring, and so keeps the exact ties of whole-numbered features exact
        self.centre = torch.zeros_like(rows[0], dtype=self.dtype) if small else _mean(rows).float()
        self.norms = _norms(rows, self.centre)  # [N], relative to the centre
        repeated = copies(rows, start)
        self.distinct = len(rows) - len(repeated)
        self.target = min(target, self.distinct)
        self.picks = torch.empty(self.target, dtype=torch.int64, device=rows.device)
        # farthest[t]: squared distance of pick t to the picks before it, when it was picked
        self.farthest = torch.empty(self.target, dtype=self.dtype, device=rows.device)
        self.distances = torch.full((len(rows),), torch.inf, dtype=self.dtype, device=rows.device)
        self.distances[repeated] = CHOSEN
        self.count = 0
        self._accept(torch.tensor([start], device=rows.device), self.distances[start][None])

    def run_block(self, size: int) -> None:
        """Pick inside one working set as long as it must hold the farthest row; then update."""
        members, bound, rival = _working_set(self.distances, size)
        picks, values = _pick_inside(
            self.rows[members].to(self.dtype) - self.centre,
            self.distances[members],
            members,
            bound,
            rival,
            self.target - self.count,
        )
        self._accept(picks, values)

    def _accept(self, picks: Tensor, values: Tensor) -> None:
        """Take the picks in, and bring every row's distance up to date."""
        after = self.count + len(picks)
        self.picks[self.count : after] = picks
        self.farthest[self.count : after] = values
        self.count = after
        self.distances[picks] = CHOSEN
        centres = self.rows[picks]
        reach = self.norms[picks].max()
        for part in tiles(len(self.rows), TILE_ROWS):
            self._update(part, centres, reach)

    def _update(self, part: slice, centres: Tensor, reach: Tensor) -> None:
        """Distances of one tile against the new centres; what changes is computed by difference."""
        current = self.distances[part]
        shifted = self.rows[part].to(self.dtype) - self.centre
        partial, index = closest(shifted, centres, self.centre)
        rounding = 8 * torch.finfo(self.dtype).eps * (self.norms[part] + reach)
        changed = torch.nonzero(partial + self.norms[part] < current + rounding).squeeze(1)
        if len(changed):
            exact = difference(self.rows[part][changed], centres, index[changed], self.dtype)
            current[changed] = torch.minimum(current[changed], exact)

    def result(self) -> Coreset:
        last = self.distances.max().clamp(min=0)
        squared = torch.cat([self.farthest[1:], last[None]])
        falling = squared.flip(0).cummax(0).values.flip(0)  # as it is, but for the last bits
        radii = falling.sqrt().float().cpu().numpy()
        return Coreset(self.picks.cpu().numpy(), radii, self.distinct)


def _working_set(distances: Tensor, size: int) -> tuple[Tensor, Tensor, int]:
    """The `size` rows of largest distance, the first of equals; and what bounds all others.

    Returns:
        members: [B] indices, ascending.
        bound: the largest distance outside (CHOSEN where nothing is left outside).
        rival: the smallest index outside with that distance.
    """
    top = torch.topk(distances, min(size + 1, len(distances)))
    least = top.values[-1]
    if len(top.values) <= size:
        return torch.nonzero(distances > CHOSEN).squeeze(1), least.new_tensor(CHOSEN), 0
    above = torch.nonzero(distances > least).squeeze(1)
    equal = torch.nonzero(distances == least).squeeze(1)
    members = torch.cat([above, equal[: size - len(above)]]).sort().values
    return members, least, int(equal[size - len(above)])


def _pick_inside(
    shifted: Tensor, distances: Tensor, members: Tensor, bound: Tensor, rival: int, most: int
) -> tuple[Tensor, Tensor]:
    """Farthest-first inside a working set, for as long as no row outside can be farther.

    Args:
        shifted: the members' rows, relative to the centre [B, D].
        distances: their current squared distances [B].
        members: their indices [B], ascending, so that the first of equals is the first of all.
        bound: the largest distance outside; `rival`: the first index that has it.
        most: picks still wanted.

    Returns:
        picks (indices of rows) and the squared distance each had when picked.
    """
    norms = (shifted * shifted).sum(1)
    gram = shifted @ shifted.T
    current = distances.clone()
    picks, values = [], []
    while most > 0:
        steps = min(CHUNK, most)
        at, value = _steps(gram, norms, current, steps)
        holds = (value > bound) | ((value == bound) & (members[at] < rival))
        holds &= value > CHOSEN
        valid = int(holds.int().cumprod(0).sum())
        picks.append(members[at[:valid]])
        values.append(value[:valid])
        most -= valid
        if valid < steps:
            break
    return torch.cat(picks), torch.cat(values)


def _steps(gram: Tensor, norms: Tensor, current: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`steps` farthest-first picks; nothing here waits for the device. Updates `current`."""
    at = torch.empty(steps, dtype=torch.int64, device=gram.device)
    value = torch.empty(steps, dtype=gram.dtype, device=gram.device)
    for step in range(steps):
        torch.max(current, 0, out=(value[step], at[step]))
        pick = at[step : step + 1]
        to_pick = (norms + norms[pick]).sub_(gram[pick].squeeze(0), alpha=2).clamp_(min=0)
        torch.minimum(current, to_pick, out=current)
        current[pick] = CHOSEN
    return at, value


def _working_set_size(rows: int) -> int:
    """Rows of the working set: large enough for long blocks, small beside one update pass."""
    return max(256, min(2048, rows // 32))


def _mean(rows: Tensor) -> Tensor:
    sums = [rows[part].double().sum(0) for part in tiles(len(rows), TILE_ROWS)]
    return torch.stack(sums).sum(0) / len(rows)


def _norms(rows: Tensor, centre: Tensor) -> Tensor:
    parts = (rows[part].to(centre.dtype) - centre for part in tiles(len(rows), TILE_ROWS))
    return torch.cat([(x * x).sum(1) for x in parts])


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


def _as_tensor(features: Rows) -> Tensor:
    """The rows as a tensor that shares their memory where it can; nothing writes to it."""
    if isinstance(features, Tensor):
        return features.detach()
    return torch.from_numpy(np.require(features, None, ["C", "W"]))


def _check_finite(rows: Tensor) -> None:
    bad = sum(int((~torch.isfinite(rows[p]).all(1)).sum()) for p in tiles(len(rows), TILE_ROWS))
    if bad:
        raise ValueError(f"{bad} of {len(rows)} rows hold NaN or infinite values")


def _indices_like(features: Rows, indices: np.ndarray) -> Rows:
    if isinstance(features, Tensor):
        return torch.as_tensor(indices, device=features.device)
    return indices
