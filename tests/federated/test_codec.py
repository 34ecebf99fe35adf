"""What coding does to rows is small where it should be, measured where it is not, and checked."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from src.federated.codec import BASIS, CODES, MEAN, OFFSET, STEP, Coding, decode, encode, slip
from src.federated.types import BankRefused

DIM = 6
tables = hnp.arrays(
    np.float16,
    st.tuples(st.integers(0, 20), st.just(DIM)),
    elements=st.floats(-1000, 1000, width=16),
)


@given(tables)
def test_half_and_single_precision_send_half_precision_rows_as_they_are(rows) -> None:
    for encoding in ("float16", "float32"):
        coding = Coding(encoding)
        back = decode(encode(rows, coding), coding, DIM)
        assert back.dtype == encoding
        np.testing.assert_array_equal(back, rows)


@given(tables)
def test_int8_is_off_by_half_a_step_and_the_rounding_of_half_precision(rows) -> None:
    coding = Coding("int8")
    parts = encode(rows, coding)
    back = decode(parts, coding, DIM)
    assert parts[CODES].dtype == np.int8
    assert back.dtype == np.float16
    if len(rows):
        spread = rows.astype(float).max(0) - rows.astype(float).min(0)
        largest = np.abs(rows.astype(float)).max(0)
        allowed = spread / 255 / 2 * 1.01 + 3 * largest * 2**-11 + 1e-6
        assert (np.abs(back.astype(float) - rows.astype(float)) <= allowed).all()


@given(tables, st.sampled_from(["float16", "int8"]))
def test_slip_is_the_largest_distance_between_a_row_and_what_came_of_it(rows, encoding) -> None:
    coding = Coding(encoding, 3)
    back = decode(encode(rows, coding), coding, DIM)
    gaps = np.linalg.norm(rows.astype(float) - back.astype(float), axis=1)
    assert slip(rows, back) == pytest.approx(gaps.max(initial=0), rel=1e-4, abs=1e-5)


def test_rows_of_few_directions_need_few_components() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 2)) @ rng.normal(size=(2, DIM)) + 5).astype(np.float16)
    by_two, by_one = (
        slip(rows, decode(encode(rows, c), c, DIM))
        for c in (Coding("float16", 2), Coding("float16", 1))
    )
    assert by_two < 0.02 < 1 < by_one


def test_components_beyond_the_dimension_or_the_rows_are_those() -> None:
    rows = np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float16)
    assert encode(rows, Coding("float16", 99))[BASIS].shape == (4, DIM)
    assert encode(np.repeat(rows, 3, 0), Coding("float16", 99))[BASIS].shape == (DIM, DIM)


ROWS = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float16)
CODED = encode(ROWS, Coding("int8", 3))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({CODES: CODED[CODES].astype(np.float16)}, "banks of float16"),
        ({STEP: None}, "not int8"),
        ({MEAN: CODED[MEAN].astype(float)}, "mean of float64"),
        ({CODES: CODED[CODES][0]}, "its bank has shape (3,), not [rows, 6]"),
        ({OFFSET: CODED[OFFSET][:2]}, "its bank's offset has shape (2,), not (3,)"),
        ({BASIS: CODED[BASIS][:, :5]}, "its bank's basis has shape (3, 5), not (3, 6)"),
        ({MEAN: CODED[MEAN][:5]}, "its bank's mean has shape (5,), not (6,)"),
        ({"extra": CODED[MEAN]}, "extra of float16"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(change: dict, sentence: str) -> None:
    parts = {name: part for name, part in {**CODED, **change}.items() if part is not None}
    with pytest.raises(BankRefused, match=re.escape(sentence)):
        decode(parts, Coding("int8", 3), DIM)


def test_rows_of_another_dimension_are_refused_before_they_are_decoded() -> None:
    for coding in (Coding("float16"), Coding("int8"), Coding("int8", 3)):
        with pytest.raises(BankRefused, match="7"):
            decode(encode(ROWS, coding), coding, 7)
