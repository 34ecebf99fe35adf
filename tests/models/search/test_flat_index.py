"""Nearest-neighbour search against brute force in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.models.search import distances as products
from src.models.search import flat_index as search
from src.models.search.distances import tiles
from src.models.search.flat_index import Exclusion, FlatIndex


def brute_force(queries, rows):
    """[M, N] squared distances in float64, by difference."""
    return ((queries.double()[:, None] - rows.double()) ** 2).sum(2)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(products, "TILE_ROWS", 7)
    monkeypatch.setattr(products, "TILE_CENTRES", 5)
    monkeypatch.setattr(search, "RESULT_BYTES", 1000)
    monkeypatch.setattr(search, "PAIRED_ROWS", 3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_distance_and_index_are_those_of_brute_force(dtype, offset):
    queries = normal(33, 20, seed=1, dtype=dtype) + offset
    rows = normal(46, 20, seed=2, dtype=dtype) + offset
    distances, indices = FlatIndex(rows).nearest(queries)
    expected = brute_force(queries, rows).min(1)
    assert (distances.dtype, indices.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(distances, expected.values.float(), rtol=1e-5, atol=0)
    assert torch.equal(indices, expected.indices)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_is_at_distance_zero_from_itself_across_tile_borders(dtype):
    rows = 5 + normal(50, 16, dtype=dtype)
    distances, indices = FlatIndex(rows).nearest(rows)
    assert (distances == 0).all()
    assert torch.equal(indices, torch.arange(50))


@pytest.mark.usefixtures("small_tiles")
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 99))
def test_ties_give_a_row_at_the_least_distance(m, n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-2, 3, (m, d), generator=generator).float()
    rows = torch.randint(-2, 3, (n, d), generator=generator).float()
    distances, indices = FlatIndex(rows).nearest(queries)
    expected = brute_force(queries, rows)
    assert torch.equal(distances.double(), expected.min(1).values)
    assert torch.equal(expected[torch.arange(m), indices], expected.min(1).values)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("k", [1, 4])
def test_a_group_of_queries_never_finds_the_rows_it_leaves_out(k):
    queries, rows = normal(30, 8, seed=1), normal(40, 8, seed=2)
    group = torch.arange(30) % 3
    without = torch.arange(40)[None] % 4 == torch.arange(3)[:, None]
    distances, indices = FlatIndex(rows).k_nearest(queries, k, Exclusion(without, group))
    allowed = brute_force(queries, rows).masked_fill(without[group], torch.inf)
    expected = allowed.sort(1)
    torch.testing.assert_close(distances, expected.values[:, :k].float())
    assert torch.equal(indices, expected.indices[:, :k])


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("shared", [False, True], ids=["each its own", "one row in common"])
def test_a_group_s_nearest_row_is_none_that_it_leaves_out(shared):
    queries, rows = normal(30, 8, seed=1), normal(40, 8, seed=2)
    group = torch.arange(30) % 3
    without = torch.arange(40)[None] % 4 == torch.arange(3)[:, None]
    without[:, 7] |= shared
    distances, indices = FlatIndex(rows).nearest(queries, Exclusion(without, group))
    expected = brute_force(queries, rows).masked_fill(without[group], torch.inf).min(1)
    torch.testing.assert_close(distances, expected.values.float())
    assert torch.equal(indices, expected.indices)


def test_with_every_row_left_out_distances_are_infinite():
    everything = Exclusion(torch.ones(1, 5, dtype=torch.bool), torch.zeros(3, dtype=torch.int64))
    index, queries = FlatIndex(normal(5, 4)), normal(3, 4)
    assert torch.isinf(index.k_nearest(queries, 2, everything)[0]).all()
    assert torch.isinf(index.nearest(queries, everything)[0]).all()


def test_queries_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"queries are \(3, 4\), rows have 5 dim"):
        FlatIndex(normal(3, 5)).nearest(normal(3, 4))


def test_no_queries_give_no_distances():
    distances, indices = FlatIndex(normal(3, 4)).nearest(normal(0, 4))
    assert len(distances) == len(indices) == 0


@given(st.integers(0, 50), st.integers(1, 12))
def test_tiles_cover_a_range_once_and_in_order(length, size):
    parts = list(tiles(length, size))
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    assert all(part.stop - part.start <= size for part in parts)
