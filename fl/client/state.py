"""What a client keeps in its Flower context from one message to the next.

A restarted node has lost all of it. It computes again what can be computed again.
"""

import json
from collections.abc import Mapping
from dataclasses import astuple, fields

import numpy as np
from flwr.app import ConfigRecord, Context

from fl.wire.arrays import pack_banks, unpack_banks
from src.federated.bank_set import BankSet
from src.federated.candidates import Candidates, EncodedBank
from src.federated.codec import Encoding, is_lossy
from src.federated.exact import BankDistances
from src.federated.types import ClientStats, LocalBank, SentRows

LOCAL, LOCAL_RADII = "local", "local-radii"
SOURCES, SENT = "sources", "sent"  # rows the server has, before and after encoding
PENDING_SOURCES, PENDING, PENDING_ROUND = "pending-sources", "pending", "pending-round"
MERGED, DISTANCES = "merged", "distances"
CANDIDATES, CANDIDATE_RADII, CANDIDATE_INFO = "candidates", "candidate-radii", "candidate-info"

Arrays = Mapping[str, np.ndarray]  # bank name -> array


def save_local_banks(context: Context, banks: Mapping[str, LocalBank]) -> None:
    """Keep the client's local banks."""
    _save(context, LOCAL, {name: bank.features for name, bank in banks.items()})
    _save(context, LOCAL_RADII, {name: np.array([bank.radius]) for name, bank in banks.items()})


def load_local_banks(context: Context) -> BankSet[LocalBank]:
    """The client's local banks; empty if they are lost."""
    radii = _load(context, LOCAL_RADII)
    rows = _load(context, LOCAL)
    return BankSet({n: LocalBank(each, radius=float(radii[n][0])) for n, each in rows.items()})


def save_pending(
    context: Context,
    server_round: int,
    encoding: Encoding,
    candidates: Mapping[str, Candidates],
    encoded: Mapping[str, EncodedBank],
) -> None:
    """Keep the rows of an upload, as the server decodes them and, if that differs, as they were.

    They count as sent once `commit_pending` learns that they arrived.
    """
    sent = {name: each.bank.features for name, each in encoded.items()}
    _save(context, PENDING, sent)
    sources = {name: candidates[name].rows[: len(rows)] for name, rows in sent.items()}
    _save(context, PENDING_SOURCES, sources if is_lossy(encoding) else {})
    context.state[PENDING_ROUND] = ConfigRecord({"number": server_round})


def commit_pending(context: Context, acked_round: int | None = None) -> dict[str, np.ndarray]:
    """Commit the pending upload if the server acknowledged it; otherwise discard it.

    Args:
        context: the client's.
        acked_round: last round in which the server received this client's rows; None commits.

    Returns:
        bank name -> rows committed now, decoded.
    """
    sent: dict[str, np.ndarray] = {}
    if PENDING_ROUND not in context.state:
        return sent
    if acked_round is None or context.state[PENDING_ROUND]["number"] == acked_round:
        sent = _load(context, PENDING)
        _append(context, SENT, sent)
        _append(context, SOURCES, _load(context, PENDING_SOURCES))
        distances = load_distances(context)
        save_distances(context, {n: d.after_sending(len(sent[n])) for n, d in distances.items()})
    for name in (PENDING, PENDING_SOURCES, PENDING_ROUND):
        del context.state[name]
    return sent


def load_sent(context: Context) -> dict[str, np.ndarray]:
    """Bank name -> all rows the server has from this client, decoded."""
    return _load(context, SENT)


def load_sent_pairs(context: Context) -> dict[str, SentRows]:
    """Bank name -> the rows sent, before and after encoding; empty if encoding changes nothing."""
    sent = _load(context, SENT)
    return {name: SentRows(rows, sent[name]) for name, rows in _load(context, SOURCES).items()}


def update_merged(
    context: Context, new_rows: Arrays, synced_rows: Mapping[str, int]
) -> dict[str, np.ndarray] | None:
    """Append new rows of the merged banks to the `synced_rows` first ones that are kept.

    Returns:
        bank name -> rows of the merged bank; None if kept rows are lost.
    """
    kept = _load(context, MERGED)
    if any(len(kept.get(name, ())) < count for name, count in synced_rows.items()):
        return None
    merged = {
        name: np.concatenate([kept[name][: synced_rows[name]], rows])
        if synced_rows.get(name)
        else rows
        for name, rows in new_rows.items()
    }
    _save(context, MERGED, merged)
    return merged


def save_distances(context: Context, distances: Mapping[str, BankDistances]) -> None:
    """Keep the distances of the client's patches to the merged banks."""
    for part in fields(BankDistances):
        arrays = {name: getattr(each, part.name) for name, each in distances.items()}
        _save(context, f"{DISTANCES}-{part.name}", arrays)


def load_distances(context: Context) -> dict[str, BankDistances]:
    """Bank name -> distances; empty if they are lost."""
    parts = [_load(context, f"{DISTANCES}-{part.name}") for part in fields(BankDistances)]
    return {name: BankDistances(*(part[name] for part in parts)) for name in parts[0]}


def save_candidates(context: Context, candidates: Mapping[str, Candidates]) -> None:
    """Keep candidates until the server says how many rows to send."""
    _save(context, CANDIDATES, {name: each.rows for name, each in candidates.items()})
    _save(context, CANDIDATE_RADII, {name: each.radii for name, each in candidates.items()})
    info = {n: [each.initial_radius, *astuple(each.stats)] for n, each in candidates.items()}
    context.state[CANDIDATE_INFO] = ConfigRecord({"json": json.dumps(info)})


def pop_candidates(context: Context) -> dict[str, Candidates]:
    """The candidates kept, once; empty if they are lost."""
    if CANDIDATE_INFO not in context.state:
        return {}
    info = json.loads(str(context.state[CANDIDATE_INFO]["json"]))
    rows, radii = _load(context, CANDIDATES), _load(context, CANDIDATE_RADII)
    for name in (CANDIDATES, CANDIDATE_RADII, CANDIDATE_INFO):
        del context.state[name]
    return {
        name: Candidates(rows[name], radii[name], initial_radius, ClientStats(*stats))
        for name, (initial_radius, *stats) in info.items()
    }


def _save(context: Context, name: str, arrays: Arrays) -> None:
    context.state[name] = pack_banks(arrays)


def _load(context: Context, name: str) -> dict[str, np.ndarray]:
    return unpack_banks(context.state[name]) if name in context.state else {}  # type: ignore[arg-type]


def _append(context: Context, name: str, arrays: Arrays) -> None:
    """Append rows to those kept under the same bank names."""
    before = _load(context, name)
    joined = {n: np.concatenate([before[n], rows]) for n, rows in arrays.items() if n in before}
    _save(context, name, {**before, **arrays, **joined})
