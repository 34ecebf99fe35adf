"""The inner loop of farthest-first selection: picks inside a working set, from its Gram matrix."""

import torch
from torch import Tensor

from src.models.products import product, uses_kernels

CHUNK = 64  # picks between two looks at whether the working set still holds the farthest row
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
    norms = (rows * rows).sum(1)
    gram = product(rows, rows, torch.zeros_like(norms))
    before_rival = torch.searchsorted(members, rival)  # members that come first at equal distance
    if uses_kernels(gram):
        from src.models import kernels

        return kernels.pick(gram, norms, distances, bound, before_rival, most)
    return _pick(gram, norms, distances.clone(), bound, before_rival, most)


def _pick(
    gram: Tensor, norms: Tensor, current: Tensor, bound: Tensor, before_rival: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    picks, values = [], []
    while most > 0:
        steps = min(CHUNK, most)
        at, value = _steps(gram, norms, current, steps)
        holds = (value > bound) | ((value == bound) & (at < before_rival))
        holds &= value > CHOSEN
        valid = int(holds.int().cumprod(0).sum())
        picks.append(at[:valid])
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
