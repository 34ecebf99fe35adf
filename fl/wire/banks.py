"""Banks on the wire: merged banks to clients, rows from them.

- `banks`: merged rows, one array a bank; a query carries only rows the client does not have;
- `transform-origin`, `transform-basis`: transforms of private banks;
- `quota`: rows of each bank that a client may send;
- an upload: `banks` and, for int8, `offset` and `step`; counts and radii in `about`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.wire.arrays import pack_banks, unpack_banks
from fl.wire.envelope import ABOUT, Sender, check_name, pack_reply, unreadable
from src.federated.bank_set import BankSet
from src.federated.candidates import EncodedBank
from src.federated.codec import CODES, OFFSET, STEP, Encoding, decode
from src.federated.types import Bank, BankRefused, ClientBank, ClientStats
from src.models.feature_transform import FeatureTransform

BANKS, QUOTA, ROUND, TRANSFORMS = CODES, "quota", "round", "transforms"
PARTS = (CODES, OFFSET, STEP)  # a record each, of arrays by bank
COUNTS = ("images", "patches", "share")
RADII = ("radius", "share_radius")


@dataclass(frozen=True)
class RoundInfo:
    """What a request tells a client of the round."""

    number: int  # of the round, from 1
    acked_round: int = 0  # last round in which the server received this client's rows; 0 for none
    # bank name -> rows of the merged bank the client has already
    synced_rows: Mapping[str, int] = field(default_factory=dict)
    # bank name -> rows all clients together will be asked for, in an exact round
    steps: Mapping[str, int] = field(default_factory=dict)


def pack_round(info: RoundInfo) -> ConfigRecord:
    """The record ROUND of a request."""
    banks = sorted({*info.synced_rows, *info.steps})
    fields: dict[str, Any] = {
        "number": info.number,
        "acked_round": info.acked_round,
        "banks": banks,
        "synced_rows": [info.synced_rows.get(name, 0) for name in banks],
        "steps": [info.steps.get(name, 0) for name in banks],
    }
    return ConfigRecord(fields)


def unpack_round(content: RecordDict) -> RoundInfo:
    """The inverse of `pack_round`."""
    fields: dict[str, Any] = dict(content[ROUND])
    synced, steps = (
        dict(zip(fields["banks"], fields[key], strict=True)) for key in ("synced_rows", "steps")
    )
    return RoundInfo(fields["number"], fields["acked_round"], synced, steps)


def pack_quotas(rows: Mapping[str, int]) -> ConfigRecord:
    """Bank name -> rows that a client may send, as the record QUOTA."""
    return ConfigRecord({"banks": list(rows), "rows": list(rows.values())})


def unpack_quotas(content: RecordDict) -> dict[str, int] | None:
    """The inverse of `pack_quotas`; None if the request sets none."""
    if QUOTA not in content:
        return None
    fields: dict[str, Any] = dict(content[QUOTA])
    return dict(zip(fields["banks"], fields["rows"], strict=True))


def pack_merged(banks: Mapping[str, Bank]) -> RecordDict:
    """Banks to install, with their transforms."""
    content = RecordDict({BANKS: pack_banks({n: bank.features for n, bank in banks.items()})})
    transforms = {name: bank.transform for name, bank in banks.items() if bank.transform}
    if transforms:
        content[TRANSFORMS] = ConfigRecord({"banks": list(transforms)})
        for part in ("origin", "basis"):
            arrays = {name: getattr(each, part) for name, each in transforms.items()}
            present = {name: array for name, array in arrays.items() if array is not None}
            content[f"{TRANSFORMS}-{part}"] = pack_banks(present)
    return content


def unpack_merged(content: RecordDict) -> BankSet[Bank]:
    """The inverse of `pack_merged`."""
    transforms: dict[str, FeatureTransform] = {}
    if TRANSFORMS in content:
        names: Any = content[TRANSFORMS]["banks"]
        origins, bases = (
            unpack_banks(content.array_records[f"{TRANSFORMS}-{part}"])
            for part in ("origin", "basis")
        )
        transforms = {name: FeatureTransform(origins.get(name), bases.get(name)) for name in names}
    rows = unpack_rows(content)
    return BankSet({name: Bank(array, transforms.get(name)) for name, array in rows.items()})


def unpack_rows(content: RecordDict) -> dict[str, np.ndarray]:
    """Bank name -> rows [n, D] of the record BANKS; empty if there is none."""
    return unpack_banks(content.array_records[BANKS]) if BANKS in content else {}


def pack_upload(sender: Sender, encoded: Mapping[str, EncodedBank]) -> RecordDict:
    """A client's rows, encoded, with counts and radii."""
    banks = {name: each.bank for name, each in encoded.items()}
    fields: dict[str, Any] = {"banks": list(banks)}
    fields |= {part: [getattr(bank.stats, part) for bank in banks.values()] for part in COUNTS}
    fields |= {part: [getattr(bank, part) for bank in banks.values()] for part in RADII}
    content = pack_reply(sender, **fields)
    for part in PARTS:
        arrays = {n: each.parts[part] for n, each in encoded.items() if part in each.parts}
        if arrays or part == CODES:
            content[part] = pack_banks(arrays)
    return content


def unpack_upload(content: RecordDict, encoding: Encoding, dim: int) -> dict[str, ClientBank]:
    """The inverse of `pack_upload`, rows decoded.

    Raises:
        BankRefused: records or fields are missing or of the wrong kind.
    """
    try:
        about: dict[str, Any] = dict(content[ABOUT])
        parts = {part: unpack_banks(content[part]) for part in PARTS if part in content}  # type: ignore[arg-type]
        names = [check_name(name) for name in about["banks"]]
        rows = {
            name: decode({p: of[name] for p, of in parts.items() if name in of}, encoding, dim)
            for name in names
        }
        return {name: _client_bank(about, rows[name], i) for i, name in enumerate(names)}
    except BankRefused:
        raise
    except Exception as error:
        raise unreadable(error) from error


def _client_bank(about: Mapping[str, Any], rows: np.ndarray, i: int) -> ClientBank:
    counts = {field: about[field][i] for field in COUNTS}
    radii = {field: about[field][i] for field in RADII}
    if not all(isinstance(count, int) for count in counts.values()):
        raise TypeError(f"counts must be whole numbers: {counts}")
    if not all(isinstance(radius, int | float) for radius in radii.values()):
        raise TypeError(f"radii must be numbers: {radii}")
    return ClientBank(features=rows, stats=ClientStats(**counts), **radii)
