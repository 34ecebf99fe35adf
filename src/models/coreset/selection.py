"""Coresets of feature rows: greedy k-centre (farthest-first) selection, and random selection.

Farthest-first traversal (Gonzalez 1985; PatchCore, Roth et al. 2022, algorithm 1) repeatedly picks
the row farthest from all previous picks. The selection is exact, in the full dimension.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.blocks import BlockSelection
from src.models.coreset.duplicates import find_duplicates
from src.models.coreset.sequential import select_sequentially
from src.models.coreset.sharding import Shards
from src.models.coreset.statistics import refuse_nonfinite, start_row
from src.models.coreset.types import Coreset, Progress
from src.models.search.distances import count_nonfinite_rows

Rows = TypeVar("Rows", np.ndarray, Tensor)

IN_CACHE = 2**22  # sequential selection is faster up to this many values,
FEW = 2**28  # and up to this many values times picks


def greedy_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Select rows by farthest-first traversal.

    Args:
        features: [N, D] float array or tensor; a tensor is processed on its device.
        target_size: number of rows to select, 1 to N.
        seed: fixes a random direction. The row farthest along it is the first pick, in whatever
            order the rows come.

    Returns:
        [target_size, D] in the order picked, with the type and dtype of `features`. If fewer rows
        are distinct, all of those, with a warning.

    Raises:
        ValueError: features are not a floating-point matrix or not finite, or target_size is out
            of range.
    """
    coreset = farthest_first(features, target_size, seed)
    return features[_indices_for(features, coreset.indices)]


def random_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Select [target_size, D] rows uniformly without replacement; a baseline for greedy selection.

    Raises:
        ValueError: features are not a floating-point matrix, or target_size is out of range.
    """
    _check_shape(features, target_size)
    picks = np.random.default_rng(seed).choice(len(features), target_size, replace=False)
    return features[_indices_for(features, picks)]


def farthest_first(
    features: Rows,
    target_size: int,
    seed: int = 42,
    *,
    existing: np.ndarray | Tensor | None = None,
    squared_distances: np.ndarray | None = None,
    min_distance: float = 0.0,
    devices: Sequence[str | torch.device] | None = None,
    progress: Progress | None = None,
    working_set: int | None = None,
) -> Coreset:
    """Select by farthest-first traversal; `greedy_coreset_selection` describes rows and errors.

    Args:
        existing: [M, D] rows of an existing bank, from which the selection continues: the first
            pick is the row farthest from it, and rows equal to one of it are not picked. It is
            converted to the precision of the features.
        squared_distances: [N] squared distances of the rows to an existing bank, if they are known.
        min_distance: stop at the first pick that is closer than this to all previous ones.
        devices: devices that share the rows and the work; by default the device of the rows. Rows
            that do not fit a GPU stay in host memory (or in a memory-mapped file) and are copied
            to it tile by tile.
        progress: called with (number of picks, target size) after each block.
        working_set: rows of the working set; chosen from the sizes by default. Like the devices, it
            affects speed, and the picks only if distances tie within rounding.
    """
    _check_shape(features, target_size)
    rows = _as_tensor(features)
    continues = existing is not None or squared_distances is not None
    if not continues and rows.numel() <= IN_CACHE and rows.numel() * target_size <= FEW:
        coreset = _select_few(rows.cpu(), seed, target_size)
        if progress:
            progress(len(coreset.indices), len(coreset.indices))
    else:
        if existing is not None:
            existing = _like(rows, existing)
        shards = Shards(rows, [torch.device(d) for d in devices] if devices else None)
        selection = BlockSelection(shards, seed, target_size, existing, squared_distances)
        coreset = selection.run(min_distance, working_set, progress)
    if min_distance:
        coreset = _truncate(coreset, min_distance)
    if coreset.distinct < target_size and not continues:
        warnings.warn(
            f"only {coreset.distinct} of {len(rows)} rows are distinct: the coreset holds those, "
            f"not the {target_size} requested",
            stacklevel=3,
        )
    return coreset


def _select_few(rows: Tensor, seed: int, target_size: int) -> Coreset:
    refuse_nonfinite(count_nonfinite_rows(rows), len(rows))
    shards = Shards(rows)
    start = start_row(shards, seed)
    duplicates = find_duplicates(shards, start)
    distinct = len(rows) - len(duplicates)
    array = (rows.double() if rows.dtype == torch.bfloat16 else rows).numpy()
    picks, squared = select_sequentially(
        array, start, duplicates.numpy(), min(target_size, distinct)
    )
    return Coreset(picks, np.sqrt(squared).astype(np.float32), distinct)


def _truncate(coreset: Coreset, min_distance: float) -> Coreset:
    """The picks that were at least `min_distance` away from all previous ones when picked."""
    distances = np.append(coreset.initial_radius, coreset.radii)[: len(coreset.indices)]
    count = int((distances >= min_distance).sum())  # distances never grow
    return replace(coreset, indices=coreset.indices[:count], radii=coreset.radii[:count])


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
    """The rows as a tensor that shares their memory if possible; it is never written to."""
    if isinstance(features, Tensor):
        return features.detach().contiguous()
    with warnings.catch_warnings():  # read-only memory, e.g. a memory-mapped file
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(features))


def _like(features: Tensor, existing: np.ndarray | Tensor) -> Tensor:
    """The existing rows in the precision of the features."""
    rows = _as_tensor(existing)
    if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
        raise ValueError(f"existing rows must be [M, {features.shape[1]}], not {tuple(rows.shape)}")
    rows = rows.to(features.dtype)
    refuse_nonfinite(count_nonfinite_rows(rows), len(rows), "existing rows")
    return rows


def _indices_for(features: Rows, indices: np.ndarray) -> Rows:
    if isinstance(features, Tensor):
        return torch.as_tensor(indices, device=features.device)
    return indices
