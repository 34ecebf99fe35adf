"""What every message carries beside its subject: the exchange, the sender, a client's failure.

- each request: `config`, the settings of the run and where the run directory is shared; `ticket`,
  which names the exchange;
- each reply: the `ticket` it answers; `about`, the sender; or `failure`, a client's number and why
  it could not do its part.

Replies come from outside: each is read, or refused with a reason.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from pydantic import ValidationError

from fl.wire.arrays import read_header
from src.federated.types import BankRefused

CONFIG, TICKET, ABOUT, FAILURE = "config", "ticket", "about", "failure"
STAGES = ("features", "coreset", "evaluate", "local")  # whose seconds a client reports
LONGEST_NAME, LONGEST_REASON = 100, 2000  # characters


class ClientFailed(RuntimeError):
    """A client reports that it could not do its part, and why."""


@dataclass(frozen=True)
class Sender:
    """The sender of a reply."""

    client: int  # its number
    fingerprint: str  # of its backbone's weights
    version: str  # of its app
    seconds: Mapping[str, float]  # stage -> seconds the reply took


def pack_reply(sender: Sender, **fields: Any) -> RecordDict:
    """A reply with the sender and further scalar fields in its record `about`."""
    # a number for each stage, so that a message has the same size however long things took
    seconds = [float(sender.seconds.get(stage, 0.0)) for stage in STAGES]
    return RecordDict({ABOUT: ConfigRecord({**vars(sender), "seconds": seconds, **fields})})


def unpack_sender(content: RecordDict) -> Sender:
    """The sender of a reply.

    Raises:
        ClientFailed: the client reports a failure.
        BankRefused: the sender cannot be read.
    """
    raise_failure(content)
    try:
        about = content[ABOUT]
        identity = (_client_number(about), str(about["fingerprint"]), str(about["version"]))
        seconds: list[Any] = list(about["seconds"])  # type: ignore[arg-type]
        if not all(isinstance(each, float) and 0 <= each < math.inf for each in seconds):
            raise ValueError(f"seconds that no stage takes: {seconds[:9]}")
        return Sender(*identity, dict(zip(STAGES, seconds, strict=True)))
    except Exception as error:
        raise unreadable(error) from error


def client_number(content: RecordDict) -> int | None:
    """The number a reply names as its sender, or None."""
    try:
        return _client_number(content[FAILURE if FAILURE in content else ABOUT])
    except Exception:
        return None


def _client_number(record: Any) -> int:
    number = record["client"]
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no client number")
    return number


def pack_failure(client: int, reason: str) -> RecordDict:
    """The reply of a client that could not do its part; -1 if it has no number."""
    return RecordDict({FAILURE: ConfigRecord({"client": client, "reason": reason})})


def raise_failure(content: RecordDict) -> None:
    """Raise the failure a client reports.

    Raises:
        ClientFailed: the reply holds one.
    """
    if FAILURE in content:
        try:
            reason = str(content[FAILURE]["reason"])[:LONGEST_REASON]
        except Exception:
            reason = "it failed, and its reason cannot be read"
        raise ClientFailed(reason)


def make_ticket() -> str:
    """A unique name for an exchange."""
    return secrets.token_hex(8)


def pack_ticket(ticket: str) -> ConfigRecord:
    """The record TICKET of requests and replies."""
    return ConfigRecord({"id": ticket})


def check_ticket(content: RecordDict, ticket: str) -> None:
    """Refuse a reply to another exchange.

    Raises:
        BankRefused: its ticket is missing or another.
    """
    try:
        given = content[TICKET]["id"]
    except Exception as error:
        raise unreadable(error) from error
    if given != ticket:
        raise BankRefused("its reply answers another request, an earlier one or another run's")


def check_size(content: RecordDict, max_rows: int, max_bytes: int) -> None:
    """Refuse arrays larger than a client may send, by their headers, before any array is made.

    Raises:
        BankRefused: too many rows or bytes, or arrays whose size cannot be read.
    """
    try:
        arrays = [array for record in content.array_records.values() for array in record.values()]
        size = sum(len(array.data) for array in arrays)
        within = size <= max_bytes
        rows = sum((read_header(array)[0] or (0,))[0] for array in arrays) if within else 0
    except Exception as error:
        raise unreadable(error) from error
    if not within:
        raise BankRefused(
            f"it sent {size / 2**20:.1f} MiB, more than merge.max-mb = {max_bytes // 2**20}"
        )
    if rows > max_rows:
        raise BankRefused(f"it sent {rows} rows, more than merge.max-rows = {max_rows}")


def wire_bytes(content: RecordDict) -> int:
    """Bytes of a message on the wire: its arrays and records, without the settings."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    records = [record for name, record in content.config_records.items() if name != CONFIG]
    return sum(len(array.data) for array in arrays) + sum(len(r.deflate()) for r in records)


def check_name(text: str) -> str:
    """The name of a bank or an object, which appears in files and on pages.

    Raises:
        ValueError: empty, too long, not printable, or reserved.
    """
    if not (0 < len(text) <= LONGEST_NAME and text.isprintable()) or text == "__metadata__":
        raise ValueError(f"{text[:LONGEST_NAME]!r} is no name of a bank")
    return text


def unreadable(error: Exception) -> BankRefused:
    """The refusal of a reply whose reading ended in an error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        problem = f"{type(error).__name__}: {error}"
    return BankRefused(f"its reply cannot be read ({problem})")
