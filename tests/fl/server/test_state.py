"""The server's state is a value: each step gives a new one, and nothing is counted twice."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from fl.server.state import ClientRecord, ServerState
from fl.server.traffic import Traffic
from src.federated.bank_set import BankSet
from src.federated.types import ClientBank, ClientStats, MergedBank, RadiusCurve


def upload(rows: int, share: int = 2, name: str = "bracket") -> dict[str, ClientBank]:
    return {name: ClientBank(np.ones((rows, 4)), 1.0, 1.5, ClientStats(1, 64, share))}


def test_uploads_are_added_to_a_new_state() -> None:
    empty = ServerState()
    first = empty.with_uploads({2: upload(5), 0: upload(3)}, server_round=1)
    second = first.with_uploads({2: upload(4, share=6)}, server_round=2)
    assert empty == ServerState()
    assert list(second.clients) == [0, 2]
    assert (first.clients[2].sent_rows, first.clients[2].acked_round) == (5, 1)
    assert (second.clients[2].sent_rows, second.clients[2].acked_round) == (9, 2)
    assert len(second.clients[2].banks["bracket"].features) == 9
    assert second.clients[2].stats["bracket"].share == 6  # the latest
    assert second.clients[0] == first.clients[0]
    with pytest.raises(FrozenInstanceError):
        second.round = 7


def test_banks_are_grouped_by_name_and_client() -> None:
    uploads = {1: upload(5) | upload(3, name="valve"), 0: upload(2)}
    banks = ServerState().with_uploads(uploads, 1).banks_by_name()
    assert {name: list(of_clients) for name, of_clients in banks.items()} == {
        "bracket": [0, 1],
        "valve": [1],
    }


def test_a_client_s_share_counts_once_as_its_curve_reports_it() -> None:
    state = ServerState().with_uploads({0: upload(5), 1: upload(5, share=3)}, 1)
    curve = RadiusCurve(ClientStats(2, 128, 7), np.array([1]), np.array([0.5]))
    assert state.shares() == {"bracket": 5}
    assert state.shares({1: {"bracket": curve}, 4: {"bracket": curve}}) == {"bracket": 2 + 7 + 7}


def test_a_round_replaces_banks_and_traffic_and_adds_up_seconds() -> None:
    state = ServerState(clients={0: ClientRecord({})})
    banks = {"bracket": MergedBank(np.ones((6, 4)))}
    after = state.after_round(banks, Traffic(), 0.5).after_round(banks, Traffic(), 0.25)
    assert (after.round, after.merge_seconds, after.bank_sizes) == (2, 0.75, {"bracket": 6})
    assert isinstance(after.banks, BankSet)
    assert after.clients == state.clients


def test_clients_that_reply_have_all_merged_rows() -> None:
    banks = BankSet({"bracket": MergedBank(np.ones((6, 4)))})
    state = ServerState(banks=banks, clients={0: ClientRecord({}), 1: ClientRecord({})})
    synced = state.with_synced_rows({1: None, 3: None}).clients
    assert {client: dict(record.synced_rows) for client, record in synced.items()} == {
        0: {},
        1: {"bracket": 6},
        3: {"bracket": 6},
    }
