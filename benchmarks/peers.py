"""Other selections of the same rows: a plain loop, anomalib's, and the approximate greedy one."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Select = Callable[[Tensor, int], Tensor]  # rows [N, D] and a target size to picks [k] int64

MAPPED = 128  # dimensions that the approximate selection works in
STARTS = 10
_ANOMALIB = "anomalib.models.components"


def loop(rows: Tensor, target: int, seed: int = 42) -> Tensor:
    """Farthest-first, one matrix-vector product a pick, in the rows' own precision."""
    distances = torch.full_like(rows[:, 0], torch.finfo(rows.dtype).max)
    along = torch.as_tensor(np.random.default_rng(seed).standard_normal(rows.shape[1]))
    start = int((rows.float() @ along.float().to(rows.device)).argmax())  # where ours starts
    distances[start] = torch.inf
    return _race(rows, distances, target)


def approximate(rows: Tensor, target: int, seed: int = 42) -> Tensor:
    """Farthest-first as patchcore-inspection approximates it, in its leanest form.

    Distances are those of a random linear map of the rows, and a row's first distance is the mean
    of those to some random rows, which need not be picked.
    """
    generator = torch.Generator().manual_seed(seed)
    turn = torch.rand(rows.shape[1], MAPPED, generator=generator) - 0.5
    mapped = rows @ turn.to(rows.device)
    starts = torch.randperm(len(rows), generator=generator)[:STARTS].to(rows.device)
    return _race(mapped, torch.cdist(mapped, mapped[starts]).mean(1).square(), target)


def _race(rows: Tensor, distances: Tensor, target: int) -> Tensor:
    """The loop from given squared distances [N], which it overwrites; nothing leaves the device."""
    norms = (rows * rows).sum(1)
    picks = torch.empty(target, dtype=torch.int64, device=rows.device)
    for place in range(target):
        pick = distances.argmax(keepdim=True)
        picks[place : place + 1] = pick
        to_pick = rows @ rows.index_select(0, pick)[0]
        to_pick = to_pick.mul_(-2).add_(norms).add_(norms.index_select(0, pick))
        torch.minimum(distances, to_pick, out=distances)
        distances.index_fill_(0, pick, -torch.inf)
    return picks


def anomalib() -> tuple[Select | None, str]:
    """The selection of anomalib, or None, and a line that says where it came from."""
    spec = importlib.util.find_spec("anomalib")
    if spec is None or spec.origin is None:
        return None, "left out, not installed: pip install fedpatchcore[bench]"
    try:
        sampling = importlib.import_module(f"{_ANOMALIB}.sampling")
        how = "its package"
    except Exception as error:  # it imports many others, each of which may fail in its own way
        sampling = _anomalib_alone(Path(spec.origin).parent)
        how = f"two files of its package, which does not import here ({error!r})"

    def select(rows: Tensor, target: int) -> Tensor:
        torch.manual_seed(0)
        sampler = sampling.KCenterGreedy(rows, (target + 0.5) / len(rows))
        return torch.tensor(sampler.select_coreset_idxs(), device=rows.device)

    return select, how


def _anomalib_alone(folder: Path) -> types.ModuleType:
    """The module of anomalib's selection without the rest of the package."""
    for name in [name for name in sys.modules if name.split(".")[0] == "anomalib"]:
        del sys.modules[name]  # what came of importing it as a whole
    reduction = f"{_ANOMALIB}.dimensionality_reduction"
    packages = ["anomalib", "anomalib.models", _ANOMALIB, reduction, f"{_ANOMALIB}.sampling"]
    for name in packages:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    projection = importlib.import_module(f"{reduction}.random_projection")
    vars(sys.modules[reduction])["SparseRandomProjection"] = projection.SparseRandomProjection
    return importlib.import_module(f"{_ANOMALIB}.sampling.k_center_greedy")
