"""Banks, quotas and rounds come back as they were packed; other uploads are read or refused."""

from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl.wire.arrays import pack_banks, unpack_banks
from fl.wire.banks import (
    BANKS,
    QUOTA,
    ROUND,
    RoundInfo,
    pack_merged,
    pack_quotas,
    pack_round,
    pack_upload,
    unpack_merged,
    unpack_quotas,
    unpack_round,
    unpack_upload,
)
from fl.wire.envelope import (
    ABOUT,
    FAILURE,
    TICKET,
    ClientFailed,
    check_size,
    check_ticket,
    client_number,
    pack_ticket,
    unpack_sender,
    wire_bytes,
)
from fl.wire.results import unpack_results
from fl.wire.surveys import unpack_curves, unpack_holdings
from src.federated.candidates import EncodedBank
from src.federated.codec import decode, encode
from src.federated.types import Bank, BankRefused, ClientBank, ClientStats
from src.models.feature_transform import FeatureTransform
from tests.fl.wire.samples import SENDER, counts, names, odd_records, radii, scalars, senders, stats

DIM = 4
tables = hnp.arrays(
    st.sampled_from([np.float16, np.float32]),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
)
rows = st.integers(0, 6).flatmap(
    lambda n: hnp.arrays(np.float16, (n, DIM), elements=st.floats(-1e4, 1e4, width=16))
)
client_banks = st.builds(ClientBank, rows, radii, radii, stats)
encodings = st.sampled_from(["float16", "float32", "int8"])


def encoded(bank: ClientBank, encoding: str) -> EncodedBank:
    return EncodedBank(encode(bank.features, encoding), bank)


@given(senders, st.dictionaries(names, client_banks, max_size=3), encodings)
def test_an_upload_comes_back_as_its_encoding_leaves_it(sender, upload, encoding) -> None:
    sent = {name: encoded(bank, encoding) for name, bank in upload.items()}
    content = pack_upload(sender, sent)
    received = unpack_upload(content, encoding, DIM)
    assert unpack_sender(content) == sender
    assert list(received) == list(upload)
    for name, bank in upload.items():
        expected = decode(sent[name].parts, encoding, DIM)
        np.testing.assert_array_equal(received[name].features, expected)
        for field in ("radius", "share_radius", "stats"):
            assert getattr(received[name], field) == getattr(bank, field)


rows_by_bank = st.dictionaries(names, counts, max_size=3)


@given(rows_by_bank, rows_by_bank, st.integers(1, 64))
def test_a_round_and_its_quotas_come_back(synced: dict, steps: dict, number: int) -> None:
    assert unpack_quotas(RecordDict({QUOTA: pack_quotas(synced)})) == synced
    assert unpack_quotas(RecordDict()) is None
    packed = pack_round(RoundInfo(number, number - 1, synced, steps))
    info = unpack_round(RecordDict({ROUND: packed}))
    assert (info.number, info.acked_round) == (number, number - 1)
    for name in {*synced, *steps}:  # a bank that one of them lacks has no rows there
        assert info.synced_rows[name] == synced.get(name, 0)
        assert info.steps[name] == steps.get(name, 0)


@given(st.dictionaries(names, tables, max_size=3))
def test_banks_come_back_row_for_row(banks: dict) -> None:
    received = unpack_banks(pack_banks(banks))
    assert list(received) == list(banks)
    for name, expected in banks.items():
        np.testing.assert_array_equal(received[name], expected)


def test_a_transposed_table_travels_by_rows() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(unpack_banks(pack_banks({"a": table.T}))["a"], table.T)


def test_merged_banks_come_back_with_their_transforms() -> None:
    table = np.eye(3, dtype=np.float32)
    origin, basis = np.arange(4, dtype=np.float64), np.ones((4, 3))
    banks = {
        "plain": Bank(table),
        "unit length": Bank(table, FeatureTransform()),
        "projected": Bank(table, FeatureTransform(origin, basis)),
    }
    received = unpack_merged(pack_merged(banks))
    assert list(received) == list(banks)
    assert received["plain"].transform is None
    assert received["unit length"].transform == FeatureTransform()
    np.testing.assert_array_equal(received["projected"].features, table)
    np.testing.assert_array_equal(received["projected"].transform.origin, origin)
    np.testing.assert_array_equal(received["projected"].transform.basis, basis)


@pytest.mark.parametrize(("encoding", "part"), [("float32", 1), ("float16", 2), ("int8", 4)])
def test_an_encoding_sends_its_part_of_the_bytes(encoding: str, part: int) -> None:
    table = np.random.default_rng(0).normal(size=(1000, 152)).astype(np.float32)
    content = pack_upload(SENDER, {"bracket": encoded(client_bank(table), encoding)})
    assert wire_bytes(content) == pytest.approx(table.nbytes / part, rel=0.03)


def client_bank(table: np.ndarray) -> ClientBank:
    return ClientBank(table, 1.0, 1.5, ClientStats(images=1, patches=4, share=1))


def upload_with(**changes: object) -> RecordDict:
    """A sound upload with some fields changed, or removed by None."""
    table = np.eye(2, dtype=np.float32)
    content = pack_upload(SENDER, {"bracket": encoded(client_bank(table), "float32")})
    about = dict(content[ABOUT]) | changes
    kept = {key: value for key, value in about.items() if value is not None}
    return RecordDict({BANKS: content[BANKS], ABOUT: ConfigRecord(kept)})


def upload_of(array: Array) -> RecordDict:
    """An upload whose bank is this array."""
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
    "no radius": upload_with(radius=None),
    "radius that is a word": upload_with(radius=["wide"]),
    "too few radii": upload_with(radius=[]),
    "share that is a fraction": upload_with(share=[0.5]),
    "patches that are a word": upload_with(patches=["many"]),
    "one share for all": upload_with(share=1),
    "a name that breaks files": upload_with(banks=["__metadata__"]),
    "a name that breaks lines": upload_with(banks=["a\nb"]),
    "empty bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"")),
    "other bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"bank" * 9)),
    "half the bytes": upload_of(Array("float32", (2, 2), "numpy.ndarray", NPY[:-8])),
    "an archive": upload_of(Array("float32", (2, 2), "numpy.ndarray", b"PK\x03\x04" + NPY)),
    "an unknown serialisation": upload_of(Array("float32", (2, 2), "pickle", NPY)),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_upload_that_cannot_be_read_is_refused_with_a_reason(content: RecordDict) -> None:
    with pytest.raises(BankRefused, match=r"^its (reply cannot be read \(|bank holds nothing)"):
        unpack_upload(content, "float32", 2)


def test_the_uploads_changed_above_are_sound_before() -> None:
    assert unpack_sender(upload_with()).client == SENDER.client
    whole = Array("float32", (2, 2), "numpy.ndarray", NPY)
    for content in (upload_with(), upload_of(whole)):
        assert unpack_upload(content, "float32", 2)["bracket"].features.shape == (2, 2)


@given(
    odd=st.dictionaries(st.sampled_from([ABOUT, BANKS, FAILURE, TICKET]), odd_records, max_size=2),
    fields=st.dictionaries(
        st.sampled_from(["client", "banks", "share", "seconds", "curves", "holdings", "results"]),
        scalars,
    ),
    changed=st.dictionaries(st.integers(0, 129), st.integers(0, 255), max_size=4),
    length=st.integers(0, 200),
)
def test_a_reply_of_any_content_is_read_or_refused(odd, fields, changed, length) -> None:
    content = upload_with(**fields)
    array = content[BANKS]["bracket"]
    data = bytes(changed.get(at, byte) for at, byte in enumerate(array.data))[:length]
    content[BANKS] = ArrayRecord({"bracket": Array(array.dtype, array.shape, array.stype, data)})
    content[TICKET] = pack_ticket("now")
    content = RecordDict({**content, **odd})
    client_number(content)
    for read in (
        lambda: check_ticket(content, "now"),
        lambda: check_size(content, 10, 1000),
        lambda: unpack_sender(content),
        lambda: unpack_upload(content, "float32", 2),
        lambda: unpack_holdings(content),
        lambda: unpack_curves(content),
        lambda: unpack_results(content),
    ):
        with suppress(BankRefused, ClientFailed):
            read()
