"""Exact rounds: the merged bank as greedy selection over all clients' patches makes it.

Farthest-first needs the farthest of all patches. So in each round a client sends those of its
patches that are farthest from the bank so far, and says how far the others are at most; the server
picks among what was sent as long as no patch that was not can be farther (`merge`). It is the
working set of `src.models.coreset`, spread over the clients.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from src.data import InspectionDataset
from src.federated.candidates import Candidates, Stage, holding, silent
from src.models.patchcore import PatchCore, PatchGrids
from src.models.search.flat_index import FlatIndex

TOGETHER = 16384  # patches that are searched for at a time


@dataclass(frozen=True)
class Standing:
    """How far a client's patches are from the bank so far.

    Attributes:
        squared: [P] float32, squared distances, in the order of the images and their patches.
        starts: [images + 1] int64, the first patch of each image; last P.
        sent: [m] int64, patches that the server has.
        offered: [n] int64, those that the client last said it could send, farthest first.
    """

    squared: np.ndarray
    starts: np.ndarray
    sent: np.ndarray
    offered: np.ndarray

    def settled(self, count: int) -> "Standing":
        """The same once the server has the first `count` of what was offered."""
        return replace(self, sent=np.concatenate([self.sent, self.offered[:count]]))

    def unsent(self) -> np.ndarray:
        """Squared distances [P], with zeros for the patches that the server has."""
        left = self.squared.copy()
        left[self.sent] = 0.0
        return left


def stand_to(
    model: PatchCore,
    train: InspectionDataset,
    rows: np.ndarray,
    before: Standing | None = None,
    progress: Stage = silent,
) -> Standing:
    """How far a client's patches are from the bank, which has gained rows [n, D] since `before`.

    Without a `before`, `rows` are the whole bank.
    """
    if before is not None and not len(rows):
        return before
    index = FlatIndex(torch.tensor(rows, device=model.device))
    counts: list[int] = []
    patches = _stretches(_counted(model.embed(train, progress("distances")), counts))
    found = [index.nearest(some.to(model.device))[0].cpu() for some in patches]
    squared = torch.cat(found).numpy()
    if before is not None:
        return replace(before, squared=np.minimum(before.squared, squared))
    nothing = np.empty(0, np.int64)
    return Standing(squared, np.cumsum([0, *counts]), nothing, nothing)


def farthest_patches(
    model: PatchCore, train: InspectionDataset, standing: Standing, most: int
) -> tuple[Candidates, Standing]:
    """The patches that a client could send, at most `most`, and where that leaves it.

    The radius of the candidates by their first n rows is the largest distance to the bank of any
    patch that has then not been sent.
    """
    left = standing.unsent()
    most = min(most, int((left > 0).sum()))
    ahead = np.argpartition(-left, min(most, len(left) - 1))[: most + 1]
    ahead = ahead[np.lexsort([ahead, -left[ahead]])]  # of equally far ones the first comes first
    distances = np.sqrt(np.append(left[ahead], 0.0)[: most + 1])
    offered = ahead[:most]
    held = holding(len(train), len(left), model.coreset_percentage)
    rows = _patches_at(model, train, standing.starts, offered)
    found = Candidates(rows, distances[1:], float(distances[0]), held)
    return found, replace(standing, offered=offered)


def _counted(grids: Iterable[PatchGrids], counts: list[int]) -> Iterator[Tensor]:
    """Patches [n, D] by the batch; how many each image has is noted on the way."""
    for batch in grids:
        counts += [features[..., 0].numel() for features in batch.features]
        yield batch.features.flatten(0, 2)


def _stretches(patches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Patches [n, D] of several batches at a time."""
    waiting: list[Tensor] = []
    for some in patches:
        waiting.append(some)
        if sum(map(len, waiting)) >= TOGETHER:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _patches_at(
    model: PatchCore, train: InspectionDataset, starts: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """Patches [n, D] by their place among all; only the images that have some are opened."""
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
