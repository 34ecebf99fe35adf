"""Greedy selection against the plain farthest-first loop, and the laws of covering."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.models import greedy_coreset_selection, random_coreset_selection
from src.models.coreset import blocks, duplicates
from src.models.coreset import selection as coreset
from src.models.coreset.selection import farthest_first


def start_of(rows, seed):
    """The row farthest along the seed's direction; the first of equals."""
    along = np.random.default_rng(seed).standard_normal(rows.shape[1])
    return int((np.asarray(rows, np.float64) * along).sum(1).argmax())


def plain_farthest_first(rows, target, seed=42):
    """Farthest-first in float64, one pick at a time: indices, and the radius after each pick."""
    rows = np.asarray(rows, np.float64)
    picks = [start_of(rows, seed)]
    distances = ((rows - rows[picks[0]]) ** 2).sum(1)
    radii = [distances.max() ** 0.5]
    return plain_steps(rows, target, picks, distances, radii)


def plain_going_on(rows, target, bank):
    """The same from the rows of a bank on."""
    rows, bank = np.asarray(rows, np.float64), np.asarray(bank, np.float64)
    distances = np.min([((rows - row) ** 2).sum(1) for row in bank], axis=0)
    return plain_steps(rows, target, [], distances, [distances.max() ** 0.5])


def plain_steps(rows, target, picks, distances, radii):
    while len(picks) < target and radii[-1] > 0:
        picks.append(int(distances.argmax()))  # the first of equals
        distances = np.minimum(distances, ((rows - rows[picks[-1]]) ** 2).sum(1))
        radii.append(distances.max() ** 0.5)
    return np.array(picks), np.array(radii)


def generic(rng, n=300, d=12):
    return rng.normal(size=(n, d))


def clustered(rng, n=300, d=12):
    return 100 * rng.normal(size=(7, d))[rng.integers(7, size=n)] + 0.01 * rng.normal(size=(n, d))


def duplicated(rng, n=300, d=12):
    return rng.normal(size=(n // 5, d))[rng.integers(n // 5, size=n)]


def lattice(rng, n=300, d=3):
    return rng.integers(-3, 4, size=(n, d)).astype(float)


KINDS = {f.__name__: f for f in (generic, clustered, duplicated, lattice)}


def distinct(rows) -> int:
    return len(np.unique(np.asarray(rows), axis=0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("as_given", [np.asarray, torch.as_tensor])
def test_picks_and_radii_are_those_of_the_plain_loop(kind, dtype, as_given, random_state):
    rows = KINDS[kind](random_state).astype(dtype)
    target = distinct(rows) - 1
    chosen = farthest_first(as_given(rows), target, seed=3)
    picks, radii = plain_farthest_first(rows, target, seed=3)
    np.testing.assert_array_equal(chosen.indices, picks)
    np.testing.assert_allclose(chosen.radii, radii, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["generic", "duplicated"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("working_set", [None, 16])
def test_a_selection_goes_on_from_a_bank_as_the_plain_loop_does(
    kind, dtype, working_set, random_state
):
    rows = KINDS[kind](random_state).astype(dtype)
    bank = np.concatenate([rows[::17], random_state.normal(size=(5, rows.shape[1]))]).astype(dtype)
    chosen = farthest_first(rows, 40, existing=bank, working_set=working_set)
    picks, radii = plain_going_on(rows, 40, bank)
    np.testing.assert_array_equal(chosen.indices, picks)
    np.testing.assert_allclose([chosen.initial_radius, *chosen.radii], radii, rtol=3e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_distances_to_a_bank_stand_in_for_it(dtype, random_state):
    rows = duplicated(random_state).astype(dtype)
    bank = np.concatenate([rows[::17], random_state.normal(size=(5, rows.shape[1]))]).astype(dtype)
    gaps = rows.astype(np.float64)[:, None] - bank.astype(np.float64)
    squared = np.square(gaps).sum(2).min(1)
    known = farthest_first(rows, 40, squared_distances=squared, working_set=16)
    found = farthest_first(rows, 40, existing=bank, working_set=16)
    np.testing.assert_array_equal(known.indices, found.indices)
    expected = [found.initial_radius, *found.radii]
    np.testing.assert_allclose([known.initial_radius, *known.radii], expected, 1e-5)
    assert known.distinct == found.distinct


@given(st.integers(0, 99), st.sampled_from(sorted(KINDS)), st.integers(1, 60))
def test_radii_of_a_selection_that_goes_on_are_the_measured_ones(seed, kind, target):
    rows = KINDS[kind](np.random.default_rng(seed), n=100).astype(np.float32)
    bank = rows[:9]
    chosen = farthest_first(rows, target, existing=bank, working_set=8)
    there = np.concatenate([bank, rows[chosen.indices]]).astype(np.float64)
    gaps = np.linalg.norm(rows.astype(np.float64)[:, None] - there, axis=2)  # [N, 9 + k]
    measured = np.minimum.accumulate(gaps, axis=1).max(0)[len(bank) - 1 :]
    radii = [chosen.initial_radius, *chosen.radii]
    np.testing.assert_allclose(radii, measured, rtol=1e-4, atol=3e-4 * gaps.max())


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40))
def test_going_on_from_the_first_picks_gives_the_next_ones(seed, first, more):
    rows = generic(np.random.default_rng(seed), 120, 6)
    whole = farthest_first(rows, first + more)
    rest = farthest_first(rows, more, existing=rows[whole.indices[:first]])
    np.testing.assert_array_equal(rest.indices, whole.indices[first:])


def test_a_bank_that_has_every_row_leaves_nothing_to_pick(random_state):
    rows = generic(random_state)
    rest = farthest_first(rows, 10, existing=rows)
    assert (len(rest.indices), rest.initial_radius) == (0, 0)


@given(
    st.integers(1, 90),
    st.integers(1, 80),
    st.sampled_from(["generic", "duplicated"]),
    st.sampled_from([np.float32, np.float16]),
    st.integers(0, 9),
)
def test_the_working_set_changes_the_time_and_never_the_picks(size, target, kind, dtype, seed):
    rows = KINDS[kind](np.random.default_rng(seed), n=120).astype(dtype)
    target = min(target, distinct(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "IN_CACHE", 0)
        chosen = farthest_first(rows, target, seed, working_set=size)
    picks, radii = plain_farthest_first(rows, target, seed)
    np.testing.assert_array_equal(chosen.indices, picks)
    np.testing.assert_allclose(chosen.radii, radii, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([np.float64, np.float32, np.float16]))
def test_of_equally_far_rows_the_first_is_picked(seed, d, dtype):
    rows = np.random.default_rng(seed).integers(0, 3, size=(60, d)).astype(dtype)
    chosen = farthest_first(rows, distinct(rows), seed, working_set=4)
    np.testing.assert_array_equal(chosen.indices, plain_farthest_first(rows, 60, seed)[0])


@pytest.mark.parametrize("working_set", [None, 16])
@pytest.mark.parametrize("kind", ["generic", "duplicated"])
def test_single_precision_picks_as_double_on_generic_rows(
    kind, working_set, random_state, monkeypatch
):
    monkeypatch.setattr(coreset, "IN_CACHE", 0)
    monkeypatch.setattr(blocks, "UPDATE_BYTES", 3200)
    rows = (5 + KINDS[kind](random_state, n=500, d=24)).astype(np.float32)
    target = distinct(rows) // 2
    chosen = farthest_first(rows, target, working_set=working_set)
    picks, radii = plain_farthest_first(rows, target)
    np.testing.assert_array_equal(chosen.indices, picks)
    np.testing.assert_allclose(chosen.radii, radii, rtol=3e-6)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("kind", ["generic", "duplicated"])
def test_shards_on_several_devices_pick_as_one_does(kind, count, random_state, monkeypatch):
    monkeypatch.setattr(coreset, "IN_CACHE", 0)
    rows = KINDS[kind](random_state, n=500, d=24).astype(np.float32)
    target = distinct(rows) // 2
    one = farthest_first(rows, target, working_set=16)
    several = farthest_first(rows, target, working_set=16, devices=["cpu"] * count)
    np.testing.assert_array_equal(several.indices, one.indices)
    np.testing.assert_allclose(several.radii, one.radii, rtol=1e-6)


def test_a_memory_mapped_file_is_selected_from_where_it_lies(tmp_path, random_state, monkeypatch):
    monkeypatch.setattr(coreset, "IN_CACHE", 0)
    rows = generic(random_state, n=500, d=24).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = farthest_first(mapped, 60, working_set=16)
    np.testing.assert_array_equal(chosen.indices, plain_farthest_first(rows, 60)[0])


@given(st.integers(0, 99), st.sampled_from([-100, -30, 30, 100]), st.integers(2, 40))
def test_scale_changes_no_pick(seed, power, target):
    rows = generic(np.random.default_rng(seed), n=50, d=4)
    expected = farthest_first(rows, target, seed)
    scaled = farthest_first(np.ldexp(rows, power), target, seed)
    np.testing.assert_array_equal(scaled.indices, expected.indices)


@pytest.mark.parametrize("in_cache", [0, coreset.IN_CACHE])
@given(seed=st.integers(0, 99), kind=st.sampled_from(sorted(KINDS)), target=st.integers(2, 60))
def test_reported_radii_never_grow_and_are_the_measured_ones(in_cache, seed, kind, target):
    rows = KINDS[kind](np.random.default_rng(seed), n=100).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "IN_CACHE", in_cache)
        chosen = farthest_first(rows, min(target, distinct(rows)), seed, working_set=8)
    wide = rows.astype(np.float64)
    gaps = np.linalg.norm(wide[:, None] - wide[chosen.indices], axis=2)  # [N, k]
    measured = np.minimum.accumulate(gaps, axis=1).max(0)
    assert (np.diff(chosen.radii) <= 0).all()
    np.testing.assert_allclose(chosen.radii, measured, rtol=1e-4, atol=3e-4 * gaps.max())


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40))
def test_a_prefix_is_the_smaller_coreset(seed, one, other):
    rows = generic(np.random.default_rng(seed), n=60, d=4)
    small, large = sorted((one, other))
    long = greedy_coreset_selection(rows, large, seed)
    np.testing.assert_array_equal(greedy_coreset_selection(rows, small, seed), long[:small])


@pytest.mark.parametrize("select", [greedy_coreset_selection, random_coreset_selection])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_coreset_is_distinct_rows_of_the_input_in_its_dtype(select, dtype, random_state):
    rows = torch.as_tensor(generic(random_state, n=80, d=6)).to(dtype)
    picked = select(rows, 30)
    assert picked.dtype == dtype
    assert picked.shape == (30, 6)
    assert distinct(picked.double()) == 30
    assert {tuple(row) for row in picked.tolist()} <= {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize("select", [greedy_coreset_selection, random_coreset_selection])
def test_arrays_give_arrays(select, random_state):
    picked = select(generic(random_state).astype(np.float16), 5)
    assert isinstance(picked, np.ndarray)
    assert picked.dtype == np.float16


def test_the_seed_fixes_the_start_row_which_is_kept(random_state):
    rows = generic(random_state)
    starts = [farthest_first(rows, 4, seed).indices[0] for seed in range(20)]
    assert starts == [start_of(rows, seed) for seed in range(20)]
    assert len(set(starts)) > 5


@given(st.integers(0, 99), st.sampled_from(["generic", "duplicated"]), st.booleans())
def test_the_order_of_the_rows_changes_no_row_that_is_picked(seed, kind, in_cache):
    rng = np.random.default_rng(seed)
    rows = KINDS[kind](rng, n=120).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "IN_CACHE", coreset.IN_CACHE if in_cache else 0)
        picked, again = (greedy_coreset_selection(r, 20) for r in (rows, rng.permutation(rows)))
    np.testing.assert_array_equal(picked, again)


def test_of_rows_that_are_all_copies_the_first_is_kept():
    with pytest.warns(UserWarning, match="only 1 of 50"):
        assert farthest_first(np.ones((50, 3), np.float32), 2).indices.tolist() == [0]


@pytest.mark.parametrize("in_cache", [True, False])
@given(st.integers(0, 99), st.floats(0.0, 40.0), st.booleans())
def test_no_row_is_picked_that_is_closer_than_asked(in_cache, seed, least, going_on):
    rows = generic(np.random.default_rng(seed), 150, 5).astype(np.float32) * 9
    bank = rows[:7] if going_on else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "IN_CACHE", coreset.IN_CACHE if in_cache else 0)
        whole = farthest_first(rows, 90, existing=bank, working_set=16)
        part = farthest_first(rows, 90, existing=bank, working_set=16, min_distance=least)
    count = int((np.concatenate([[whole.initial_radius], whole.radii[:-1]]) >= least).sum())
    np.testing.assert_array_equal(part.indices, whole.indices[:count])
    # the last one is measured, the others are the next picks' distances: they round differently
    np.testing.assert_allclose(part.radii, whole.radii[:count], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_fewer_distinct_rows_than_asked_gives_all_of_them_and_says_so(dtype, random_state):
    rows = random_state.integers(0, 4, size=(2000, 4)).astype(dtype)  # at most 256 distinct
    there = distinct(rows)
    with pytest.warns(UserWarning, match=f"only {there} of 2000 rows are distinct"):
        picked = greedy_coreset_selection(rows, 1000)
    assert len(picked) == distinct(picked) == there


def test_rows_are_told_apart_though_their_keys_collide(random_state, monkeypatch):
    monkeypatch.setattr(duplicates, "_row_hashes", lambda rows: (rows.sum(1) % 3).long())
    rows = random_state.integers(0, 4, size=(300, 3)).astype(np.float32)
    chosen = farthest_first(rows, distinct(rows))
    assert chosen.distinct == distinct(rows) == len(chosen.indices)


def test_minus_zero_equals_zero():
    rows = np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, -0.0], [2.0, 0.0]], np.float32)
    with pytest.warns(UserWarning, match="only 2 of 4"):
        assert len(greedy_coreset_selection(rows, 4)) == 2


def test_asking_for_all_rows_gives_all_without_a_warning(random_state):
    rows = generic(random_state, n=70)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = farthest_first(rows, 70)
    assert sorted(chosen.indices) == list(range(70))
    assert chosen.radii[-1] == 0


def test_the_input_may_be_read_only_strided_or_tracked_by_autograd(random_state):
    rows = generic(random_state).astype(np.float32)
    expected = farthest_first(rows, 20).indices
    frozen = rows.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given_rows in (frozen, np.asfortranarray(rows), rows[::-1].copy()[::-1]):
            np.testing.assert_array_equal(farthest_first(given_rows, 20).indices, expected)
        tracked = torch.as_tensor(rows).requires_grad_()
        np.testing.assert_array_equal(farthest_first(tracked, 20).indices, expected)


def test_selection_leaves_its_input_as_it_was(random_state):
    rows = generic(random_state).astype(np.float32)
    before = rows.copy()
    greedy_coreset_selection(rows, 20)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_with_their_count(bad, random_state):
    rows = generic(random_state, n=40)
    rows[3, 1] = rows[17, 0] = rows[17, 2] = bad
    with pytest.raises(ValueError, match="2 of 40 rows hold NaN or infinite"):
        greedy_coreset_selection(rows, 4)


@pytest.mark.parametrize("select", [greedy_coreset_selection, random_coreset_selection])
@pytest.mark.parametrize("target", [0, -1, 41])
def test_target_sizes_out_of_range_are_refused(select, target, random_state):
    with pytest.raises(ValueError, match=f"target_size is {target}: it must be 1 to 40"):
        select(generic(random_state, n=40), target)


@pytest.mark.parametrize("select", [greedy_coreset_selection, random_coreset_selection])
@pytest.mark.parametrize("rows", [np.zeros(5), np.zeros((2, 3, 4)), np.zeros((4, 2), int)])
def test_what_is_no_matrix_of_floats_is_refused(select, rows):
    with pytest.raises(ValueError, match="features must be"):
        select(rows, 1)


def test_progress_ends_at_the_target(random_state):
    seen = []
    farthest_first(generic(random_state), 200, progress=lambda *at: seen.append(at), working_set=32)
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_random_selection_is_drawn_by_its_seed(random_state):
    rows = generic(random_state)
    np.testing.assert_array_equal(
        random_coreset_selection(rows, 9, 1), random_coreset_selection(rows, 9, 1)
    )
    assert (random_coreset_selection(rows, 9, 1) != random_coreset_selection(rows, 9, 2)).any()


def test_greedy_covers_better_than_random(random_state):
    rows = clustered(random_state)

    def radius(bank):
        return np.linalg.norm(rows[:, None] - bank, axis=2).min(1).max()

    greedy, drawn = greedy_coreset_selection(rows, 7), random_coreset_selection(rows, 7)
    assert radius(greedy) < 1 < radius(drawn)
