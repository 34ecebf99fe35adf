"""The wire format: what the messages of a run carry. No other module knows it.

- every request: `config`, the settings; `ticket`, which names the exchange; `round`, its terms;
- query, to a client: `banks`, the merged rows that it has not been sent yet; its answer: `about`,
  what it holds of each bank, and the radius curve of what it could send;
- train, to a client: `allowance`, rows that it may send, where the server sets that; its answer:
  `banks`, the coded rows of each bank, records with what decodes them, and `about`, counts and
  radii;
- evaluate, to a client: `banks`, the merged rows, and `frames`, the coordinates of private ones;
  its answer: `about`, figures and score quantiles as JSON;
- a query may ask for private sums instead (`fl.wire.sums`);
- a client that could not do its part answers with `failure`, its number and the reason;
- each answer gives the `ticket` back, so that one from another time is known for what it is.

What comes from outside is checked here: whatever a reply holds, it is read or it is refused.
"""

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from pydantic import (
    AfterValidator,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on only

from fl.wire.arrays import pack_banks, read_header, unpack_banks
from src.federated.allocation import CURVE_POINTS
from src.federated.codec import BASIS, CODES, MEAN, OFFSET, STEP, Coding, Parts, decode
from src.federated.types import QUANTILES, BankRefused, ClientBank, Holding, Survey
from src.models.feature_transform import Frame

CONFIG, ABOUT, FAILURE, TICKET, ROUND = "config", "about", "failure", "ticket", "round"
BANKS, ALLOWANCE, FRAMES = CODES, "allowance", "frames"
PARTS = (CODES, OFFSET, STEP, MEAN, BASIS)  # a record each, of arrays by bank
FIGURES = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "aupro", "aupro_0.05")
BY_LIMIT, LIMIT = "au_spro", re.compile(r"\d\.\d{1,4}")
LONGEST_NAME, LONGEST_REASON = 100, 2000  # characters
LONGEST_RESULTS = 2**24  # characters; a thousand objects take two million
TRAIN_STAGES = ("features", "coreset")  # whose seconds a client tells
EVALUATE_STAGES = ("features", "evaluate", "local")
COUNTS = ("images", "patches", "share")
RADII = ("radius", "share_radius")


@dataclass(frozen=True)
class Sender:
    """Who answers.

    Attributes:
        client: its number.
        fingerprint: of its backbone's weights.
        version: of its app.
        seconds: stage -> how long it took.
    """

    client: int
    fingerprint: str
    version: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Upload:
    """A client's answer to the train message: bank name -> coreset."""

    sender: Sender
    banks: Mapping[str, ClientBank]


@dataclass(frozen=True)
class Prospect:
    """A client's answer to the query: bank name -> what it holds and could send.

    Attributes:
        lost: it has not the rows of the merged bank that it was sent before: it has been started
            anew, and has to be told all.
    """

    sender: Sender
    surveys: Mapping[str, Survey]
    lost: bool = False


@dataclass(frozen=True)
class Terms:
    """What a request says of its round.

    Attributes:
        number: of the round, from 1 on.
        curves: whether a query asks for radius curves, and not only for what clients hold.
        heard: the last round of which the server has this client's rows; 0: of none.
        known: bank name -> rows of the merged bank that the client has been sent before.
        step: bank name -> rows that all clients together will be asked for, in an exact round.
    """

    number: int
    curves: bool = False
    heard: int = 0
    known: Mapping[str, int] = field(default_factory=dict)
    step: Mapping[str, int] = field(default_factory=dict)


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


Name = Annotated[str, AfterValidator(_is_name)]
Figures = Annotated[dict[str, FiniteFloat | dict[str, FiniteFloat]], AfterValidator(_are_figures)]


class Side(TypedDict):
    """Figures of the test images under some banks: by object, and their mean."""

    mean: Figures
    objects: dict[Name, Figures]


class SurveyFields(TypedDict):
    """A `src.federated.types.Survey`."""

    images: NonNegativeInt
    patches: NonNegativeInt
    share: NonNegativeInt
    counts: list[NonNegativeInt]
    radii: list[FiniteFloat]


class CalibrationFields(TypedDict):
    """A `src.federated.candidates.Calibration`."""

    quantiles: list[FiniteFloat]
    images: NonNegativeInt
    radius: FiniteFloat


class Results(TypedDict):
    """A client's answer to the evaluate message."""

    client: NonNegativeInt
    federated: Side
    calibration: dict[Name, CalibrationFields]
    seconds: NotRequired[dict[str, FiniteFloat]]
    local: NotRequired[Side]
    local_images: NotRequired[NonNegativeInt]


RESULTS: TypeAdapter[Results] = TypeAdapter(Results)
SURVEYS: TypeAdapter[dict[str, SurveyFields]] = TypeAdapter(dict[Name, SurveyFields])


class ClientFailed(RuntimeError):
    """A client answered that it could not do its part, and why."""


def pack_terms(terms: Terms) -> ConfigRecord:
    """The record ROUND of a request."""
    banks = sorted({*terms.known, *terms.step})
    known, step = ([of.get(name, 0) for name in banks] for of in (terms.known, terms.step))
    said: dict[str, Any] = {"banks": banks, "known": known, "step": step}
    return ConfigRecord(
        {"number": terms.number, "curves": terms.curves, "heard": terms.heard, **said}
    )


def unpack_terms(record: ConfigRecord) -> Terms:
    """The inverse of `pack_terms`."""
    given: dict[str, Any] = dict(record)
    known, step = (dict(zip(given["banks"], given[of], strict=True)) for of in ("known", "step"))
    return Terms(given["number"], given["curves"], given["heard"], known, step)


def pack_allowance(rows: Mapping[str, int]) -> ConfigRecord:
    """Bank name -> rows that a client may send, as a record."""
    return ConfigRecord({"banks": list(rows), "rows": list(rows.values())})


def unpack_allowance(record: ConfigRecord) -> dict[str, int]:
    """The inverse of `pack_allowance`."""
    given: dict[str, Any] = dict(record)
    return dict(zip(given["banks"], given["rows"], strict=True))


def check_size(content: RecordDict, max_rows: int, max_bytes: int) -> None:
    """Refuse banks larger than a client may send, by what their headers say; no array is made.

    Raises:
        BankRefused: too many rows or bytes, or arrays whose size cannot be read.
    """
    try:
        arrays = [array for record in content.array_records.values() for array in record.values()]
        size = sum(len(array.data) for array in arrays)
        within = size <= max_bytes
        # of a basis, too, the first number is that of its rows
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
    """Bytes of a message's content on the wire: its arrays, and all that is said beside them."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    said = [record for name, record in content.config_records.items() if name != CONFIG]
    return sum(len(array.data) for array in arrays) + sum(len(r.deflate()) for r in said)


def pack_prospect(prospect: Prospect) -> RecordDict:
    """The client's answer to the query."""
    surveys = {
        name: {**vars(survey.holding), "counts": survey.counts.tolist(), "radii": _short(survey)}
        for name, survey in prospect.surveys.items()
    }
    about = {
        **pack_sender(prospect.sender),
        "surveys": json.dumps(surveys),
        "lost": prospect.lost,
    }
    return RecordDict({ABOUT: ConfigRecord(about)})


def unpack_prospect(content: RecordDict) -> Prospect:
    """The inverse of `pack_prospect`.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: the answer cannot be read, or is not what a client should answer.
    """
    raise_failure(content)
    try:
        about: dict[str, Any] = dict(content[ABOUT])
        surveys = {}
        for name, given in SURVEYS.validate_json(about["surveys"]).items():
            if max(len(given["counts"]), len(given["radii"])) > CURVE_POINTS + 2:
                raise ValueError(f"a radius curve of {len(given['counts'])} points")
            holding = Holding(given["images"], given["patches"], given["share"])
            counts = np.array(given["counts"], np.int64)
            surveys[name] = Survey(holding, counts, np.array(given["radii"], float))
        return Prospect(unpack_sender(about), surveys, bool(about["lost"]))
    except Exception as error:
        raise unreadable(error) from error


def pack_upload(upload: Upload, coded: Mapping[str, Parts]) -> RecordDict:
    """The client's answer to the train message; `coded` are its banks' rows as they are sent."""
    names = list(upload.banks)
    about: dict[str, Any] = {**pack_sender(upload.sender), "banks": names}
    for part in COUNTS:
        about[part] = [getattr(upload.banks[name].holding, part) for name in names]
    for part in RADII:
        about[part] = [getattr(upload.banks[name], part) for name in names]
    content = RecordDict({ABOUT: ConfigRecord(about)})
    for part in PARTS:
        content[part] = pack_banks({n: parts[part] for n, parts in coded.items() if part in parts})
    for part in [part for part in PARTS if not content[part] and part != CODES]:
        del content[part]
    return content


def unpack_upload(content: RecordDict, coding: Coding, dim: int) -> Upload:
    """The inverse of `pack_upload`, the rows decoded.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: records or fields are missing or of the wrong kind.
    """
    raise_failure(content)
    try:
        about: dict[str, Any] = dict(content[ABOUT])
        found = {part: unpack_banks(content[part]) for part in PARTS if part in content}  # type: ignore[arg-type]
        names = [_is_name(name) for name in about["banks"]]
        rows = {
            name: decode({p: at[name] for p, at in found.items() if name in at}, coding, dim)
            for name in names
        }
        banks = {name: _bank(about, rows[name], i) for i, name in enumerate(names)}
        return Upload(unpack_sender(about), banks)
    except BankRefused:
        raise
    except Exception as error:
        raise unreadable(error) from error


def pack_frames(frames: Mapping[str, Frame]) -> RecordDict:
    """Bank name -> the coordinates that it lies in, as records of an evaluate message."""
    if not frames:
        return RecordDict()
    parts = {
        f"{FRAMES}-{part}": pack_banks(
            {n: array for n, f in frames.items() if (array := getattr(f, part)) is not None}
        )
        for part in ("origin", "basis")
    }
    return RecordDict({FRAMES: ConfigRecord({"banks": list(frames)}), **parts})


def unpack_frames(content: RecordDict) -> dict[str, Frame]:
    """The inverse of `pack_frames`."""
    if FRAMES not in content:
        return {}
    names: Any = content[FRAMES]["banks"]
    origins, bases = (unpack_banks(content[f"{FRAMES}-{part}"]) for part in ("origin", "basis"))  # type: ignore[arg-type]
    return {name: Frame(origins.get(name), bases.get(name)) for name in names}


def pack_results(results: Results) -> RecordDict:
    """The client's answer to the evaluate message: plain figures, as JSON."""
    said = {name: value for name, value in results.items() if name != "seconds"}
    about: dict[str, Any] = {"client": results["client"], "results": json.dumps(said)}
    about["seconds"] = _pack_seconds(results["seconds"], EVALUATE_STAGES)
    return RecordDict({ABOUT: ConfigRecord(about)})


def unpack_results(content: RecordDict) -> Results:
    """The inverse of `pack_results`.

    Raises:
        ClientFailed: the client answered that it could not.
        BankRefused: the answer cannot be read, or is not what a client should answer.
    """
    raise_failure(content)
    try:
        text = str(content[ABOUT]["results"])
        if len(text) > LONGEST_RESULTS:
            raise ValueError(f"its results are {len(text)} characters long")
        results = RESULTS.validate_json(text)
        results["seconds"] = _unpack_seconds(content[ABOUT], EVALUATE_STAGES)
        if results["client"] != _number(content[ABOUT]):
            raise ValueError("its results are another client's")
        if ("local" in results) != ("local_images" in results):
            raise ValueError("local figures and the number of their images go together")
        for name, of in results["calibration"].items():
            if len(of["quantiles"]) != (QUANTILES if of["images"] else 0):
                raise ValueError(f"{len(of['quantiles'])} quantiles for {name}")
        return results
    except Exception as error:
        raise unreadable(error) from error


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
        raise unreadable(error) from error
    if given != ticket:
        raise BankRefused("its reply answers another request, an earlier one or another run's")


def number_in(content: RecordDict) -> int | None:
    """The number that a reply says its sender has, if it says one."""
    try:
        return _number(content[FAILURE if FAILURE in content else ABOUT])
    except Exception:
        return None


def pack_sender(sender: Sender) -> dict[str, Any]:
    return {**vars(sender), "seconds": _pack_seconds(sender.seconds, TRAIN_STAGES)}


def unpack_sender(about: Mapping[str, Any]) -> Sender:
    """The inverse of `pack_sender`."""
    identity = (_number(about), str(about["fingerprint"]), str(about["version"]))
    return Sender(*identity, _unpack_seconds(about, TRAIN_STAGES))


def _pack_seconds(seconds: Mapping[str, float], stages: tuple[str, ...]) -> list[float]:
    """As numbers of fixed width: a message has the same size however long things took."""
    return [float(seconds[stage]) for stage in stages]


def _unpack_seconds(about: Mapping[str, Any], stages: tuple[str, ...]) -> dict[str, float]:
    seconds = list(about["seconds"])
    if not all(isinstance(took, float) and 0 <= took < math.inf for took in seconds):
        raise ValueError(f"seconds that no stage takes: {seconds[:9]}")
    return dict(zip(stages, seconds, strict=True))


def _short(survey: Survey) -> list[float]:
    """A curve's radii in six digits: they are estimates of what rows to ask for."""
    return [float(f"{radius:.6g}") for radius in survey.radii]


def _number(about: Mapping[str, Any]) -> int:
    number = about["client"]
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no client's number")
    return number


def _bank(about: Mapping[str, Any], rows: np.ndarray, i: int) -> ClientBank:
    counts = {field: about[field][i] for field in COUNTS}
    radii = {field: about[field][i] for field in RADII}
    if not all(isinstance(count, int) for count in counts.values()):
        raise TypeError(f"counts must be whole numbers: {counts}")
    if not all(isinstance(radius, int | float) for radius in radii.values()):
        raise TypeError(f"radii must be numbers: {radii}")
    return ClientBank(features=rows, holding=Holding(**counts), **radii)


def raise_failure(content: RecordDict) -> None:
    """Raise what a client that could not do its part said.

    Raises:
        ClientFailed: it said so.
    """
    if FAILURE in content:
        try:
            reason = str(content[FAILURE]["reason"])[:LONGEST_REASON]
        except Exception:
            reason = "it failed, and its reason cannot be read"
        raise ClientFailed(reason)


def unreadable(error: Exception) -> BankRefused:
    """What to say of an answer whose reading ended in an error."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        return BankRefused(f"its reply cannot be read ({said})")
    return BankRefused(f"its reply cannot be read ({type(error).__name__}: {error})")
