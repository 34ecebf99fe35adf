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

IN_CACHE = 2**21  # sequential selection is faster up to this many values,
FEW = 2**27  # and up to this many values times picks


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
    return features[farthest_first(features, target_size, seed).indices]


def random_coreset_selection(features: Rows, target_size: int, seed: int = 42) -> Rows:
    """Select [target_size, D] rows uniformly without replacement; a baseline for greedy selection.

    Raises:
        ValueError: features are not a floating-point matrix, or target_size is out of range.
    """
    _check_shape(features, target_size)
    return features[np.random.default_rng(seed).choice(len(features), target_size, replace=False)]


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
        existing: [M, D] rows of a bank from which the selection continues, converted to the
            precision of the features. The first pick is the row farthest from it; its own rows are
            not picked.
        squared_distances: [N] squared distances of the rows to an existing bank, if they are known.
        min_distance: stop at the first pick that is closer than this to all previous ones.
        devices: devices that share the rows and the work; by default the device of the rows. Rows
            that do not fit a GPU stay in host memory (or in a memory-mapped file) and are copied
            to it tile by tile.
        progress: called with (number of picks, target size) after each block.
        working_set: rows of the working set. Like the devices, it affects speed, and the picks only
            if distances tie within rounding.
    """
    _check_shape(features, target_size)
    rows = as_tensor(features)
    continues = existing is not None or squared_distances is not None
    if not continues and rows.numel() <= IN_CACHE and rows.numel() * target_size <= FEW:
        coreset = _select_few(rows.cpu(), seed, target_size)
        if progress:
            progress(len(coreset.indices), len(coreset.indices))
    else:
        bank = None if existing is None else _like(rows, existing)
        shards = Shards(rows, devices)
        selection = BlockSelection(shards, seed, target_size, bank, squared_distances)
        coreset = selection.run(min_distance, working_set, progress)
    if min_distance:
        # keep the picks that were at least this far from all previous ones when picked
        distances = np.append(coreset.initial_radius, coreset.radii)[:-1]
        count = int((distances >= min_distance).sum())  # distances never grow
        picks, radii = coreset.indices[:count], coreset.radii[:count]
        coreset = replace(coreset, indices=picks, radii=radii)
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
    target = min(target_size, distinct)
    picks, squared = select_sequentially(array, start, duplicates.numpy(), target)
    return Coreset(picks, np.sqrt(squared).astype(np.float32), distinct)


def _check_shape(features: Rows, target_size: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D], not of shape {tuple(features.shape)}")
    if "float" not in str(features.dtype):
        raise ValueError(f"features must be floating-point numbers, not {features.dtype}")
    size = len(features)
    if not 1 <= target_size <= size:
        raise ValueError(f"target_size is {target_size}: it must be 1 to {size} (the rows)")


def as_tensor(features: np.ndarray | Tensor) -> Tensor:
    """The rows as a tensor that shares their memory if possible; it is never written to."""
    if isinstance(features, Tensor):
        return features.detach().contiguous()
    with warnings.catch_warnings():  # read-only memory, e.g. a memory-mapped file
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(features))


def _like(features: Tensor, existing: np.ndarray | Tensor) -> Tensor:
    """The existing rows in the precision of the features."""
    rows = as_tensor(existing)
    if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
        raise ValueError(f"existing rows must be [M, {features.shape[1]}], not {tuple(rows.shape)}")
    rows = rows.to(features.dtype)
    refuse_nonfinite(count_nonfinite_rows(rows), len(rows), "existing rows")
    return rows
