"""Exact rounds: the merged bank is the one that greedy selection over all patches makes.

Farthest-first selection needs the farthest of all patches. In each round a client sends the patches
that are farthest from the merged bank, together with a bound on the distance of all others; the
server picks among them as long as no patch that was not sent can be farther
(`merge.merge_exact`). It is the working set of `src.models.coreset`, spread over the clients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from src.data import InspectionDataset
from src.federated.candidates import Candidates, Stage, silent, stats_of
from src.models.patchcore import PatchCore, PatchGrids
from src.models.search.flat_index import FlatIndex

CHUNK = 16384  # patches searched for at a time


@dataclass(frozen=True)
class BankDistances:
    """Distances of a client's patches to the merged bank."""

    # [P] float32 squared distances, in the order of the images and their patches
    squared: np.ndarray
    starts: np.ndarray  # [images + 1] int64, first patch of each image; last P
    sent: np.ndarray  # [m] int64, patches that the server has
    offered: np.ndarray  # [n] int64, patches of the client's last offer, farthest first

    def after_sending(self, count: int) -> "BankDistances":
        """The same once the server has the first `count` patches of the offer."""
        return replace(self, sent=np.concatenate([self.sent, self.offered[:count]]))

    def unsent(self) -> np.ndarray:
        """Squared distances [P], zero for patches that the server has."""
        squared = self.squared.copy()
        squared[self.sent] = 0.0
        return squared


def update_distances(
    model: PatchCore,
    train: InspectionDataset,
    rows: np.ndarray,
    before: BankDistances | None = None,
    progress: Stage = silent,
) -> BankDistances:
    """Bring distances up to date with rows [n, D] that the bank has gained since `before`.

    Without `before`, `rows` are the whole bank.
    """
    if before is not None and not len(rows):
        return before
    index = FlatIndex(torch.tensor(rows, device=model.device))
    counts: list[int] = []
    patches = _chunks(_patches(model.embed(train, progress("distances")), counts))
    nearest = [index.nearest(chunk.to(model.device))[0].cpu() for chunk in patches]
    squared = torch.cat(nearest).numpy()
    if before is not None:
        return replace(before, squared=np.minimum(before.squared, squared))
    nothing = np.empty(0, np.int64)
    return BankDistances(squared, np.cumsum([0, *counts]), nothing, nothing)


def farthest_patches(
    model: PatchCore, train: InspectionDataset, distances: BankDistances, most: int
) -> tuple[Candidates, BankDistances]:
    """Offer the patches that are farthest from the merged bank, at most `most`.

    The radius of the candidates by their first n rows is the largest distance to the bank of any
    patch that has then not been sent.

    Returns:
        the candidates, and the distances with this offer recorded.
    """
    squared = distances.unsent()
    most = min(most, int((squared > 0).sum()))
    ahead = np.argpartition(-squared, min(most, len(squared) - 1))[: most + 1]
    ahead = ahead[np.lexsort([ahead, -squared[ahead]])]  # ties go by position
    radii = np.sqrt(np.append(squared[ahead], 0.0)[: most + 1])
    offered = ahead[:most]
    stats = stats_of(len(train), len(squared), model.coreset_percentage)
    rows = _patches_at(model, train, distances.starts, offered)
    candidates = Candidates(rows, radii[1:], float(radii[0]), stats)
    return candidates, replace(distances, offered=offered)


def _patches(grids: Iterable[PatchGrids], counts: list[int]) -> Iterator[Tensor]:
    """Patches [n, D] batch by batch; appends the number of patches of each image to `counts`."""
    for batch in grids:
        counts += [features[..., 0].numel() for features in batch.features]
        yield batch.features.flatten(0, 2)


def _chunks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Patches [n, D] of several batches at a time."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= CHUNK:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _patches_at(
    model: PatchCore, train: InspectionDataset, starts: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Patches [n, D] by their position among all; opens only the images that have some."""
    image = np.searchsorted(starts, indices, "right") - 1
    opened = np.unique(image)
    rows: list[Tensor] = []
    for number, grid in zip(
        opened, chain.from_iterable(model.embed(train.select(opened))), strict=True
    ):
        inside = indices[image == number] - starts[number]
        rows.append(grid.features.flatten(0, 1)[torch.as_tensor(inside)].cpu())
    if not rows:
        return np.empty((0, model.backbone.get_feature_dim()), np.float32)
    order = np.argsort(np.argsort(image, kind="stable"), kind="stable")
    return torch.cat(rows).numpy()[order]
