"""The bank: exact Euclidean search, its size, and its file."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from src.models import FileError, MemoryBank
from src.models.coreset.selection import greedy_coreset_selection
from src.storage.tensor_file import write_tensors

D = 10


@pytest.fixture
def rows(random_state):
    return random_state.normal(size=(200, D)).astype(np.float32)


@pytest.fixture
def bank(rows):
    bank = MemoryBank(D)
    bank.add(rows)
    return bank


def brute_force(queries, rows, k):
    """Euclidean distances [M, k] and indices of the k nearest, in float64 by difference."""
    gaps = np.linalg.norm(queries[:, None].astype(np.float64) - rows.astype(np.float64), axis=2)
    order = np.argsort(gaps, axis=1)[:, :k]
    return np.take_along_axis(gaps, order, 1), order


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor])
def test_search_gives_euclidean_distances_as_brute_force_does(
    bank, rows, k, count, as_given, random_state
):
    queries = random_state.normal(size=(count, D)).astype(np.float32)
    distances, indices = bank.search(as_given(queries), k)
    expected, order = brute_force(queries, rows, k)
    assert (distances.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    np.testing.assert_array_equal(indices, order)


def test_distances_ascend_though_rows_lie_closer_than_a_product_can_tell(random_state):
    bank = MemoryBank(152)
    bank.add(300 + random_state.normal(size=(2000, 152)))
    queries = (300 + random_state.normal(size=(3000, 152))).astype(np.float32)
    distances, indices = bank.search(queries, 3)
    assert (np.diff(distances) >= 0).all()
    for j in range(3):
        gaps = np.linalg.norm(queries - bank.features[indices[:, j]], axis=1)
        np.testing.assert_allclose(distances[:, j], gaps, rtol=1e-5)


def test_a_row_finds_itself_at_distance_zero(bank, rows):
    distances, indices = bank.search(rows)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(len(rows)))


def test_many_queries_are_searched_in_tiles(bank, rows, monkeypatch):
    whole = bank.search(rows, 3)
    monkeypatch.setattr("src.models.search.flat_index.PAIRED_ROWS", 7)
    for one, other in zip(bank.search(rows, 3), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_rows_added_after_a_search_are_seen_by_the_next(bank):
    far = np.full((1, D), 50, np.float32)
    assert bank.search(far)[0] > 1
    bank.add(far)
    assert bank.search(far) == (np.zeros((1, 1)), np.full((1, 1), 200))
    assert bank.index.ntotal == len(bank) == 201


def test_the_index_is_a_faiss_index_of_squared_distances(bank, rows):
    bank.build_index()
    squared, indices = bank.index.search(rows[:4] + 0.1, 1)
    np.testing.assert_allclose(squared, bank.search(rows[:4] + 0.1)[0] ** 2, rtol=1e-4)
    np.testing.assert_array_equal(indices[:, 0], np.arange(4))


def test_max_size_keeps_the_greedy_coreset(rows):
    bank = MemoryBank(D, max_size=30)
    bank.add(rows)
    np.testing.assert_array_equal(bank.features, greedy_coreset_selection(rows, 30))
    bank.add(rows)
    assert len(bank) == 30


def test_half_precision_rows_stay_so_and_are_searched_as_such(rows):
    bank = MemoryBank(D)
    bank.add(rows.astype(np.float16))
    assert bank.features.dtype == np.float16
    distances, indices = bank.search(rows, 2)
    expected, order = brute_force(rows, rows.astype(np.float16), 2)
    np.testing.assert_allclose(distances, expected, rtol=1e-3)
    np.testing.assert_array_equal(indices, order)


def test_the_bank_keeps_a_copy_of_what_it_is_given(rows):
    bank = MemoryBank(D)
    bank.add(rows)
    before = rows.copy()
    rows[:] = 0
    np.testing.assert_array_equal(bank.features, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("max_size", [None, 50])
def test_a_saved_bank_comes_back_the_same(tmp_path, rows, dtype, max_size):
    bank = MemoryBank(D, max_size)
    bank.add(rows.astype(dtype))
    bank.save(tmp_path / "bank.safetensors")
    again = MemoryBank.load(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(again.features, bank.features)
    assert (again.features.dtype, again.max_size, again.feature_dim) == (dtype, max_size, D)


@pytest.mark.parametrize("length", [0, 5, 100, 4000])
def test_a_truncated_file_is_named(tmp_path, bank, length):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"bank\.safetensors is truncated or not a safetensors"):
        MemoryBank.load(path)


@pytest.mark.parametrize("meta", [None, {"fedpatchcore": '{"format": "fedpatchcore-bank-9"}'}])
def test_a_file_of_another_format_or_version_is_named(tmp_path, rows, meta):
    path = tmp_path / "other.safetensors"
    save_file({"features": rows}, path, meta)
    with pytest.raises(FileError, match=r"other\.safetensors has format .*fedpatchcore-bank-1"):
        MemoryBank.load(path)


@pytest.mark.parametrize("name", ["rows", "features"])
def test_a_file_of_our_format_without_a_bank_is_named(tmp_path, name):
    path = tmp_path / "hollow.safetensors"
    write_tensors(path, "fedpatchcore-bank-1", {}, {name: np.zeros(3, np.float32)})
    with pytest.raises(FileError, match=r"hollow\.safetensors holds no bank"):
        MemoryBank.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors does not exist"):
        MemoryBank.load(tmp_path / "absent.safetensors")


def test_queries_of_another_dimension_are_refused(bank):
    with pytest.raises(ValueError, match=rf"queries are \(3, 4\), not \[M, {D}\]"):
        bank.search(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("k", [0, 201])
def test_k_out_of_range_is_refused(bank, k):
    with pytest.raises(ValueError, match=f"k is {k}: the bank holds 200 rows"):
        bank.search(bank.features, k)


def test_an_empty_bank_cannot_be_searched():
    with pytest.raises(ValueError, match="the bank holds 0 rows"):
        MemoryBank(D).search(np.zeros((1, D), np.float32))


def test_no_queries_give_no_distances(bank):
    distances, indices = bank.search(np.zeros((0, D), np.float32), 2)
    assert distances.shape == indices.shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_with_their_count(bank, rows, bad):
    rows[4, 2] = rows[9, 0] = bad
    with pytest.raises(ValueError, match="2 of 200 rows hold NaN or infinite"):
        bank.add(rows)
    assert len(bank) == 200


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 5, D)])
def test_rows_of_another_shape_are_refused(bank, shape):
    with pytest.raises(ValueError, match=rf"the bank takes \[M, {D}\]"):
        bank.add(np.zeros(shape, np.float32))


@pytest.mark.parametrize("arguments", [(0,), (D, 0), (-1, None)])
def test_sizes_must_be_positive(arguments):
    with pytest.raises(ValueError, match="must be positive"):
        MemoryBank(*arguments)
