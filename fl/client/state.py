"""What a client keeps in its context from one message to the next.

A node that is started anew has forgotten it all; what it can make again, it makes again.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple, fields

import numpy as np
from flwr.app import ConfigRecord, Context

from fl.wire.arrays import pack_banks, unpack_banks
from src.federated.candidates import Candidates, CodedBank, Known, OwnBank
from src.federated.codec import Coding
from src.federated.exact import Standing
from src.federated.types import Holding

OWN, OWN_RADII = "own", "own-radii"  # the banks that it would keep by itself
SOURCES, SENT = "sources", "sent"  # the rows it has sent, before and after coding
PENDING_SOURCES, PENDING = "pending-sources", "pending"  # those it is about to send,
PENDING_ROUND = "pending-round"  # and in which round
MERGED, STANDING = "merged", "standing"  # the merged banks so far, and how far its patches are
FOUND, FOUND_RADII, FOUND_ABOUT = "found", "found-radii", "found-about"  # what it could send


def remember_own(context: Context, own: Mapping[str, OwnBank]) -> None:
    """Keep the client's own banks."""
    _store(context, OWN, {name: bank.rows for name, bank in own.items()})
    _store(context, OWN_RADII, {name: np.array([bank.radius]) for name, bank in own.items()})


def recall_own(context: Context) -> dict[str, OwnBank]:
    """The client's own banks; none where they are forgotten."""
    radii = _recall(context, OWN_RADII)
    return {n: OwnBank(rows, float(radii[n][0])) for n, rows in _recall(context, OWN).items()}


def remember_sending(
    context: Context,
    server_round: int,
    coding: Coding,
    found: Mapping[str, Candidates],
    coded: Mapping[str, CodedBank],
) -> None:
    """Keep the rows that go out, as the server will have them, and as they are if that differs.

    They count as sent once `settle` has heard that they came.
    """
    sent = {name: each.bank.features for name, each in coded.items()}
    _store(context, PENDING, sent)
    sources = {name: found[name].rows[: len(rows)] for name, rows in sent.items()}
    _store(context, PENDING_SOURCES, sources if coding.lossy else {})
    context.state[PENDING_ROUND] = ConfigRecord({"number": server_round})


def settle(context: Context, heard: int | None = None) -> dict[str, np.ndarray]:
    """Book the rows that went out last as sent, if they came; else forget that they went.

    Args:
        context: the client's.
        heard: the last round of which the server has this client's rows; None: not known.

    Returns:
        bank name -> the rows that have just been booked, decoded.
    """
    sent: dict[str, np.ndarray] = {}
    if PENDING_ROUND not in context.state:
        return sent
    if heard is None or context.state[PENDING_ROUND]["number"] == heard:
        sent = _recall(context, PENDING)
        _add(context, SENT, sent)
        _add(context, SOURCES, _recall(context, PENDING_SOURCES))
        standings = recall_standings(context)
        settled = {n: standing.settled(len(sent[n])) for n, standing in standings.items()}
        remember_standings(context, settled)
    for name in (PENDING, PENDING_SOURCES, PENDING_ROUND):
        del context.state[name]
    return sent


def recall_sent(context: Context) -> dict[str, np.ndarray]:
    """Bank name -> all rows that this client has sent, decoded."""
    return _recall(context, SENT)


def take_in_merged(
    context: Context, news: Mapping[str, np.ndarray], known: Mapping[str, int]
) -> dict[str, np.ndarray] | None:
    """Put new rows of the merged banks below the `known` first ones that are kept.

    Returns:
        bank name -> rows of the merged bank; None where known ones are forgotten.
    """
    kept = _recall(context, MERGED)
    if any(len(kept.get(name, ())) < count for name, count in known.items()):
        return None
    merged = {
        name: np.concatenate([kept[name][: known[name]], rows]) if known.get(name) else rows
        for name, rows in news.items()
    }
    _store(context, MERGED, merged)
    return merged


def remember_standings(context: Context, standings: Mapping[str, Standing]) -> None:
    """Keep how far the client's patches are from the banks."""
    for part in fields(Standing):
        parts = {name: getattr(standing, part.name) for name, standing in standings.items()}
        _store(context, f"{STANDING}-{part.name}", parts)


def recall_standings(context: Context) -> dict[str, Standing]:
    """Bank name -> what `remember_standings` kept; none where it is forgotten."""
    parts = [_recall(context, f"{STANDING}-{part.name}") for part in fields(Standing)]
    return {name: Standing(*(part[name] for part in parts)) for name in parts[0]}


def recall_known(context: Context) -> dict[str, Known]:
    """What became of the rows that this client has sent, where coding changed them."""
    sent = _recall(context, SENT)
    return {name: Known(rows, sent[name]) for name, rows in _recall(context, SOURCES).items()}


def remember_found(context: Context, found: Mapping[str, Candidates]) -> None:
    """Keep what the client has said that it could send, until it is told how much to."""
    _store(context, FOUND, {name: candidates.rows for name, candidates in found.items()})
    _store(context, FOUND_RADII, {name: candidates.radii for name, candidates in found.items()})
    about = {name: [c.before, *astuple(c.holding)] for name, c in found.items()}
    context.state[FOUND_ABOUT] = ConfigRecord({"json": json.dumps(about)})


def take_found(context: Context) -> dict[str, Candidates]:
    """What `remember_found` kept, once; nothing where it is forgotten."""
    if FOUND_ABOUT not in context.state:
        return {}
    about = json.loads(str(context.state[FOUND_ABOUT]["json"]))
    rows, radii = _recall(context, FOUND), _recall(context, FOUND_RADII)
    for name in (FOUND, FOUND_RADII, FOUND_ABOUT):
        del context.state[name]
    return {
        name: Candidates(rows[name], radii[name], before, Holding(*holding))
        for name, (before, *holding) in about.items()
    }


def _store(context: Context, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    context.state[name] = pack_banks(arrays)


def _recall(context: Context, name: str) -> dict[str, np.ndarray]:
    return unpack_banks(context.state[name]) if name in context.state else {}  # type: ignore[arg-type]


def _add(context: Context, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep rows below those that are kept under their bank's name already."""
    before = _recall(context, name)
    more = {n: np.concatenate([before[n], rows]) for n, rows in arrays.items() if n in before}
    _store(context, name, {**before, **arrays, **more})
