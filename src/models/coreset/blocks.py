"""Exact farthest-first selection in blocks, at the speed of matrix products.

Distances to the picks only shrink, so an outdated distance is an upper bound. Therefore: take the
rows of largest outdated distance as a working set, pick inside it while its largest distance
exceeds every bound outside, then update all rows against the whole block of picks with matrix
products. Each pick is the one the plain algorithm makes.

A block brings few rows closer. An approximate product with a bounded error finds the candidates
(`Centres.approximate`, in half precision on a GPU), and only these are then compared exactly.
"""

import math

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.duplicates import find_duplicates
from src.models.coreset.sharding import Shard, Shards, run_parallel
from src.models.coreset.statistics import product_scalings, start_row
from src.models.coreset.types import TAKEN, Coreset, Progress
from src.models.coreset.working_set import pick_inside
from src.models.search.distances import Centres, ProductScaling
from src.models.search.flat_index import paired_distances

UPDATE_BYTES = 64 * 2**20  # memory for the products of one update, or 2 % of the rows
PAIR_BYTES = 32  # memory per row and tile of picks, if every row comes closer


class BlockSelection:
    """The state of one selection: the picks, and the distance of every row to them.

    The arguments are those of `farthest_first`. `squared_distances` take the place of `existing`.
    """

    def __init__(
        self,
        rows: Shards,
        seed: int,
        target_size: int,
        existing: Tensor | None = None,
        squared_distances: np.ndarray | None = None,
    ) -> None:
        self.rows, self.lead = rows, rows.lead
        if squared_distances is not None:
            existing = None
        self.scaling, approximate = product_scalings(rows, existing)
        self.shards = rows.map(lambda shard: _ShardDistances(shard, self.scaling, approximate))
        continues = existing is not None or squared_distances is not None
        start = 0 if continues else start_row(rows, seed)
        duplicates = find_duplicates(rows, start)
        self.distinct = len(rows) - len(duplicates)
        self.target = min(target_size, self.distinct)
        self.picks = torch.empty(self.target, dtype=torch.int64, device=self.lead)
        # squared distance of each pick to the previous ones when it was picked
        self.pick_distances = torch.empty(self.target, device=self.lead)
        self.count = 0
        self.initial_radius = math.inf
        self._take(duplicates)
        if continues:
            self._continue_from(existing, squared_distances)
        else:
            infinite = torch.full((1,), torch.inf, device=self.lead)
            self._accept(torch.tensor([start], device=self.lead), infinite)

    def run(
        self, min_distance: float, working_set: int | None, progress: Progress | None
    ) -> Coreset:
        """Pick until the target is reached, or no row is at least `min_distance` from the picks."""
        size = working_set or _working_set_size(self.rows)
        while self.count < self.target and (not min_distance or self.radius() >= min_distance):
            members, squared, bound, rival = self._working_set(size)
            rows = self.rows.take(members).float().sub_(self.scaling.origin)
            remaining = self.target - self.count
            positions, values = pick_inside(rows, squared, members, bound, rival, remaining)
            self._accept(members[positions], values)
            if progress:
                progress(self.count, self.target)
        picks = self.picks[: self.count].cpu().numpy()
        return Coreset(picks, self._radii(), self.distinct, self.initial_radius)

    def radius(self) -> float:
        """Covering radius of all rows by the picks so far."""
        return math.sqrt(max(0.0, *(float(shard.squared.max()) for shard in self.shards)))

    def _continue_from(self, existing: Tensor | None, squared: np.ndarray | None) -> None:
        """Start from existing rows, or from the distances to them, instead of a start row."""
        if squared is not None:
            for shard in self.shards:
                shard.lower(squared)
        elif existing is not None:
            done = 0
            while done < len(existing):
                part = existing[done : done + min(4096, max(256, done))]
                self._update(part.to(self.lead), done)
                done += len(part)
        self.initial_radius = self.radius()
        self.distinct -= sum(shard.take_covered() for shard in self.shards)
        self.target = min(self.target, self.distinct)

    def _working_set(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The `size` rows of largest distance, the first among equals, and a bound for all others.

        Returns:
            members: [B] indices, ascending.
            squared: [B] their squared distances.
            bound: the largest squared distance outside; TAKEN if no row is left outside.
            rival: the smallest index outside at that distance.
        """
        farthest = zip(*(shard.farthest(size + 1) for shard in self.shards), strict=True)
        members, squared = (torch.cat([x.to(self.lead) for x in parts]) for parts in farthest)
        order = squared.sort(descending=True, stable=True).indices  # members are ascending
        inside = order[:size].sort().values
        outside = order[size : size + 1]
        if len(outside):
            bound, rival = squared[outside[0]], members[outside[0]]
        else:
            bound, rival = squared.new_tensor(TAKEN), members.new_tensor(0)
        return members[inside], squared[inside], bound, rival

    def _accept(self, picks: Tensor, squared: Tensor) -> None:
        """Append picks, and update the distances of all rows."""
        before, after = self.count, self.count + len(picks)
        self.picks[before:after] = picks
        self.pick_distances[before:after] = squared
        self.count = after
        self._take(picks)
        self._update(self.rows.take(picks), before)

    def _update(self, centres: Tensor, previous: int) -> None:
        run_parallel(lambda shard: shard.update(centres, previous), self.shards)

    def _take(self, indices: Tensor) -> None:
        """Mark rows as no longer available."""
        for shard, inside in zip(self.shards, self.rows.masks(indices), strict=True):
            local = (indices[inside] - shard.shard.first).to(shard.shard.device)
            shard.squared[local] = TAKEN

    def _radii(self) -> np.ndarray:
        """Covering radius after each pick: the distance of the next pick, for the last measured."""
        picked = self.pick_distances[1 : self.count].sqrt()
        radii = torch.cat([picked, picked.new_tensor([self.radius()])])
        monotone = radii.flip(0).cummax(0).values.flip(0)  # rounding may let the last bits grow
        return monotone[: self.count].float().cpu().numpy()


class _ShardDistances:
    """Squared distances from the rows of one shard to their closest pick."""

    def __init__(self, shard: Shard, exact: ProductScaling, approximate: ProductScaling) -> None:
        self.shard = shard
        self.exact, self.approximate = exact.to(shard.device), approximate.to(shard.device)
        norms = [self.approximate.norms(tile) for _, tile in shard.tiles()]
        self.norms, self.rounding = (torch.cat(values) for values in zip(*norms, strict=True))
        # [n]; TAKEN for rows that are not available
        self.squared = torch.full((len(shard),), torch.inf, device=shard.device)

    def farthest(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices (ascending) and squared distances of the `count` farthest available rows."""
        count = min(count, len(self.squared))
        least = torch.topk(self.squared, count, sorted=False).values.min()
        above = torch.nonzero(self.squared > least).squeeze(1)
        equal = torch.nonzero((self.squared == least) & (least > TAKEN)).squeeze(1)
        local = torch.cat([above, equal[: count - len(above)]]).sort().values
        return local + self.shard.first, self.squared[local]

    def lower(self, squared: np.ndarray) -> None:
        """Lower the distances to known squared distances [N] of the whole set."""
        own = squared[self.shard.first : self.shard.first + len(self.shard)]
        values = torch.tensor(own, dtype=torch.float32, device=self.shard.device)
        torch.minimum(self.squared, values, out=self.squared)

    def take_covered(self) -> int:
        """Mark rows at distance zero as taken; returns their number."""
        zero = self.squared == 0
        self.squared[zero] = TAKEN
        return int(zero.sum())

    def update(self, picks: Tensor, previous: int) -> None:
        """Update the distances with new picks [b, D] that follow `previous` earlier ones."""
        picks = picks.to(self.shard.device)
        exact, approximate = Centres(picks, self.exact), Centres(picks, self.approximate)
        # early on nearly every row comes closer, so a search for candidates does not pay
        compare_all = approximate.tiles == 1 and 2 * len(picks) >= previous
        budget = max(UPDATE_BYTES, self.shard.rows.nbytes // 50)
        for part, rows in self.shard.tiles(max(1, budget // (PAIR_BYTES * approximate.tiles))):
            current = self.squared[part]
            if compare_all:
                to_pick = paired_distances(rows, picks, exact.closest(rows))
                torch.minimum(current, to_pick, out=current)
            else:
                candidates, closest = self._candidates(rows, part, approximate, exact)
                to_pick = paired_distances(rows, picks, closest, candidates)
                current.scatter_reduce_(0, candidates, to_pick, "amin")

    def _candidates(
        self, rows: Tensor, part: slice, approximate: Centres, exact: Centres
    ) -> tuple[Tensor, Tensor]:
        """Pairs of a row and a tile's closest pick, for all that may bring the row closer: [n]."""
        norms, rounding = self.norms[part], self.rounding[part]
        # closer if |x|^2 - 2 (affinity + error) < squared distance
        threshold = (norms.square() - self.squared[part] * self.approximate.scale.square()) / 2
        affinity, closest = approximate.approximate(rows)
        error = approximate.error_bound(norms, rounding)
        tile, candidates = torch.nonzero(affinity > threshold - error, as_tuple=True)
        if closest is not None:
            return candidates, closest[tile, candidates]
        return candidates, exact.closest_in_tile(rows, candidates, tile)


def _working_set_size(rows: Shards) -> int:
    """Rows of the working set: enough for long blocks, with a Gram matrix small beside the rows."""
    if rows.lead.type == "cpu":
        return max(512, min(1024, len(rows) // 32))
    room = 0.02 * len(rows) * rows.dim * rows.dtype.itemsize  # float32, 8 % of the rows' bytes
    return int(max(512, min(4096, (math.sqrt(rows.dim**2 + 4 * room) - rows.dim) / 2)))
