"""What a client could send in a round, what it may, and the banks that it would keep by itself."""

from collections.abc import Mapping

import numpy as np
from flwr.app import Context, Message

from fl.client.node import CannotTakePart, Node
from fl.client.state import (
    recall_own,
    recall_sent,
    recall_standings,
    remember_own,
    remember_standings,
)
from fl.wire.messages import ALLOWANCE, ROUND, Terms, unpack_allowance, unpack_terms
from src.federated.candidates import Candidates, OwnBank, find_candidates
from src.federated.exact import farthest_patches, stand_to

REACH = 3.0  # a client looks for so many times the rows that a proportional budget gives it


def terms_of(message: Message) -> Terms:
    """What a request says of its round."""
    return unpack_terms(message.content[ROUND])  # type: ignore[arg-type]


def find(node: Node, surveyed: bool = True) -> dict[str, Candidates]:
    """What this client could send of each bank: a coreset, its own bank among the first rows."""
    reach = max(1.0, reach_of(node, surveyed))
    return {
        name: find_candidates(node.model, images, reach, progress=node.progress)
        for name, images in node.banks().items()
    }


def reach_of(node: Node, surveyed: bool = True) -> float:
    """Rows to look for in a round, as a multiple of the client's share."""
    part = node.settings.merge_oversample / node.settings.num_server_rounds
    return (REACH if surveyed else 1.0) * part


def find_again(node: Node, message: Message) -> dict[str, Candidates]:
    """What a client could send that was not asked before, or has forgotten what it said.

    Raises:
        CannotTakePart: it is a later round's selection that it has forgotten.
    """
    if terms_of(message).number > 1:
        raise CannotTakePart("it was started anew within a round, which it sits out")
    return find(node, surveyed=ALLOWANCE in message.content)


def find_more(
    node: Node,
    context: Context,
    terms: Terms,
    merged: Mapping[str, np.ndarray],
    fresh: Mapping[str, np.ndarray],
) -> dict[str, Candidates]:
    """What this client could send beside what is merged: a coreset of what is not covered yet.

    In an exact round: its patches that are farthest from the bank.

    Args:
        node: this one.
        context: what it remembers.
        terms: of the round.
        merged: bank name -> its rows so far.
        fresh: bank name -> rows that this client has sent since it was last asked.
    """
    exact = node.settings.exact_in(terms.number)
    before, sent = recall_standings(context), recall_sent(context)
    found, standings = {}, {}
    for name, images in node.banks().items():
        if name not in merged:  # those who have it did not come through before
            found[name] = find_candidates(node.model, images, progress=node.progress)
            continue
        bank, standing = merged[name], before.get(name)
        news = bank[terms.known.get(name, 0) :] if standing else bank
        own, own_news = (rows.get(name, bank[:0]) for rows in (sent, fresh if standing else sent))
        if exact:
            standing = stand_to(node.model, images, news, standing, node.progress)
            most = terms.step.get(name, 0)
            found[name], standing = farthest_patches(node.model, images, standing, most)
        else:  # rows that were sent and not picked can still be picked
            news = np.concatenate([news, own_news])
            standing = stand_to(node.model, images, news, standing, node.progress)
            there = np.concatenate([bank, own])
            found[name] = find_candidates(
                node.model, images, reach_of(node), there, standing.squared, node.progress
            )
        standings[name] = standing
    remember_standings(context, standings)
    return found


def allowed(node: Node, message: Message, found: Mapping[str, Candidates]) -> dict[str, int]:
    """Rows of each bank that this client may send: as the server says, or in proportion."""
    settings = node.settings
    if ALLOWANCE in message.content:
        given = unpack_allowance(message.content[ALLOWANCE])  # type: ignore[arg-type]
        return {name: given.get(name, 0) for name in found}
    part = settings.merge_oversample * settings.model_coreset_percentage
    part = min(1.0, part) / settings.num_server_rounds
    return {
        name: max(1, round(part * candidates.holding.patches)) for name, candidates in found.items()
    }


def own_banks(
    node: Node, context: Context, found: Mapping[str, Candidates] | None = None
) -> dict[str, OwnBank]:
    """The client's own banks: as it made them, or again where the node has forgotten them.

    A SuperNode that was started anew has, and so has every node when a run is resumed.
    """
    own = recall_own(context)
    for name, images in node.banks().items():
        if name not in own:
            fresh = found[name] if found and np.isinf(found[name].before) else None
            own[name] = (fresh or find_candidates(node.model, images)).own()
    remember_own(context, own)
    return own
