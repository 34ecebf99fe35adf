"""The wire format: what the messages of a round carry. No other module knows it.

- train, to a client: `config`, the settings, and `ticket`, which names the exchange;
- its answer: `banks`, the rows of each bank in half precision, and `about`, counts and radii;
- evaluate, to a client: `config`, `ticket`, and `banks`, the merged rows;
- its answer: `about`, figures and score quantiles as JSON;
- a client that could not do its part answers with `failure`, its number and the reason;
- each answer gives the `ticket` back, so that one from another time is known for what it is.

What comes from outside is checked here: whatever a reply holds, it is read or it is refused.
"""

import io
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import (
    AfterValidator,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from src.banks import QUANTILES, BankRefused, ClientBank

CONFIG, BANKS, ABOUT, FAILURE, TICKET = "config", "banks", "about", "failure", "ticket"
HEADER_BYTES = 4096  # the header of an array of ours takes 128
FIGURES = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro", "aupro_0.05")
BY_LIMIT, LIMIT = "au_spro", re.compile(r"\d\.\d{1,4}")
LONGEST_NAME, LONGEST_REASON = 100, 2000  # characters
LONGEST_RESULTS = 2**24  # characters; a thousand objects take two million
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


def _is_name(text: str) -> str:
    """A bank's or an object's name: it stands in files and on pages."""
    if not (0 < len(text) <= LONGEST_NAME and text.isprintable()) or text == "__metadata__":
        raise ValueError(f"{text[:LONGEST_NAME]!r} is no name of a bank")
    return text


def _are_figures(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that src.evaluation finds of a test set, each of its kind; others are dropped."""
    known = {name: found[name] for name in (*FIGURES, BY_LIMIT) if name in found}
    odd = [name for name, value in known.items() if isinstance(value, dict) != (name == BY_LIMIT)]
    if odd or not all(LIMIT.fullmatch(limit) for limit in known.get(BY_LIMIT, {})):
        raise ValueError(f"its figures are of another kind: {odd or BY_LIMIT}")
    return known


def _are_stages(*stages: str) -> AfterValidator:
    """How long these stages took, each of them."""

    def check(found: dict[str, float]) -> dict[str, float]:
        if found.keys() != set(stages) or min(found.values()) < 0:
            raise ValueError(f"seconds of {list(found)}, not of {list(stages)}")
        return found

    return AfterValidator(check)


Name = Annotated[str, AfterValidator(_is_name)]
Figures = Annotated[dict[str, FiniteFloat | dict[str, FiniteFloat]], AfterValidator(_are_figures)]
TrainSeconds = Annotated[dict[str, FiniteFloat], _are_stages("features", "coreset")]
EvaluateSeconds = Annotated[dict[str, FiniteFloat], _are_stages("features", "evaluate")]


class Side(TypedDict):
    """Figures of the test images under some banks: by object, and their mean."""

    mean: Figures
    objects: dict[Name, Figures]


class CalibrationFields(TypedDict):
    """A `src.client.Calibration`."""

    quantiles: list[FiniteFloat]
    images: NonNegativeInt
    radius: FiniteFloat


class Results(TypedDict):
    """A client's answer to the evaluate message."""

    client: NonNegativeInt
    federated: Side
    calibration: dict[Name, CalibrationFields]
    seconds: EvaluateSeconds
    local: NotRequired[Side]
    local_images: NotRequired[NonNegativeInt]


RESULTS: TypeAdapter[Results] = TypeAdapter(Results)
SECONDS: TypeAdapter[dict[str, float]] = TypeAdapter(TrainSeconds)


class ClientFailed(RuntimeError):
    """A client answered that it could not do its part, and why."""


def pack_banks(banks: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Bank name -> rows [n, D] as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(rows)) for name, rows in banks.items()})


def unpack_banks(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The inverse of `pack_banks`; the rows are the record's own bytes, read-only.

    Raises:
        ValueError: an array whose bytes are not what its header says.
    """
    return {name: _rows(array) for name, array in record.items()}


def check_size(record: ArrayRecord, max_rows: int, max_bytes: int) -> None:
    """Refuse banks larger than a client may send, by what their headers say; no array is made.

    Raises:
        BankRefused: too many rows or bytes, or arrays whose size cannot be read.
    """
    try:
        size = banks_bytes(record)
        within = size <= max_bytes
        rows = sum((_header(array)[0] or (0,))[0] for array in record.values()) if within else 0
    except Exception as error:
        raise _unreadable(error) from error
    if not within:
        raise BankRefused(
            f"it sent {size / 2**20:.1f} MiB, more than merge.max-mb = {max_bytes // 2**20}"
        )
    if rows > max_rows:
        raise BankRefused(f"it sent {rows} rows, more than merge.max-rows = {max_rows}")


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
        names = [_is_name(name) for name in about["banks"]]
        banks = {name: _bank(about, rows[name], i) for i, name in enumerate(names)}
        identity = (_number(about), str(about["fingerprint"]), str(about["version"]))
        return Upload(*identity, banks, SECONDS.validate_json(about["seconds"]))
    except Exception as error:
        raise _unreadable(error) from error


def pack_results(results: Results) -> RecordDict:
    """The client's answer to the evaluate message: plain figures, as JSON."""
    about = {"client": results["client"], "results": json.dumps(results)}
    return RecordDict({ABOUT: ConfigRecord(about)})  # type: ignore[arg-type]


def unpack_results(content: RecordDict) -> Results:
    """The inverse of `pack_results`.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: the answer cannot be read, or is not what a client should answer.
    """
    _raise_failure(content)
    try:
        text = str(content[ABOUT]["results"])
        if len(text) > LONGEST_RESULTS:
            raise ValueError(f"its results are {len(text)} characters long")
        results = RESULTS.validate_json(text)
        if results["client"] != _number(content[ABOUT]):
            raise ValueError("its results are another client's")
        if ("local" in results) != ("local_images" in results):
            raise ValueError("local figures and the number of their images go together")
        for name, of in results["calibration"].items():
            if len(of["quantiles"]) != (QUANTILES if of["images"] else 0):
                raise ValueError(f"{len(of['quantiles'])} quantiles for {name}")
        return results
    except Exception as error:
        raise _unreadable(error) from error


def pack_failure(client: int, reason: str) -> RecordDict:
    """The answer of a client that could not do its part; -1 where it has no number."""
    return RecordDict({FAILURE: ConfigRecord({"client": client, "reason": reason})})


def make_ticket() -> str:
    """A name for an exchange that no other has."""
    return secrets.token_hex(8)


def pack_ticket(ticket: str) -> ConfigRecord:
    """The record TICKET, of requests and answers alike."""
    return ConfigRecord({"id": ticket})


def check_ticket(content: RecordDict, ticket: str) -> None:
    """Refuse an answer to another exchange.

    Raises:
        BankRefused: its ticket is missing, or is not this one.
    """
    try:
        given = content[TICKET]["id"]
    except Exception as error:
        raise _unreadable(error) from error
    if given != ticket:
        raise BankRefused("its reply answers another request, an earlier one or another run's")


def number_in(content: RecordDict) -> int | None:
    """The number that a reply says its sender has, if it says one."""
    try:
        return _number(content[FAILURE if FAILURE in content else ABOUT])
    except Exception:
        return None


def _number(about: Mapping[str, Any]) -> int:
    number = about["client"]
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no client's number")
    return number


def _header(array: Array) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and start of the values of an array, by the npy header of its bytes."""
    if array.stype != "numpy.ndarray":
        raise ValueError(f"an array of kind {array.stype!r}")
    start = io.BytesIO(array.data[:HEADER_BYTES])
    version = np.lib.format.read_magic(start)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, by_columns, dtype = read(start)
    if dtype.hasobject or by_columns or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} that cannot be read")
    return shape, dtype, start.tell()


def _rows(array: Array) -> np.ndarray:
    """An array as its bytes stand: nothing is copied, and nothing in them is executed."""
    shape, dtype, start = _header(array)
    expected = math.prod(shape) * dtype.itemsize
    if len(array.data) - start != expected:
        raise ValueError(
            f"{len(array.data) - start} bytes, where {list(shape)} of {dtype} take {expected}"
        )
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape)


def _bank(about: Mapping[str, Any], rows: np.ndarray, i: int) -> ClientBank:
    fields: dict[str, Any] = {field: about[field][i] for field in (*COUNTS, *RADII)}
    if not all(isinstance(fields[count], int) for count in COUNTS):
        raise TypeError(f"counts must be whole numbers: {fields}")
    if not all(isinstance(fields[radius], int | float) for radius in RADII):
        raise TypeError(f"radii must be numbers: {fields}")
    if not isinstance(rows, np.ndarray):
        raise TypeError("its rows are not an array")
    return ClientBank(features=rows, **fields)


def _raise_failure(content: RecordDict) -> None:
    if FAILURE in content:
        try:
            reason = str(content[FAILURE]["reason"])[:LONGEST_REASON]
        except Exception:
            reason = "it failed, and its reason cannot be read"
        raise ClientFailed(reason)


def _unreadable(error: Exception) -> BankRefused:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return BankRefused(f"its reply cannot be read ({said})")
    return BankRefused(f"its reply cannot be read ({type(error).__name__}: {error})")
