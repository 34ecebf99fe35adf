"""Encoding changes rows little, its error is measured, and parts that do not agree are refused."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from src.federated.codec import CODES, OFFSET, STEP, decode, encode, reconstruction_error
from src.federated.types import BankRefused

DIM = 6
tables = hnp.arrays(
    np.float16,
    st.tuples(st.integers(0, 20), st.just(DIM)),
    elements=st.floats(-1000, 1000, width=16),
)


@given(tables, st.sampled_from(["float16", "float32"]))
def test_float_encodings_keep_half_precision_rows_unchanged(rows, encoding) -> None:
    decoded = decode(encode(rows, encoding), encoding, DIM)
    assert decoded.dtype == encoding
    np.testing.assert_array_equal(decoded, rows)


@given(tables)
def test_int8_is_off_by_half_a_step_and_the_rounding_of_half_precision(rows) -> None:
    parts = encode(rows, "int8")
    decoded = decode(parts, "int8", DIM)
    assert parts[CODES].dtype == np.int8
    assert decoded.dtype == np.float16
    if len(rows):
        spread = rows.astype(float).max(0) - rows.astype(float).min(0)
        largest = np.abs(rows.astype(float)).max(0)
        allowed = spread / 255 / 2 * 1.01 + 3 * largest * 2**-11 + 1e-6
        assert (np.abs(decoded.astype(float) - rows.astype(float)) <= allowed).all()


@given(tables, st.sampled_from(["float16", "int8"]))
def test_reconstruction_error_is_the_largest_distance_of_a_row_to_its_decoded_form(
    rows, encoding
) -> None:
    decoded = decode(encode(rows, encoding), encoding, DIM)
    gaps = np.linalg.norm(rows.astype(float) - decoded.astype(float), axis=1)
    error = reconstruction_error(rows, decoded)
    assert error == pytest.approx(gaps.max(initial=0), rel=1e-4, abs=1e-5)


ROWS = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float16)
ENCODED = encode(ROWS, "int8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({CODES: ENCODED[CODES].astype(np.float16)}, "banks of float16"),
        ({STEP: None}, "not int8"),
        ({OFFSET: ENCODED[OFFSET].astype(float)}, "offset of float64"),
        ({CODES: ENCODED[CODES][0]}, "its bank has shape (6,), not [rows, 6]"),
        ({OFFSET: ENCODED[OFFSET][:2]}, "its bank's offset has shape (2,), not [6]"),
        ({STEP: ENCODED[STEP][:5]}, "its bank's step has shape (5,), not [6]"),
        ({"extra": ENCODED[STEP]}, "extra of float16"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict, sentence: str) -> None:
    parts = {name: part for name, part in {**ENCODED, **change}.items() if part is not None}
    with pytest.raises(BankRefused, match=re.escape(sentence)):
        decode(parts, "int8", DIM)


@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_rows_of_another_dimension_are_refused_before_they_are_decoded(encoding) -> None:
    with pytest.raises(BankRefused, match="7"):
        decode(encode(ROWS, encoding), encoding, 7)
