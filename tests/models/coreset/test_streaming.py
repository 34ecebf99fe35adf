"""Selection within a memory bound: the same within it, an honest radius beyond it."""

import logging
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.models.coreset.selection import farthest_first
from src.models.coreset.streaming import BoundedRows

D = 6
ROW = 4 * D  # bytes of a float32 row


def normal(n, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def filled(parts, rows_held, seed=1):
    held = BoundedRows(rows_held * ROW, seed)
    for part in parts:
        held.add(part)
    return held


def measured_radius(rows, bank):
    return float(torch.cdist(rows.double(), bank.double()).min(1).values.max())


def test_within_the_bound_it_is_the_plain_selection():
    rows = normal(100)
    selection = filled(rows.split(17), rows_held=100).select(30)
    plain = farthest_first(rows, 30, 1)
    assert torch.equal(selection.features, rows[plain.indices])
    assert torch.equal(selection.radii, torch.as_tensor(plain.radii))
    assert selection.seen == 100


@given(st.integers(2, 60), st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 9))
def test_beyond_it_the_rows_held_keep_the_bound_and_the_radii_hold(bound, sizes, seed):
    parts = [normal(size, seed=seed + 10 * i) for i, size in enumerate(sizes)]
    rows = torch.cat(parts)
    held = BoundedRows(bound * ROW, seed)
    for part in parts:
        held.add(part)
        assert held.count <= bound
        assert held.rows.nbytes <= bound * ROW
    selection = held.select(held.count)
    assert selection.seen == len(rows)
    for k in {1, (held.count + 1) // 2, held.count}:
        measured = measured_radius(rows, selection.features[:k])
        assert measured <= float(selection.radii[k - 1]) * (1 + 1e-5) + 1e-5
    assert {tuple(row) for row in selection.features.tolist()} <= {tuple(r) for r in rows.tolist()}


def test_a_target_that_does_not_fit_is_said(caplog):
    held = filled([normal(100)], rows_held=20)
    with caplog.at_level(logging.WARNING, "src.models.coreset.streaming"):
        selection = held.select(50)
    assert "a bank of 50 rows exceeds the memory limit" in caplog.text
    assert len(selection.features) <= 20


def test_reducing_rows_that_repeat_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selection = filled([torch.ones(100, D), torch.zeros(5, D)], rows_held=20).select(2)
    assert selection.features.unique(dim=0).shape == (2, D)
    assert float(selection.radii[-1]) == 0


def test_half_precision_rows_stay_so():
    held = BoundedRows(50 * 2 * D, seed=0)
    held.add(normal(200).half())
    assert held.select(10).features.dtype == torch.float16


def test_rows_of_another_dimension_or_dtype_are_refused():
    held = filled([normal(4)], rows_held=10)
    with pytest.raises(
        ValueError, match=r"with 3 dimensions, earlier ones were torch\.float32 with 6"
    ):
        held.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"rows are torch.float16"):
        held.add(normal(4).half())


def test_a_bound_below_two_rows_and_a_selection_from_nothing_are_refused():
    with pytest.raises(ValueError, match="does not hold two rows"):
        BoundedRows(ROW, 0).add(normal(1))
    with pytest.raises(ValueError, match="no features to select from"):
        BoundedRows(ROW, 0).select(1)


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 8 rows hold NaN"):
        filled([normal(7), torch.full((1, D), torch.nan)], rows_held=10).select(2)


def test_more_rows_than_expected_are_never_held_twice():
    held = BoundedRows(100 * ROW, seed=0, expected=10)
    held.add(normal(10))
    before = held.rows.data_ptr()
    held.add(normal(60, seed=1))
    assert held.rows.data_ptr() == before
    assert len(held.select(70).features) == 70


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_held_on_a_gpu_are_selected_as_on_a_cpu():
    chosen = []
    for device in ("cpu", "cuda"):
        held = BoundedRows(None, 0, device, expected=300)
        for seed in range(4):
            held.add(normal(200, seed).to(device))
        chosen.append(held.select(60))
    assert torch.equal(chosen[0].features, chosen[1].features)
    torch.testing.assert_close(chosen[0].radii, chosen[1].radii)
