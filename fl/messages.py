"""The wire format: what the messages of a round carry. No other module knows it.

train     server -> client   config
client -> server   banks: rows of each bank, half precision; about: counts and radii
evaluate  server -> client   config, banks: the merged rows
client -> server   about: figures and score quantiles, as JSON
a client that could not do its part answers with `failure`: its number and the reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from src.client import ClientBank
from src.merge import BankRefused

CONFIG, BANKS, ABOUT, FAILURE = "config", "banks", "about", "failure"
COUNTS = ("share", "images", "patches")
RADII = ("radius", "share_radius")


@dataclass(frozen=True)
class Upload:
    """A client's answer to the train message.

    Attributes:
        client: its number.
        fingerprint: of its backbone's weights.
        version: of its app.
        banks: bank name -> coreset.
        seconds: stage -> how long it took.
    """

    client: int
    fingerprint: str
    version: str
    banks: Mapping[str, ClientBank]
    seconds: Mapping[str, float]


class ClientFailed(RuntimeError):
    """A client that answered with a failure; `client` is its number where it is known."""

    def __init__(self, client: int | str, reason: str) -> None:
        super().__init__(reason)
        self.client, self.reason = client, reason


def pack_banks(banks: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Bank name -> rows [n, D] as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(rows)) for name, rows in banks.items()})


def unpack_banks(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The inverse of `pack_banks`."""
    return {name: array.numpy() for name, array in record.items()}


def banks_bytes(record: ArrayRecord) -> int:
    """Bytes of a record's arrays on the wire."""
    return sum(len(array.data) for array in record.values())


def pack_upload(upload: Upload) -> RecordDict:
    """The client's answer to the train message."""
    names = list(upload.banks)
    about: dict[str, object] = {
        "client": upload.client,
        "fingerprint": upload.fingerprint,
        "version": upload.version,
        "banks": names,
        "seconds": json.dumps(dict(upload.seconds)),
    }
    for field in (*COUNTS, *RADII):
        about[field] = [getattr(upload.banks[name], field) for name in names]
    rows = pack_banks({name: bank.features for name, bank in upload.banks.items()})
    return RecordDict({BANKS: rows, ABOUT: ConfigRecord(about)})  # type: ignore[arg-type]


def unpack_upload(content: RecordDict) -> Upload:
    """The inverse of `pack_upload`.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: records or fields are missing or of the wrong kind.
    """
    _raise_failure(content)
    try:
        about: dict[str, Any] = dict(content[ABOUT])
        rows = unpack_banks(content[BANKS])  # type: ignore[arg-type]
        banks = {
            name: ClientBank(features=rows[name], **{f: about[f][i] for f in (*COUNTS, *RADII)})
            for i, name in enumerate(about["banks"])
        }
        seconds = json.loads(about["seconds"])
        identity = (int(about["client"]), str(about["fingerprint"]), str(about["version"]))
        return Upload(*identity, banks, seconds)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BankRefused(f"its reply cannot be read ({type(error).__name__}: {error})") from error


def pack_results(results: Mapping[str, object]) -> RecordDict:
    """The client's answer to the evaluate message: plain figures, as JSON."""
    return RecordDict({ABOUT: ConfigRecord({"results": json.dumps(dict(results))})})


def unpack_results(content: RecordDict) -> dict:
    """The inverse of `pack_results`.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: the answer cannot be read.
    """
    _raise_failure(content)
    try:
        return json.loads(content[ABOUT]["results"])  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise BankRefused(f"its results cannot be read ({type(error).__name__})") from error


def pack_failure(client: int, reason: str) -> RecordDict:
    """The answer of a client that could not do its part."""
    return RecordDict({FAILURE: ConfigRecord({"client": client, "reason": reason})})


def sender(reply: Message) -> str:
    """What to call the sender of a reply whose content does not say."""
    return f"node {reply.metadata.src_node_id}"


def _raise_failure(content: RecordDict) -> None:
    if FAILURE in content:
        failure = content[FAILURE]
        raise ClientFailed(int(failure["client"]), str(failure["reason"]))  # type: ignore[arg-type]
