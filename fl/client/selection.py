"""What a client selects in a round: the rows it can send, how many of them, its local banks."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Context

from fl.client.node import CannotTakePart, Node
from fl.client.state import (
    load_distances,
    load_local_banks,
    load_sent,
    save_distances,
    save_local_banks,
)
from fl.wire.banks import RoundInfo
from src.federated.bank_set import BankSet
from src.federated.candidates import Candidates, find_candidates
from src.federated.exact import farthest_patches, update_distances
from src.federated.types import LocalBank

REACH = 3.0  # rows to select for a radius curve, as a multiple of the proportional quota

Rows = Mapping[str, np.ndarray]  # bank name -> rows


def select_first(node: Node, for_curve: bool = True) -> dict[str, Candidates]:
    """Candidates before any bank is merged: coresets that begin with the local banks."""
    reach = max(1.0, _reach(node, for_curve))
    return {
        name: find_candidates(node.model, images, reach, progress=node.progress)
        for name, images in node.train_by_bank.items()
    }


def select_again(node: Node, info: RoundInfo, has_quota: bool) -> dict[str, Candidates]:
    """Candidates of a client that was not asked for a curve, or has lost its answer.

    Raises:
        CannotTakePart: the selection of a later round is lost.
    """
    if info.number > 1:
        raise CannotTakePart("it restarted within a round, and sits that round out")
    return select_first(node, for_curve=has_quota)


def select_residual(
    node: Node, context: Context, info: RoundInfo, merged: Rows, committed: Rows
) -> dict[str, Candidates]:
    """Coresets of what the merged banks and the rows sent do not cover.

    Rows that were sent and not picked count as covered: they can still be picked.

    Args:
        node: this one.
        context: what it remembers.
        info: of the round.
        merged: bank name -> rows of the merged bank.
        committed: bank name -> rows of this client committed since it was last asked.
    """
    sent, distances = load_sent(context), load_distances(context)
    candidates = {}
    for name, images in node.train_by_bank.items():
        if name not in merged:  # the clients that hold it did not come through before
            candidates[name] = find_candidates(node.model, images, progress=node.progress)
            continue
        bank, before = merged[name], distances.get(name)
        own, new_own = (rows.get(name, bank[:0]) for rows in (sent, committed if before else sent))
        new_rows = np.concatenate([_new_rows(bank, info, name, before is not None), new_own])
        distances[name] = update_distances(node.model, images, new_rows, before, node.progress)
        candidates[name] = find_candidates(
            node.model,
            images,
            _reach(node),
            covered=np.concatenate([bank, own]),
            squared_distances=distances[name].squared,
            progress=node.progress,
        )
    save_distances(context, distances)
    return candidates


def select_farthest(
    node: Node, context: Context, info: RoundInfo, merged: Rows, committed: Rows
) -> dict[str, Candidates]:
    """The patches farthest from the merged banks, for an exact round."""
    distances = load_distances(context)
    candidates = {}
    for name, images in node.train_by_bank.items():
        if name not in merged:  # the clients that hold it did not come through before
            candidates[name] = find_candidates(node.model, images, progress=node.progress)
            continue
        before = distances.get(name)
        new_rows = _new_rows(merged[name], info, name, before is not None)
        updated = update_distances(node.model, images, new_rows, before, node.progress)
        candidates[name], distances[name] = farthest_patches(
            node.model, images, updated, info.steps.get(name, 0)
        )
    save_distances(context, distances)
    return candidates


def quotas_of(
    node: Node, quotas: Mapping[str, int] | None, candidates: Mapping[str, Candidates]
) -> dict[str, int]:
    """Rows of each bank to send: as the server says, or in proportion to the patches."""
    if quotas is not None:
        return {name: quotas.get(name, 0) for name in candidates}
    settings = node.settings
    part = min(1.0, settings.merge_oversample * settings.model_coreset_percentage)
    part /= settings.num_server_rounds
    return {name: max(1, round(part * each.stats.patches)) for name, each in candidates.items()}


def local_banks(
    node: Node, context: Context, candidates: Mapping[str, Candidates] = {}
) -> BankSet[LocalBank]:
    """The client's local banks, selected again if they are lost.

    A restarted SuperNode has lost them, and so has every node when a run is resumed.
    """
    banks = load_local_banks(context)
    for name, images in node.train_by_bank.items():
        if name not in banks:
            first = candidates.get(name)
            if first is None or np.isfinite(first.initial_radius):
                first = find_candidates(node.model, images)
            banks |= {name: first.local_bank()}
    save_local_banks(context, banks)
    return banks


def _reach(node: Node, for_curve: bool = True) -> float:
    """Rows to select in a round, as a multiple of the client's share."""
    part = node.settings.merge_oversample / node.settings.num_server_rounds
    return (REACH if for_curve else 1.0) * part


def _new_rows(bank: np.ndarray, info: RoundInfo, name: str, has_distances: bool) -> np.ndarray:
    """Rows of a merged bank that the distances do not know yet."""
    return bank[info.synced_rows.get(name, 0) :] if has_distances else bank
