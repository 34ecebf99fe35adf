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

from fl.messages import (
    ABOUT,
    BANKS,
    FAILURE,
    TICKET,
    ClientFailed,
    Upload,
    banks_bytes,
    check_size,
    check_ticket,
    number_in,
    pack_banks,
    pack_failure,
    pack_results,
    pack_ticket,
    pack_upload,
    unpack_banks,
    unpack_results,
    unpack_upload,
)
from src.banks import BankRefused, ClientBank

names = st.text(min_size=1, max_size=12).filter(str.isprintable)
rows = hnp.arrays(
    st.sampled_from([np.float16, np.float32]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
)
counts = st.integers(0, 2**40)
radii = st.floats(0, 1e6)
banks = st.builds(ClientBank, rows, radii, counts, radii, counts, counts)
uploads = st.builds(
    Upload,
    st.integers(0, 2**31),
    names,
    names,
    st.dictionaries(names, banks, max_size=3),
    st.fixed_dictionaries(dict.fromkeys(["features", "coreset"], st.floats(0, 1e5))),
)


@given(uploads)
def test_upload_comes_back_as_it_was_packed(upload: Upload) -> None:
    content = pack_upload(upload)
    found = unpack_upload(content)
    assert (found.client, found.fingerprint, found.version) == (
        upload.client,
        upload.fingerprint,
        upload.version,
    )
    assert found.seconds == upload.seconds
    assert list(found.banks) == list(upload.banks)
    for name, bank in upload.banks.items():
        assert_same_bank(found.banks[name], bank)
    assert number_in(content) == upload.client


def test_a_figure_that_is_not_known_is_not_read() -> None:
    content = pack_results(results(federated={"mean": {"<b>": 1.0}, "objects": {}}))
    assert unpack_results(content)["federated"]["mean"] == {}


def assert_same_bank(found: ClientBank, bank: ClientBank) -> None:
    assert found.features.dtype == bank.features.dtype
    np.testing.assert_array_equal(found.features, bank.features)
    for field in ("radius", "share", "share_radius", "images", "patches"):
        assert getattr(found, field) == getattr(bank, field)


@given(st.dictionaries(names, rows, max_size=3))
def test_banks_come_back_row_for_row(arrays: dict) -> None:
    found = unpack_banks(pack_banks(arrays))
    assert list(found) == list(arrays)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(found[name], expected)


def test_rows_of_a_slice_travel_as_rows() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(unpack_banks(pack_banks({"a": table.T}))["a"], table.T)


def test_half_precision_halves_the_bytes() -> None:
    table = np.zeros((1000, 152), np.float32)
    whole, half = (banks_bytes(pack_banks({"a": t})) for t in (table, table.astype(np.float16)))
    assert whole == pytest.approx(table.nbytes, abs=200)  # and a header
    assert half == pytest.approx(table.nbytes / 2, abs=200)


def results(**changes: object) -> dict:
    return {
        "client": 3,
        "federated": {
            "mean": {"image_auroc": 0.75, "au_spro": {"0.05": 0.5}},
            "objects": {"bracket": {"image_auroc": 0.75}},
        },
        "calibration": {"bracket": {"quantiles": [0.5] * 101, "images": 7, "radius": 2.0}},
        "seconds": {"features": 0.25, "evaluate": 1.5},
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


@pytest.mark.parametrize("unpack", [unpack_upload, unpack_results])
def test_failure_comes_back_with_its_reason(unpack) -> None:
    content = pack_failure(4, "DataError: cannot read image")
    with pytest.raises(ClientFailed, match="^DataError: cannot read image$"):
        unpack(content)
    assert number_in(content) == 4
    assert number_in(pack_failure(-1, "this node has no partition-id")) is None


@pytest.mark.parametrize("record", [ConfigRecord({"client": 1}), MetricRecord({"reason": 3})])
def test_failure_without_a_reason_is_a_failure(record) -> None:
    with pytest.raises(ClientFailed):
        unpack_upload(RecordDict({FAILURE: record}))


SECONDS = {"features": 1.0, "coreset": 0.5}


def upload_with(**changes: object) -> RecordDict:
    """A sound upload whose fields are changed, or taken away by None."""
    bank = ClientBank(np.eye(2, dtype=np.float32), 1.0, 1, 1.5, images=1, patches=4)
    content = pack_upload(Upload(0, "f", "v", {"bracket": bank}, SECONDS))
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
    "seconds that are no JSON": upload_with(seconds="{"),
    "seconds that are a list": upload_with(seconds="[1]"),
    "seconds of other stages": upload_with(seconds='{"features": 1.0}'),
    "a name that breaks files": upload_with(banks=["__metadata__"]),
    "a name that breaks lines": upload_with(banks=["a\nb"]),
    "seconds without end": upload_with(seconds='{"features": Infinity}'),
    "empty bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"")),
    "other bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"bank" * 9)),
    "half the bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", NPY[:-8])),
    "an archive": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"PK\x03\x04" + NPY)),
    "an unknown serialisation": upload_of(Array("float32", (2, 2), "pickle", NPY)),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_upload_that_cannot_be_read_is_refused_in_words(content: RecordDict) -> None:
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_upload(content)


def test_what_is_changed_above_is_sound_before() -> None:
    assert unpack_upload(upload_with()).client == 0
    whole = Array("float32", (2, 2), "numpy.ndarray", NPY)
    assert unpack_upload(upload_of(whole)).banks["bracket"].features.shape == (2, 2)


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
        results(seconds=None),
        results(seconds={"features": 0.25}),
        results(seconds={"features": 0.25, "evaluate": -1.0}),
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
    about = ConfigRecord({"client": 3, "results": json.dumps(changed)})
    with pytest.raises(BankRefused, match=r"^its reply cannot be read \("):
        unpack_results(RecordDict({ABOUT: about}))


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
    fields=st.dictionaries(st.sampled_from(["client", "banks", "share", "seconds"]), scalars),
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
        check_size(content[BANKS], 10, 1000)  # type: ignore[arg-type]
        unpack_upload(content)
    with suppress(BankRefused, ClientFailed):
        unpack_results(content)
