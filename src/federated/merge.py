"""Merge the clients' banks into one, with a certificate of what it covers.

The merge is the selection once more: greedy farthest-first over the union of the rows that clients
sent. In later rounds it goes on from the bank merged so far. If client i's patches lie within r_i
of its rows or of that bank, and the merged bank covers the union within rho, then every patch of
every client lies within max r_i + rho of the merged bank, by the triangle inequality.

In exact rounds (`exact`) the patches a client has not sent lie within r_i of the bank merged so
far, and the server picks no row closer than max r_i. Each pick is then the farthest of all patches:
the one that greedy selection over all of them makes.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from src.federated.types import Certificate, ClientBank, MergedBank
from src.models.coreset.selection import farthest_first
from src.models.coreset.sharding import devices_for
from src.models.coreset.types import Coreset, Progress


def join_banks(before: ClientBank | None, bank: ClientBank) -> ClientBank:
    """Append a client's new rows to those it sent before; radii and stats are the new ones."""
    if before is None:
        return bank
    rows = np.concatenate([before.features, bank.features])
    return ClientBank(rows, bank.radius, bank.share_radius, bank.stats)


def merge_coresets(
    banks: Mapping[int, ClientBank],
    size: int | None = None,
    *,
    onto: MergedBank | None = None,
    seed: int = 42,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> MergedBank:
    """Merge checked banks; the result depends on who sent what, not on the order of arrival.

    Args:
        banks: client -> all rows it has sent.
        size: rows of the merged bank; None for the sum of the clients' shares.
        onto: bank merged so far, whose rows stay first.
        seed: start of the selection.
        progress: called with (rows picked, rows to pick).
        device: where to select; None for the GPUs of this machine, or its CPU.

    Raises:
        ValueError: no client sent a row.
    """
    union = _union(banks)
    size = sum(bank.stats.share for bank in banks.values()) if size is None else size
    picks, radii = _extend(union, size, onto, seed, progress=progress, device=device)
    bound = max(bank.radius for bank in banks.values()) + float(radii[-1])
    return MergedBank(_stack(onto, union[picks]), certificate=Certificate(float(radii[-1]), bound))


def merge_exact(
    banks: Mapping[int, ClientBank],
    size: int,
    *,
    onto: MergedBank | None,
    reporting_clients: Collection[int],
    fill: bool,
    seed: int = 42,
) -> MergedBank:
    """Extend a bank in an exact round.

    Args:
        banks: client -> all rows it has sent; the radius of a reporting client bounds the
            distance from `onto` of the patches it has not sent.
        size: rows of the complete bank.
        onto: bank merged so far.
        reporting_clients: clients that sent rows and radius in this round.
        fill: whether to complete the bank with rows that may not be the farthest of all patches.
        seed: start of the selection.

    Raises:
        ValueError: no client sent a row.
    """
    union = _union(banks)
    unsent = max((banks[client].radius for client in reporting_clients), default=0.0)
    picks, radii = _extend(union, size, onto, seed, least=0.0 if fill else unsent)
    radius, features = float(radii[-1]), _stack(onto, union[picks])
    if onto is None or onto.certificate is None:
        bound = max(bank.radius for bank in banks.values()) + radius
        return MergedBank(features, certificate=Certificate(radius, bound, exact_rows=1))
    missing = [banks[client].radius + radius for client in banks.keys() - set(reporting_clients)]
    bound, exact_rows = max(radius, unsent, *missing), onto.certificate.exact_rows
    if exact_rows == len(onto.features) and not missing:
        exact_rows += int((radii[: len(picks)] >= unsent).sum())
    return MergedBank(features, certificate=Certificate(radius, bound, exact_rows))


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
    wrong = [np.shape(features) for features in client_features if np.ndim(features) != 2]
    if wrong:
        raise ValueError(f"client features must be [n, D], not of shape {wrong[0]}")
    dims = {np.shape(features)[1] for features in client_features}
    if len(dims) != 1:
        raise ValueError(
            f"client features must share one dimension, found {sorted(dims) or 'none'}"
        )
    union = np.concatenate(list(client_features))
    with warnings.catch_warnings():
        if target_size is None:  # duplicates are expected to go
            warnings.simplefilter("ignore")
        target = len(union) if target_size is None else target_size
        selection = farthest_first(union, target, seed, devices=devices_for(union.size))
    return union[selection.indices]


def _union(banks: Mapping[int, ClientBank]) -> np.ndarray:
    """All rows that were sent, in the order of the clients' numbers."""
    union = np.concatenate([banks[client].features for client in sorted(banks)])
    if not len(union):
        raise ValueError("the clients sent no rows")
    return union


def _extend(
    union: np.ndarray,
    size: int,
    onto: MergedBank | None,
    seed: int,
    *,
    least: float = 0.0,
    progress: Progress | None = None,
    device: torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pick rows until the bank has `size`, or until the next pick is closer than `least`.

    Returns:
        picks: [k] rows of the union.
        radii: [k + 1] covering radius of the union before each pick, and after the last.
    """
    covered = None if onto is None else onto.features
    grow = max(0, min(size - (0 if covered is None else len(covered)), len(union)))
    with warnings.catch_warnings():  # clients may send equal rows
        warnings.simplefilter("ignore")
        selection: Coreset = farthest_first(
            union,
            max(1, grow),
            seed,
            existing=covered,
            min_distance=least,
            devices=devices_for(union.size, device),
            progress=progress,
        )
    picks = selection.indices[:grow]
    return picks, np.concatenate([[selection.initial_radius], selection.radii])[: len(picks) + 1]


def _stack(onto: MergedBank | None, rows: np.ndarray) -> np.ndarray:
    return rows if onto is None else np.concatenate([onto.features, rows])
