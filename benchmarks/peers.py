"""Other selections to compare with: a plain loop, anomalib's, and approximate greedy selection."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Select = Callable[[Tensor, int], Tensor]  # rows [N, D], target size -> picks [k] int64

MAPPED = 128  # dimensions of the approximate selection
STARTS = 10
_ANOMALIB = "anomalib.models.components"


def loop(rows: Tensor, target: int, seed: int = 42) -> Tensor:
    """Farthest-first with one matrix-vector product per pick, in the rows' own precision."""
    distances = torch.full_like(rows[:, 0], torch.finfo(rows.dtype).max)
    direction = torch.as_tensor(np.random.default_rng(seed).standard_normal(rows.shape[1]))
    start = int((rows.float() @ direction.float().to(rows.device)).argmax())  # our start row
    distances[start] = torch.inf
    return _select(rows, distances, target)


def approximate(rows: Tensor, target: int, seed: int = 42) -> Tensor:
    """The approximation of farthest-first in patchcore-inspection, in its leanest form.

    Distances are those of a random linear map of the rows. The first distance of a row is its mean
    distance to some random rows, which need not be picked.
    """
    generator = torch.Generator().manual_seed(seed)
    projection = torch.rand(rows.shape[1], MAPPED, generator=generator) - 0.5
    mapped = rows @ projection.to(rows.device)
    starts = torch.randperm(len(rows), generator=generator)[:STARTS].to(rows.device)
    return _select(mapped, torch.cdist(mapped, mapped[starts]).mean(1).square(), target)


def _select(rows: Tensor, distances: Tensor, target: int) -> Tensor:
    """The loop from initial squared distances [N], which it overwrites; all on one device."""
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
    """Anomalib's selection, or None, and a line that says where it came from."""
    spec = importlib.util.find_spec("anomalib")
    if spec is None or spec.origin is None:
        return None, "skipped, not installed: pip install fedpatchcore[bench]"
    try:
        sampling = importlib.import_module(f"{_ANOMALIB}.sampling")
        how = "its package"
    except Exception as error:  # its many imports may fail in many ways
        sampling = _anomalib_alone(Path(spec.origin).parent)
        how = f"two files of its package, which cannot be imported ({error!r})"

    def select(rows: Tensor, target: int) -> Tensor:
        torch.manual_seed(0)
        sampler = sampling.KCenterGreedy(rows, (target + 0.5) / len(rows))
        return torch.tensor(sampler.select_coreset_idxs(), device=rows.device)

    return select, how


def _anomalib_alone(folder: Path) -> types.ModuleType:
    """Anomalib's selection module without the rest of the package."""
    for name in [name for name in sys.modules if name.split(".")[0] == "anomalib"]:
        del sys.modules[name]  # left over from the failed import
    reduction = f"{_ANOMALIB}.dimensionality_reduction"
    packages = ["anomalib", "anomalib.models", _ANOMALIB, reduction, f"{_ANOMALIB}.sampling"]
    for name in packages:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
    projection = importlib.import_module(f"{reduction}.random_projection")
    vars(sys.modules[reduction])["SparseRandomProjection"] = projection.SparseRandomProjection
    return importlib.import_module(f"{_ANOMALIB}.sampling.k_center_greedy")
