"""What is packed comes back; what is not of this format is refused, and nothing else happens."""

import json
import math
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl.wire.messages import (
    ABOUT,
    BANKS,
    FAILURE,
    TICKET,
    ClientFailed,
    Prospect,
    Sender,
    Terms,
    Upload,
    check_size,
    check_ticket,
    number_in,
    pack_allowance,
    pack_banks,
    pack_failure,
    pack_prospect,
    pack_results,
    pack_terms,
    pack_ticket,
    pack_upload,
    unpack_allowance,
    unpack_banks,
    unpack_prospect,
    unpack_results,
    unpack_terms,
    unpack_upload,
    wire_bytes,
)
from src.federated.allocation import curve_counts
from src.federated.codec import Coding, decode, encode
from src.federated.types import BankRefused, ClientBank, Holding, Survey

names = st.text(min_size=1, max_size=12).filter(str.isprintable)
rows = hnp.arrays(
    st.sampled_from([np.float16, np.float32]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
)
DIM = 4
counts = st.integers(0, 2**40)
radii = st.floats(0, 1e6)
holdings = st.builds(Holding, counts, counts, counts)
of_any_length = st.integers(0, 6).flatmap(
    lambda n: hnp.arrays(np.float16, (n, DIM), elements=st.floats(-1e4, 1e4, width=16))
)
banks = st.builds(ClientBank, of_any_length, radii, radii, holdings)
stages = st.fixed_dictionaries(dict.fromkeys(["features", "coreset"], st.floats(0, 1e5)))
senders = st.builds(Sender, st.integers(0, 2**31), names, names, stages)
uploads = st.builds(Upload, senders, st.dictionaries(names, banks, max_size=3))
codings = st.builds(
    Coding, st.sampled_from(["float16", "float32", "int8"]), st.sampled_from([0, 2])
)
curves = st.lists(st.floats(0, 1e6), max_size=9).map(
    lambda r: (np.arange(len(r)), np.sort(np.array(r))[::-1])
)
surveys = st.builds(lambda held, curve: Survey(held, *curve), holdings, curves)
prospects = st.builds(Prospect, senders, st.dictionaries(names, surveys, max_size=3), st.booleans())


@given(uploads, codings)
def test_upload_comes_back_as_its_coding_leaves_it(upload: Upload, coding: Coding) -> None:
    coded = {name: encode(bank.features, coding) for name, bank in upload.banks.items()}
    content = pack_upload(upload, coded)
    found = unpack_upload(content, coding, DIM)
    assert found.sender == upload.sender
    assert list(found.banks) == list(upload.banks)
    for name, bank in upload.banks.items():
        np.testing.assert_array_equal(found.banks[name].features, decode(coded[name], coding, DIM))
        for field in ("radius", "share_radius", "holding"):
            assert getattr(found.banks[name], field) == getattr(bank, field)
    assert number_in(content) == upload.sender.client


@given(prospects)
def test_prospect_comes_back_as_it_was_packed_to_six_digits(prospect: Prospect) -> None:
    content = pack_prospect(prospect)
    found = unpack_prospect(content)
    assert (found.sender, found.lost) == (prospect.sender, prospect.lost)
    assert list(found.surveys) == list(prospect.surveys)
    for name, survey in prospect.surveys.items():
        assert found.surveys[name].holding == survey.holding
        np.testing.assert_array_equal(found.surveys[name].counts, survey.counts)
        np.testing.assert_allclose(found.surveys[name].radii, survey.radii, rtol=1e-5)


def test_a_radius_curve_of_a_large_client_takes_a_few_kilobytes() -> None:
    counts = curve_counts(2_000_000, 1)
    survey = Survey(Holding(1000, 10**9, 10**6), counts, 123.456789 / np.sqrt(counts))
    sender = Sender(0, "f", "v", {"features": 1.0, "coreset": 1.0})
    assert wire_bytes(pack_prospect(Prospect(sender, {"bracket": survey}))) < 4000


rows_by_bank = st.dictionaries(names, counts, max_size=3)


@given(rows_by_bank, rows_by_bank, st.integers(1, 64), st.booleans())
def test_terms_and_allowance_come_back(known: dict, step: dict, number: int, curves: bool) -> None:
    assert unpack_allowance(pack_allowance(known)) == known
    found = unpack_terms(pack_terms(Terms(number, curves, number - 1, known, step)))
    assert (found.number, found.curves, found.heard) == (number, curves, number - 1)
    for name in {*known, *step}:  # a bank that one of them lacks has no rows there
        assert found.known[name] == known.get(name, 0)
        assert found.step[name] == step.get(name, 0)


def test_a_figure_that_is_not_known_is_not_read() -> None:
    content = pack_results(results(federated={"mean": {"<b>": 1.0}, "objects": {}}))
    assert unpack_results(content)["federated"]["mean"] == {}


@given(st.dictionaries(names, rows, max_size=3))
def test_banks_come_back_row_for_row(arrays: dict) -> None:
    found = unpack_banks(pack_banks(arrays))
    assert list(found) == list(arrays)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found[name], expected)


def test_rows_of_a_slice_travel_as_rows() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(unpack_banks(pack_banks({"a": table.T}))["a"], table.T)


@pytest.mark.parametrize(("encoding", "part"), [("float32", 1), ("float16", 2), ("int8", 4)])
def test_encoding_sends_its_part_of_the_bytes(encoding: str, part: int) -> None:
    table = np.random.default_rng(0).normal(size=(1000, 152)).astype(np.float32)
    upload = upload_of_rows(table)
    content = pack_upload(upload, {"bracket": encode(table, Coding(encoding))})
    assert wire_bytes(content) == pytest.approx(table.nbytes / part, rel=0.03)


def upload_of_rows(table: np.ndarray) -> Upload:
    bank = ClientBank(table, 1.0, 1.5, Holding(images=1, patches=4, share=1))
    return Upload(Sender(0, "f", "v", SECONDS), {"bracket": bank})


def results(**changes: object) -> dict:
    return {
        "client": 3,
        "federated": {
            "mean": {"image_auroc": 0.75, "au_spro": {"0.05": 0.5}},
            "objects": {"bracket": {"image_auroc": 0.75}},
        },
        "calibration": {"bracket": {"quantiles": [0.5] * 101, "images": 7, "radius": 2.0}},
        "seconds": {"features": 0.25, "evaluate": 1.5, "local": 0.5},
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"local": {"mean": {}, "objects": {}}, "local_images": 12},
        {"calibration": {}, "federated": {"mean": {}, "objects": {}}},
        {"calibration": {"bracket": {"quantiles": [], "images": 0, "radius": 1.0}}},
    ],
)
def test_results_come_back_as_they_were_packed(changes: dict) -> None:
    content = pack_results(results(**changes))
    assert unpack_results(content) == results(**changes)
    assert number_in(content) == 3


PLAIN = (Coding("float32"), 2)


@pytest.mark.parametrize(
    "unpack", [lambda content: unpack_upload(content, *PLAIN), unpack_prospect, unpack_results]
)
def test_failure_comes_back_with_its_reason(unpack) -> None:
    content = pack_failure(4, "DataError: cannot read image")
    with pytest.raises(ClientFailed, match="^DataError: cannot read image$"):
        unpack(content)
    assert number_in(content) == 4
    assert number_in(pack_failure(-1, "this node has no partition-id")) is None


@pytest.mark.parametrize("record", [ConfigRecord({"client": 1}), MetricRecord({"reason": 3})])
def test_failure_without_a_reason_is_a_failure(record) -> None:
    with pytest.raises(ClientFailed):
        unpack_upload(RecordDict({FAILURE: record}), *PLAIN)


SECONDS = {"features": 1.0, "coreset": 0.5}


def upload_with(**changes: object) -> RecordDict:
    """A sound upload whose fields are changed, or taken away by None."""
    table = np.eye(2, dtype=np.float32)
    content = pack_upload(upload_of_rows(table), {"bracket": {"banks": table}})
    about = dict(content[ABOUT]) | changes
    kept = {key: value for key, value in about.items() if value is not None}
    return RecordDict({BANKS: content[BANKS], ABOUT: ConfigRecord(kept)})


def upload_of(array: Array) -> RecordDict:
    """An upload whose bank is sent as some bytes or other."""
    return RecordDict({**upload_with(), BANKS: ArrayRecord({"bracket": array})})


NPY = pack_banks({"a": np.eye(2, dtype=np.float32)})["a"].data
UNREADABLE = {
    "no record": RecordDict(),
    "no rows": RecordDict({ABOUT: upload_with()[ABOUT]}),
    "no counts": RecordDict({BANKS: upload_with()[BANKS]}),
    "rows in a record of settings": RecordDict(
        {**upload_with(), BANKS: ConfigRecord({"bracket": "rows"})}
    ),
    "counts in a record of metrics": RecordDict({**upload_with(), ABOUT: MetricRecord({"a": 1})}),
    "rows of another bank": upload_with(banks=["connector"]),
    "banks that are a number": upload_with(banks=3),
    "no client": upload_with(client=None),
    "client below zero": upload_with(client=-3),
    "client that is a word": upload_with(client="first"),
    "no radius": upload_with(radius=None),
    "radius that is a word": upload_with(radius=["wide"]),
    "too few radii": upload_with(radius=[]),
    "share that is a fraction": upload_with(share=[0.5]),
    "patches that are a word": upload_with(patches=["many"]),
    "one share for all": upload_with(share=1),
    "seconds that are a word": upload_with(seconds="long"),
    "seconds of too few stages": upload_with(seconds=[1.0]),
    "seconds below zero": upload_with(seconds=[1.0, -1.0]),
    "a name that breaks files": upload_with(banks=["__metadata__"]),
    "a name that breaks lines": upload_with(banks=["a\nb"]),
    "seconds without end": upload_with(seconds=[1.0, math.inf]),
    "empty bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"")),
    "other bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"bank" * 9)),
    "half the bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", NPY[:-8])),
    "an archive": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"PK\x03\x04" + NPY)),
    "an unknown serialisation": upload_of(Array("float32", (2, 2), "pickle", NPY)),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_upload_that_cannot_be_read_is_refused_in_words(content: RecordDict) -> None:
    with pytest.raises(BankRefused, match=r"^its (reply cannot be read \(|bank holds nothing)"):
        unpack_upload(content, *PLAIN)


def test_what_is_changed_above_is_sound_before() -> None:
    assert unpack_upload(upload_with(), *PLAIN).sender.client == 0
    whole = Array("float32", (2, 2), "numpy.ndarray", NPY)
    assert unpack_upload(upload_of(whole), *PLAIN).banks["bracket"].features.shape == (2, 2)


CALIBRATION = {"quantiles": [0.5] * 101, "images": 7, "radius": 2.0}


@pytest.mark.parametrize(
    "changed",
    [
        [],
        {},
        results(client="first"),
        results(client=-1),
        results(federated=None),
        results(federated={"mean": {}}),
        results(federated={"mean": {"image_auroc": "high"}, "objects": {}}),
        results(federated={"mean": {"image_auroc": math.nan}, "objects": {}}),
        results(federated={"mean": {"au_spro": 0.5}, "objects": {}}),
        results(federated={"mean": {"au_spro": {"../x": 0.5}}, "objects": {}}),
        results(federated={"mean": {}, "objects": {"a\nb": {}}}),
        results(calibration={"x" * 101: CALIBRATION}),
        results(calibration=[]),
        results(calibration={"bracket": {**CALIBRATION, "quantiles": [0.5] * 50}}),
        results(calibration={"bracket": {**CALIBRATION, "images": 0}}),
        results(calibration={"bracket": {**CALIBRATION, "images": -7}}),
        results(calibration={"bracket": {**CALIBRATION, "radius": math.inf}}),
        results(local={"mean": 0.5}),
        results(local={"mean": {}, "objects": {}}),
        results(client=4),  # while the record says 3
    ],
)
def test_results_that_are_not_what_a_client_answers_are_refused(changed) -> None:
    about = ConfigRecord({"client": 3, "results": json.dumps(changed), "seconds": [1.0] * 3})
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_results(RecordDict({ABOUT: about}))


@pytest.mark.parametrize(
    "seconds", [None, 1.0, [0.25, 1.5], [0.25, 1.5, -1.0], [0.1, 0.2, math.nan]]
)
def test_results_with_seconds_that_no_stage_takes_are_refused(seconds) -> None:
    content = pack_results(results())
    if seconds is None:
        del content[ABOUT]["seconds"]
    else:
        content[ABOUT]["seconds"] = seconds
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_results(content)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({ABOUT: ConfigRecord({"client": 3})}),
        RecordDict({ABOUT: ConfigRecord({"client": 3, "results": "{"})}),
        RecordDict({ABOUT: ConfigRecord({"client": 3, "results": 5})}),
        RecordDict({ABOUT: MetricRecord({"client": 3})}),
    ],
)
def test_results_that_cannot_be_read_are_refused(content: RecordDict) -> None:
    with pytest.raises(BankRefused):
        unpack_results(content)
    assert number_in(content) in (3, None)


scalars = st.one_of(st.integers(-1, 2**62), st.floats(), st.text(max_size=9), st.booleans())
odd_records = st.one_of(
    st.dictionaries(st.sampled_from(["client", "id", "reason", "b"]), scalars).map(ConfigRecord),
    st.just(MetricRecord({"b": 1.5})),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_side=3)).map(
        lambda rows: ArrayRecord({"b": Array(rows)})
    ),
)


@given(
    odd=st.dictionaries(st.sampled_from([ABOUT, BANKS, FAILURE, TICKET]), odd_records, max_size=2),
    fields=st.dictionaries(
        st.sampled_from(["client", "banks", "share", "seconds", "surveys"]), scalars
    ),
    spoiled=st.dictionaries(st.integers(0, 129), st.integers(0, 255), max_size=4),
    kept=st.integers(0, 200),
)
def test_whatever_an_answer_holds_it_is_read_or_refused(odd, fields, spoiled, kept) -> None:
    content = upload_with(**{key: value for key, value in fields.items() if key != "b"})
    array = content[BANKS]["bracket"]
    data = bytes(spoiled.get(at, byte) for at, byte in enumerate(array.data))[:kept]
    content[BANKS] = ArrayRecord({"bracket": Array(array.dtype, array.shape, array.stype, data)})
    content[TICKET] = pack_ticket("now")
    content = RecordDict({**content, **odd})
    with suppress(BankRefused, ClientFailed):
        number_in(content)
        check_ticket(content, "now")
        check_size(content, 10, 1000)
        unpack_upload(content, *PLAIN)
    with suppress(BankRefused, ClientFailed):
        unpack_prospect(content)
    with suppress(BankRefused, ClientFailed):
        unpack_results(content)
