"""The inner loop of farthest-first selection: picks inside a working set, from its Gram matrix."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from src.models.search.distances import product, uses_kernels

Floats = npt.NDArray[np.float32]

CHOSEN = -1.0  # the distance that marks a row as out of the race: picked, or a copy of another


def pick_inside(
    rows: Tensor, distances: Tensor, members: Tensor, bound: Tensor, rival: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Farthest-first inside a working set, for as long as no row outside can be farther.

    Args:
        rows: the members' rows [B, D], relative to some centre, in the precision to compute in.
        distances: their current squared distances [B].
        members: their indices [B], ascending, so that the first of equals is the first of all.
        bound: the largest distance outside; `rival`: the first index that has it.
        most: picks still wanted.

    Returns:
        positions of the picks in the working set, and the squared distance each had when picked.
    """
    gram = product(rows, rows, rows.new_zeros(len(rows)))
    norms = gram.diagonal().contiguous()
    before_rival = torch.searchsorted(members, rival)  # members that come first at equal distance
    if uses_kernels(gram):
        from src.models.search import kernels

        return kernels.pick(gram, norms, distances, bound, before_rival, most)
    gram_, norms_, distances_ = (each.cpu().numpy() for each in (gram, norms, distances))
    at, value = _pick(gram_, norms_, distances_, float(bound), int(before_rival), most)
    return torch.as_tensor(at, device=rows.device), torch.as_tensor(value, device=rows.device)


def _pick(
    gram: Floats, norms: Floats, distances: Floats, bound: float, before_rival: int, most: int
) -> tuple[npt.NDArray[np.int64], Floats]:
    current, to_pick = distances.copy(), np.empty_like(distances)
    picks, values = [], []
    for _ in range(most):
        at = int(current.argmax())  # the first of equals
        value = current[at]
        holds = value > bound or (value == bound and at < before_rival)
        if not holds or value <= CHOSEN:
            break
        picks.append(at)
        values.append(value)
        np.multiply(gram[at], -2, out=to_pick)
        to_pick += norms
        to_pick += norms[at]
        np.maximum(to_pick, 0, out=to_pick)
        np.minimum(current, to_pick, out=current)
        current[at] = CHOSEN
    return np.array(picks, dtype=np.int64), np.array(values, dtype=distances.dtype)
