"""The questions a server asks its clients. Each function is one exchange, or one and its repeat."""

import functools
from collections.abc import Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, MessageType, RecordDict

from fl.server.federation import Federation
from fl.server.state import ServerState
from fl.wire.arrays import pack_banks
from fl.wire.banks import (
    BANKS,
    QUOTA,
    ROUND,
    RoundInfo,
    pack_merged,
    pack_quotas,
    pack_round,
    unpack_upload,
)
from fl.wire.envelope import check_size
from fl.wire.results import unpack_results
from fl.wire.surveys import SurveyReply, unpack_curves, unpack_holdings
from src.federated.types import BankRefused, ClientBank, ClientStats, RadiusCurve
from src.federated.validation import check_bank, check_curve, check_stats

Curves = dict[int, Mapping[str, RadiusCurve]]  # client -> bank name -> curve


def ask_holdings(federation: Federation, server_round: int) -> dict[int, Mapping[str, ClientStats]]:
    """Ask what the clients hold: client -> bank name -> stats."""

    def parse(client: int, content: RecordDict) -> dict[str, ClientStats]:
        holdings = unpack_holdings(content)
        _refuse_empty(holdings)
        for stats in holdings.values():
            check_stats(stats)
        return holdings

    return federation.ask(
        "query.holdings",
        lambda client: RecordDict(),
        parse,
        server_round=server_round,
        purpose="reported what they hold",
    )


def ask_curves(
    federation: Federation,
    state: ServerState,
    action: str = "query.curves",
    steps: Mapping[str, int] = {},
) -> tuple[Curves, ServerState]:
    """Ask how many rows cover how much; the request brings each client the merged banks' new rows.

    A client that has restarted and lost rows it was sent before is asked again, with all rows.

    Args:
        federation: the clients.
        state: with the merged banks.
        action: "query.curves", or "query.farthest" in an exact round.
        steps: bank name -> rows that all clients together will be asked for, in an exact round.

    Returns:
        the curves, and the state with the rows that the clients now have.
    """
    server_round = state.round + 1

    @functools.cache  # clients that have the same rows get the same record
    def new_rows(synced: tuple[tuple[str, int], ...]) -> ArrayRecord:
        known = dict(synced)
        rows = {name: bank.features[known.get(name, 0) :] for name, bank in state.banks.items()}
        return pack_banks(rows)

    def ask(synced: Mapping[int, Mapping[str, int]], **options: object) -> dict[int, SurveyReply]:
        def request(client: int | None) -> RecordDict:
            record = state.clients.get(client) if client is not None else None
            known = synced.get(client, {}) if client is not None else {}
            acked = record.acked_round if record else 0
            info = RoundInfo(server_round, acked, known, steps)
            content = RecordDict({ROUND: pack_round(info)})
            if state.banks:
                content[BANKS] = new_rows(tuple(sorted(known.items())))
            return content

        def parse(client: int, content: RecordDict) -> SurveyReply:
            reply = unpack_curves(content)
            if not (reply.stale and synced.get(client)):
                _refuse_empty(reply.curves)
                for curve in reply.curves.values():
                    check_curve(curve)
            return reply

        return federation.ask(
            action,
            request,
            parse,
            server_round=server_round,
            purpose="reported what they hold",
            **options,  # type: ignore[arg-type]
        )

    replies = ask({client: record.synced_rows for client, record in state.clients.items()})
    stale = {client for client, reply in replies.items() if reply.stale}
    if stale:
        fresh = {client: reply for client, reply in replies.items() if client not in stale}
        replies = fresh | ask({}, to=stale, answered=len(fresh))
    curves = {client: reply.curves for client, reply in sorted(replies.items())}
    return curves, state.with_synced_rows(curves)


def ask_rows(
    federation: Federation, state: ServerState, quotas: Mapping[int, Mapping[str, int]] | None
) -> dict[int, dict[str, ClientBank]]:
    """Ask for rows: client -> bank name -> rows, decoded and checked.

    Args:
        federation: the clients.
        state: before the round.
        quotas: client -> bank name -> rows it may send, where others are not asked; None lets all
            clients send in proportion to their patches.
    """
    settings, dim = federation.settings, federation.model.backbone.get_feature_dim()
    server_round = state.round + 1

    def request(client: int | None) -> RecordDict:
        content = RecordDict({ROUND: pack_round(RoundInfo(server_round))})
        if quotas is not None and client is not None:
            content[QUOTA] = pack_quotas(quotas[client])
        return content

    def parse(client: int, content: RecordDict) -> dict[str, ClientBank]:
        check_size(content, settings.merge_max_rows, settings.merge_max_mb * 2**20)
        upload = unpack_upload(content, settings.merge_encoding, dim)
        if not upload:
            raise BankRefused("it sent no bank")
        for name, bank in upload.items():
            check_bank(bank, dim)
            # a node that replaces another may have a number that nobody asked
            quota = len(bank.features) if quotas is None else quotas.get(client, {}).get(name, 0)
            if len(bank.features) > quota:
                raise BankRefused(
                    f"it sent {len(bank.features)} rows of {name}, {quota} were asked for"
                )
        return upload

    return federation.ask(
        MessageType.TRAIN,
        request,
        parse,
        server_round=server_round,
        purpose="sent a bank that can be merged",
        to=None if quotas is None else quotas.keys(),
    )


def evaluate(federation: Federation, state: ServerState) -> ServerState:
    """Broadcast the merged banks, also to clients that were left out; the state with results."""
    banks = pack_merged(state.banks)
    results = federation.ask(
        MessageType.EVALUATE,
        lambda client: banks,
        lambda client, content: unpack_results(content),
        server_round=state.round,
        purpose="scored the merged bank",
    )
    return replace(state, results=results, traffic=federation.traffic)


def _refuse_empty(banks: Mapping[str, object]) -> None:
    if not banks:
        raise BankRefused("it holds no bank")
