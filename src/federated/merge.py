"""Many clients' banks -> one bank, with a certificate of what it covers.

The merge is the selection once more: greedy farthest-first over the union of what the clients
sent, down to the sum of their shares. In later rounds it goes on from the bank that is there. If
client i's patches lie within r_i of its rows or that bank, and the merged bank covers the union
within rho, every patch of every client lies within max r_i + rho of the merged bank, by the
triangle inequality.

In exact rounds (`exact`) what a client has not sent lies within r_i of the bank that is there,
and the server picks no row that is closer than max r_i: each pick is then the farthest of all
patches, the one that greedy selection over all of them makes.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.federated.types import BankRefused, ClientBank, Holding, Survey
from src.models.coreset.selection import farthest_first
from src.models.coreset.sharding import devices_for
from src.models.coreset.types import Progress
from src.models.feature_transform import Frame
from src.models.search.distances import count_nonfinite_rows


@dataclass(frozen=True)
class MergedBank:
    """The merge of one bank.

    Attributes:
        features: [n, D] rows of the clients' banks, in the order picked.
        radius: rho, every row that was sent lies within it of `features`.
        radius_bound: every patch of every merged client lies within it of `features`.
        exact: so many of the first rows are those that selection over all patches of the merged
            clients would pick. It stops to grow where a client misses a round.
        frame: the coordinates of a private bank, whose radii are infinite: nothing is certified.
        scores: mean and standard deviation of log image scores, of a private bank that has them.
    """

    features: np.ndarray
    radius: float
    radius_bound: float
    exact: int = 0
    frame: Frame | None = None
    scores: tuple[float, float] | None = None


def check_bank(bank: ClientBank, dim: int) -> None:
    """Refuse a bank that is not what a client should send.

    Raises:
        BankRefused: shape, dtype, dimension, values or counts are off.
    """
    rows, held = bank.features, bank.holding
    if rows.ndim != 2:
        raise BankRefused(f"its bank has shape {rows.shape}, not [rows, {dim}]")
    if rows.dtype not in (np.float16, np.float32):
        raise BankRefused(f"its bank holds {rows.dtype}, not float16 or float32")
    if rows.shape[1] != dim:
        raise BankRefused(f"its bank has {rows.shape[1]} dimensions, not {dim}")
    bad = count_nonfinite_rows(torch.from_numpy(np.require(rows, None, "W")))
    if bad:
        raise BankRefused(f"{bad} of its {len(rows)} rows hold NaN or infinite values")
    check_holding(held)
    if len(rows) > held.patches:
        raise BankRefused(f"its counts do not agree: rows {len(rows)}, patches {held.patches}")
    if not (np.isfinite(bank.radius) and bank.radius >= 0):
        raise BankRefused(f"its covering radius is {bank.radius}")
    if not (np.isfinite(bank.share_radius) and bank.share_radius >= 0):
        raise BankRefused(f"its share's covering radius is {bank.share_radius}")


def check_holding(held: Holding) -> None:
    """Refuse counts that cannot be a client's.

    Raises:
        BankRefused: they do not agree.
    """
    if not (held.images >= 1 and 1 <= held.share <= held.patches):
        raise BankRefused(
            f"its counts do not agree: {held.images} images, share {held.share}, "
            f"patches {held.patches}"
        )


def check_survey(survey: Survey) -> None:
    """Refuse a survey that is not what a client should send.

    Raises:
        BankRefused: counts that do not rise, radii that do, or values that are off.
    """
    check_holding(survey.holding)
    counts, radii = survey.counts, survey.radii
    if len(counts) != len(radii):
        raise BankRefused(f"its radius curve has {len(counts)} counts and {len(radii)} radii")
    if not len(counts):
        return
    if counts[0] not in (0, 1) or (np.diff(counts) <= 0).any():
        raise BankRefused("the counts of its radius curve do not rise from 0 or 1")
    if counts[-1] > survey.holding.patches:
        raise BankRefused(
            f"its radius curve goes to {counts[-1]} rows of {survey.holding.patches} patches"
        )
    falling = np.isfinite(radii).all() and radii[-1] >= 0 and (np.diff(radii) <= 0).all()
    if not falling:
        raise BankRefused("the radii of its radius curve are not finite and falling")


def join_banks(before: ClientBank | None, bank: ClientBank) -> ClientBank:
    """What a client has sent in all, when a round has brought more rows."""
    if before is None:
        return bank
    rows = np.concatenate([before.features, bank.features])
    return ClientBank(rows, bank.radius, bank.share_radius, bank.holding)


def merge_banks(
    banks: Mapping[int, ClientBank],
    seed: int = 42,
    progress: Progress | None = None,
    device: torch.device | None = None,
    *,
    size: int | None = None,
    before: MergedBank | None = None,
    told: Collection[int] = (),
    fill: bool = True,
) -> MergedBank:
    """Merge checked banks; the result depends on who sent what, not on who was first.

    Args:
        banks: client number -> all that it has sent.
        seed: start of the selection.
        progress: called with (rows picked, rows to pick).
        device: where to select; None for the GPUs of this machine, or its CPU.
        size: rows of the merged bank; None for the sum of the clients' shares.
        before: the merged bank so far, which this one begins with.
        told: in an exact round, the clients that have just said how far what they did not send
            lies from `before`.
        fill: in an exact round, whether to pick also rows that may not be the farthest of all.

    Raises:
        ValueError: no client sent a row.
    """
    ordered = [banks[client] for client in sorted(banks)]
    size = sum(bank.holding.share for bank in ordered) if size is None else size
    union = np.concatenate([bank.features for bank in ordered])
    if not len(union):
        raise ValueError("the clients sent no rows")
    had = union[:0] if before is None else before.features
    grow = max(0, min(size - len(had), len(union)))
    unsent = max((banks[client].radius for client in told), default=0.0)
    with warnings.catch_warnings():  # clients may have sent rows that are alike
        warnings.simplefilter("ignore")
        chosen = farthest_first(
            union,
            max(1, grow),
            seed,
            existing=None if before is None else had,
            min_distance=0.0 if fill else unsent,
            devices=devices_for(union.size, device),
            progress=progress,
        )
    picks = chosen.indices[:grow]
    radius = float(chosen.radii[len(picks) - 1]) if len(picks) else chosen.initial_radius
    if before is None or not told:
        bound, exact = max(bank.radius for bank in ordered) + radius, 1 if told else 0
    else:
        silent = [bank.radius + radius for client, bank in banks.items() if client not in told]
        bound = max(radius, unsent, *silent)
        exact = before.exact
        if exact == len(had) and set(told) == set(banks):
            gaps = np.concatenate([[chosen.initial_radius], chosen.radii])[: len(picks)]
            exact += int((gaps >= unsent).sum())
    return MergedBank(np.concatenate([had, union[picks]]), radius, bound, exact)


def aggregate_client_features(
    client_features: Sequence[np.ndarray], target_size: int | None = None, seed: int = 42
) -> np.ndarray:
    """One bank from the clients' features, by greedy coreset selection over their union.

    Args:
        client_features: one [n_i, D] array a client.
        target_size: rows of the result; None keeps every distinct row.
        seed: start of the selection.

    Returns:
        [target_size, D], rows of the union in the order picked.

    Raises:
        ValueError: no client, not [n, D], differing dimensions, target size out of range, or rows
            with NaN or infinite values.
    """
    unlike = [np.shape(features) for features in client_features if np.ndim(features) != 2]
    if unlike:
        raise ValueError(f"client features must be [n, D], not of shape {unlike[0]}")
    dims = {np.shape(features)[1] for features in client_features}
    if len(dims) != 1:
        raise ValueError(
            f"client features must share one dimension, found {sorted(dims) or 'none'}"
        )
    union = np.concatenate(list(client_features))
    with warnings.catch_warnings():
        if target_size is None:  # rows that repeat are expected to go
            warnings.simplefilter("ignore")
        target = len(union) if target_size is None else target_size
        chosen = farthest_first(union, target, seed, devices=devices_for(union.size))
    return union[chosen.indices]
