"""The inner loop of farthest-first selection: picks inside a working set, from its Gram matrix."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.models.coreset.types import TAKEN
from src.models.search.distances import product, uses_kernels

Floats = npt.NDArray[np.float32]


def pick_inside(
    rows: Tensor, squared: Tensor, members: Tensor, bound: Tensor, rival: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Pick farthest first inside a working set while no row outside can be farther.

    Args:
        rows: [B, D] rows of the members around a common origin, in the precision to compute in.
        squared, members, bound, rival: what `BlockSelection` gives of the working set.
        most: number of picks still wanted.

    Returns:
        positions of the picks in the working set, and their squared distances when picked.
    """
    gram = product(rows, rows, rows.new_zeros(len(rows)))
    norms = gram.diagonal().contiguous()  # squared
    before_rival = torch.searchsorted(members, rival)  # members that win a tie with the rival
    if uses_kernels(gram):
        from src.models.search import kernels

        return kernels.pick(gram, norms, squared, bound, before_rival, most)
    gram_, norms_, squared_ = (x.cpu().numpy() for x in (gram, norms, squared))
    positions, values = _pick(gram_, norms_, squared_, float(bound), int(before_rival), most)
    return torch.from_numpy(positions).to(rows.device), torch.from_numpy(values).to(rows.device)


def _pick(
    gram: Floats, norms: Floats, squared: Floats, bound: float, before_rival: int, most: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    current, to_pick = squared.copy(), np.empty_like(squared)
    picks, values = [], []
    for _ in range(most):
        pick = int(current.argmax())  # the first among equals
        value = current[pick]
        wins = value > bound or (value == bound and pick < before_rival)
        if not wins or value <= TAKEN:
            break
        picks.append(pick)
        values.append(value)
        np.multiply(gram[pick], -2, out=to_pick)
        to_pick += norms
        to_pick += norms[pick]
        np.maximum(to_pick, 0, out=to_pick)
        np.minimum(current, to_pick, out=current)
        current[pick] = TAKEN
    return np.array(picks, dtype=np.int64), np.array(values, dtype=squared.dtype)
