"""Whatever an image holds, no released sum moves by more than its sensitivity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.privacy.clipping import clip, normalize_patches
from src.privacy.queries import (
    MeanQuery,
    MomentQuery,
    ScoreQuery,
    SumQuery,
    add_sums,
    clipped_vectors,
    sum_records,
    to_matrix,
    to_vector,
)

DIM = 4
BANK = (np.zeros((1, 1)), np.zeros(1), np.eye(1))
KINDS = (
    "noise",
    "constant",
    "saturated",
    "duplicated",
    "one patch",
    "huge",
    "tiny",
    "zero",
    "mixed",
)
seeds = st.integers(0, 2**32 - 1)


def image(kind: str, seed: int) -> np.ndarray:
    """Patches [P, DIM] such as a broken camera, a broken client or an attacker might give."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (int(rng.integers(2, 30)), DIM))
    match kind:
        case "constant":
            rows[:] = rng.normal()
        case "saturated":
            rows = np.sign(rows) * 65504
        case "duplicated":
            rows[:] = rows[0]
        case "one patch":
            rows = rows[:1]
        case "huge":
            rows *= 1e300
        case "tiny":
            rows *= 1e-300
        case "zero":
            rows[:] = 0
        case "mixed":
            rows *= 10.0 ** rng.integers(-200, 200, rows.shape)
    return rows


@st.composite
def records(draw, least: int = 1) -> list[np.ndarray]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=least, max_size=6))
    return [image(kind, draw(seeds)) for kind in kinds]


@st.composite
def queries(draw) -> SumQuery:
    rng = np.random.default_rng(draw(seeds))
    limit, scale = 10.0 ** rng.uniform(-3, 1, 2)
    centre = rng.normal(0, scale, DIM)
    match draw(st.sampled_from(["means", "moments"])):
        case "means":
            return MeanQuery(centre, limit)
        case _:
            return MomentQuery(centre, limit, scale)


@given(queries(), records(least=2), st.data())
def test_an_image_left_out_or_replaced_moves_no_sum_beyond_its_sensitivity(query, images, data):
    which = data.draw(st.integers(0, len(images) - 2))
    *images, other = images
    there = sum_records(query, images)
    without = sum_records(query, images[:which] + images[which + 1 :])
    replaced = sum_records(query, [*images[:which], other, *images[which + 1 :]])
    for block, one, two, three in zip(query.blocks, there, without, replaced, strict=True):
        rounding = 1e-12 * block.limit * len(images)
        assert np.linalg.norm(one - two) <= block.sensitivity("null") + rounding
        assert np.linalg.norm(one - three) <= block.sensitivity("replace") + rounding


@given(queries(), records(), records())
def test_a_single_contribution_keeps_its_limit_exactly(query, images, others) -> None:
    for one, other in zip(images, others, strict=False):
        given_, changed = clipped_vectors(query, one), clipped_vectors(query, other)
        for block, vector, second in zip(query.blocks, given_, changed, strict=True):
            assert vector.shape == (block.size,)
            assert np.linalg.norm(vector) <= block.limit
            if block.acute:
                assert vector @ second >= -1e-12 * block.limit**2


@given(queries(), records(), seeds)
def test_clients_sums_add_up_to_the_sum_over_all_images(query, images, seed: int) -> None:
    owner = np.random.default_rng(seed).integers(3, size=len(images))
    clients = [[i for i, k in zip(images, owner, strict=True) if k == c] for c in range(3)]
    together = add_sums([sum_records(query, client) for client in clients])
    for part, whole in zip(together, sum_records(query, images), strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-12)


@given(seeds)
def test_a_symmetric_matrix_keeps_its_norm_as_a_vector_and_comes_back(seed: int) -> None:
    square = np.random.default_rng(seed).normal(size=(DIM, DIM))
    square = square + square.T
    assert np.linalg.norm(to_vector(square)) == pytest.approx(np.linalg.norm(square))
    np.testing.assert_allclose(to_matrix(to_vector(square)), square, atol=1e-14)


@given(st.sampled_from(KINDS), seeds, st.floats(1e-6, 1e6))
def test_what_is_within_the_limit_stays_as_it_is(kind: str, seed: int, limit: float) -> None:
    vector = image(kind, seed).ravel()
    kept = clip(vector, limit)
    assert np.linalg.norm(kept) <= limit
    largest = np.abs(vector).max()
    if largest < limit / len(vector):
        np.testing.assert_array_equal(kept, vector)
    elif largest > 0:  # and what is not keeps its direction
        np.testing.assert_allclose(
            kept / max(np.linalg.norm(kept), 1e-300),
            vector / largest / np.linalg.norm(vector / largest),
            atol=1e-9,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(bad: float) -> None:
    patches = image("noise", 0)
    patches[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        clipped_vectors(MeanQuery(np.zeros(DIM), 1.0), patches)
    with pytest.raises(ValueError, match="NaN or infinite"):
        clip(patches, 1.0)


@pytest.mark.parametrize("shape", [(0, DIM), (DIM,), (3, 0), (2, 2, DIM)])
def test_records_without_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[P, D\]"):
        normalize_patches(np.zeros(shape))


def test_a_client_without_images_gives_zeros() -> None:
    assert [part.tolist() for part in sum_records(MeanQuery(np.zeros(2), 1.0), [])] == [[0.0, 0.0]]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9))
def test_scores_count_in_their_bins(scores) -> None:
    query = ScoreQuery(*BANK, 1.0, 16.0, 4)  # bins from 1, 2, 4 and 8 on
    [shares] = query.measure(np.array([score]) for score in scores)
    plain = np.zeros(4)
    for score in scores:
        plain[0 if score < 2 else 1 if score < 4 else 2 if score < 8 else 3] += 1 / len(scores)
    np.testing.assert_allclose(shares, plain)
    assert np.linalg.norm(clipped_vectors(query, [np.array([s]) for s in scores])[0]) <= 1


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        clipped_vectors(ScoreQuery(*BANK, 1.0, 2.0, 3), np.array([np.inf]))
