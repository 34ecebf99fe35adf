"""Many clients' banks -> one bank, with a certificate of what it covers.

The merge is the selection once more: greedy farthest-first over the union of what the clients
sent, down to the sum of their shares. If client i's rows cover its patches within r_i and the
merged bank covers the union within rho, every patch of every client lies within max r_i + rho of
the merged bank, by the triangle inequality.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.banks import BankRefused, ClientBank
from src.models.coreset import Progress, farthest_first
from src.models.products import rows_not_finite
from src.models.shards import devices_for


@dataclass(frozen=True)
class MergedBank:
    """The merge of one bank.

    Attributes:
        features: [n, D] rows of the clients' banks, in the order picked.
        radius: rho, every row that was sent lies within it of `features`.
        radius_bound: every patch of every merged client lies within it of `features`.
    """

    features: np.ndarray
    radius: float
    radius_bound: float


def check_bank(bank: ClientBank, dim: int) -> None:
    """Refuse a bank that is not what a client should send.

    Raises:
        BankRefused: shape, dtype, dimension, values or counts are off.
    """
    rows = bank.features
    if rows.ndim != 2 or not len(rows):
        raise BankRefused(f"its bank has shape {rows.shape}, not [rows, {dim}]")
    if rows.dtype not in (np.float16, np.float32):
        raise BankRefused(f"its bank holds {rows.dtype}, not float16 or float32")
    if rows.shape[1] != dim:
        raise BankRefused(f"its bank has {rows.shape[1]} dimensions, not {dim}")
    bad = rows_not_finite(torch.from_numpy(np.require(rows, None, "W")))
    if bad:
        raise BankRefused(f"{bad} of its {len(rows)} rows hold NaN or infinite values")
    if not 1 <= bank.share <= len(rows) <= bank.patches:
        raise BankRefused(
            f"its counts do not agree: share {bank.share}, rows {len(rows)}, patches {bank.patches}"
        )
    if bank.images < 1:
        raise BankRefused(f"its counts do not agree: {bank.images} images")
    if not (np.isfinite(bank.radius) and bank.radius >= 0):
        raise BankRefused(f"its covering radius is {bank.radius}")
    if not (np.isfinite(bank.share_radius) and bank.share_radius >= 0):
        raise BankRefused(f"its share's covering radius is {bank.share_radius}")


def merge_banks(
    banks: Mapping[int, ClientBank],
    seed: int = 42,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> MergedBank:
    """Merge checked banks; the result depends on who sent what, not on who was first.

    Args:
        banks: client number -> bank.
        seed: start of the selection.
        progress: called with (rows picked, budget).
        device: where to select; None for the GPUs of this machine, or its CPU.
    """
    ordered = [banks[client] for client in sorted(banks)]
    union = np.concatenate([bank.features for bank in ordered])
    budget = sum(bank.share for bank in ordered)
    devices = devices_for(union.size, device)
    chosen = farthest_first(union, budget, seed, devices=devices, progress=progress)
    radius = float(chosen.radii[-1])
    bound = max(bank.radius for bank in ordered) + radius
    return MergedBank(union[chosen.indices], radius, bound)


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
