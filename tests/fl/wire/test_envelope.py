"""Every reply names its sender and its exchange, or why the client failed; else it is refused."""

import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given

from fl.wire.arrays import pack_banks
from fl.wire.envelope import (
    ABOUT,
    CONFIG,
    FAILURE,
    TICKET,
    ClientFailed,
    Sender,
    check_size,
    check_ticket,
    client_number,
    make_ticket,
    pack_failure,
    pack_reply,
    pack_ticket,
    unpack_sender,
    wire_bytes,
)
from src.federated.types import BankRefused
from tests.fl.wire.samples import SENDER, senders


@given(senders)
def test_a_sender_comes_back(sender: Sender) -> None:
    content = pack_reply(sender, banks=["bracket"])
    assert unpack_sender(content) == sender
    assert client_number(content) == sender.client
    assert content[ABOUT]["banks"] == ["bracket"]


def test_a_failure_comes_back_with_its_reason() -> None:
    content = pack_failure(4, "DataError: cannot read image")
    with pytest.raises(ClientFailed, match="^DataError: cannot read image$"):
        unpack_sender(content)
    assert client_number(content) == 4
    assert client_number(pack_failure(-1, "this node has no partition-id")) is None


@pytest.mark.parametrize("record", [ConfigRecord({"client": 1}), MetricRecord({"reason": 3})])
def test_a_failure_without_a_reason_is_a_failure(record) -> None:
    with pytest.raises(ClientFailed):
        unpack_sender(RecordDict({FAILURE: record}))


def with_field(name: str, value: object) -> RecordDict:
    """A sound reply with one field changed, or removed by None."""
    fields = {**dict(pack_reply(SENDER)[ABOUT]), name: value}
    if value is None:
        del fields[name]
    return RecordDict({ABOUT: ConfigRecord(fields)})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({ABOUT: MetricRecord({"client": 3})}),
        with_field("client", None),
        with_field("client", -3),
        with_field("client", "first"),
        with_field("fingerprint", None),
        with_field("version", None),
        with_field("seconds", None),
        with_field("seconds", 1.0),
        with_field("seconds", "long"),
        with_field("seconds", [1.0]),
        with_field("seconds", [1.0, 0.5, 0.0, -1.0]),
        with_field("seconds", [1.0, 0.5, 0.0, math.inf]),
        with_field("seconds", [1.0, 0.5, 0.0, math.nan]),
    ],
)
def test_a_sender_that_cannot_be_read_is_refused(content: RecordDict) -> None:
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_sender(content)
    assert client_number(content) in (SENDER.client, None)


def test_a_reply_must_carry_the_ticket_of_its_request() -> None:
    first, second = make_ticket(), make_ticket()
    assert first != second
    check_ticket(RecordDict({TICKET: pack_ticket(first)}), first)
    with pytest.raises(BankRefused, match="its reply answers another request"):
        check_ticket(RecordDict({TICKET: pack_ticket(first)}), second)
    with pytest.raises(BankRefused, match="cannot be read"):
        check_ticket(RecordDict(), first)


def test_a_message_s_size_does_not_depend_on_the_seconds_or_the_settings() -> None:
    slow = Sender(SENDER.client, "f", "v", {"features": 1e4, "evaluate": 0.1})
    content = pack_reply(slow)
    assert wire_bytes(content) == wire_bytes(pack_reply(SENDER))
    content[CONFIG] = ConfigRecord({"seed": 42})
    assert wire_bytes(content) == wire_bytes(pack_reply(SENDER))


def test_arrays_beyond_the_limits_are_refused() -> None:
    rows = {"a": np.zeros((3, 4)), "b": np.zeros((2, 4))}
    content = RecordDict({"banks": pack_banks(rows)})
    check_size(content, 5, 2**20)
    with pytest.raises(BankRefused, match=r"it sent 5 rows, more than merge.max-rows = 4"):
        check_size(content, 4, 2**20)
    with pytest.raises(BankRefused, match=r"it sent 8.0 MiB, more than merge.max-mb = 7"):
        check_size(RecordDict({"banks": pack_banks({"a": np.zeros(2**20)})}), 2**30, 7 * 2**20)
