"""Image scores and anomaly maps against their formulas, worked slowly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional as tvf

from src.models import MemoryBank
from src.models.extraction import Viewport
from src.models.scoring import (
    _undo_crop,
    anomaly_maps,
    exclude_own_rows,
    image_scores,
    mask_border,
)

D = 5


def filled(rows):
    bank = MemoryBank(rows.shape[1])
    bank.add(rows)
    return bank


def found(bank, patches):
    distances, indices = bank.neighbours(torch.as_tensor(patches))
    return distances[:, 0], indices[:, 0]


def one(*values):
    """A batch of one image."""
    return [torch.as_tensor(value)[None] for value in values]


def score(rows, patches, neighbors):
    bank = filled(rows)
    return float(image_scores(bank, *one(patches, *found(bank, patches)), neighbors))


def slow_score(rows, patches, neighbors):
    """Equation 7 of Roth et al., one distance at a time."""
    gaps = [[float(np.linalg.norm(p - m)) for m in rows.astype(float)] for p in patches]
    q = max(range(len(patches)), key=lambda i: min(gaps[i]))
    nearest = min(range(len(rows)), key=lambda j: gaps[q][j])
    largest = gaps[q][nearest]
    if min(neighbors, len(rows)) <= 1:
        return largest
    to_nearest = [float(np.linalg.norm(rows[nearest].astype(float) - m)) for m in rows]
    support = sorted(range(len(rows)), key=lambda j: to_nearest[j])[:neighbors]
    return (1 - np.exp(largest) / sum(np.exp(gaps[q][j]) for j in support)) * largest


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 12), st.integers(0, 999))
def test_the_score_is_equation_7_and_at_most_the_largest_distance(n, p, neighbors, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, D)).astype(np.float32)
    patches = rng.normal(size=(p, D)).astype(np.float32)
    worked = score(rows, patches, neighbors)
    assert worked == pytest.approx(slow_score(rows, patches, neighbors), rel=1e-3, abs=1e-5)
    assert 0 <= worked <= float(found(filled(rows), patches)[0].max())


def test_the_score_by_hand():
    rows = np.array([[0, 0], [3, 0], [50, 0]], np.float32)
    patches = np.array([[0, 1], [0, 4]], np.float32)
    # farthest patch (0, 4): 4 from its nearest row (0, 0), 5 from (3, 0), the row's neighbour
    weight = 1 - np.exp(4) / (np.exp(4) + np.exp(5))
    assert score(rows, patches, 2) == pytest.approx(4 * weight)
    assert score(rows, patches, 1) == 4


def test_great_distances_overflow_nothing(random_state):
    rows = 1e4 * random_state.normal(size=(30, D)).astype(np.float32)
    patches = 1e4 * random_state.normal(size=(4, D)).astype(np.float32)
    assert np.isfinite(score(rows, patches, 9))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("neighbors", [1, 3, 9])
def test_without_its_own_rows_an_image_scores_as_with_a_bank_that_never_had_them(
    dtype, neighbors, random_state
):
    patches = random_state.normal(size=(30, D)).astype(dtype)
    others = random_state.normal(size=(60, D)).astype(dtype)
    bank = filled(np.concatenate([patches[::2], others, patches[1:8:2]]))
    distances, indices, own = exclude_own_rows(bank, *one(patches, *found(bank, patches)))
    assert own[0].nonzero().flatten().tolist() == [*range(15), *range(75, 79)]
    expected, at = found(filled(others), patches)
    torch.testing.assert_close(distances[0], expected)
    assert torch.equal(indices[0] - 15, at)
    left = float(image_scores(bank, *one(patches), distances, indices, neighbors, own))
    assert left == pytest.approx(score(others, patches, neighbors), rel=1e-5)


def test_an_image_that_gave_no_row_loses_none(random_state):
    patches = random_state.normal(size=(30, D)).astype(np.float32)
    bank = filled(random_state.normal(size=(60, D)).astype(np.float32))
    before = found(bank, patches)
    *after, own = exclude_own_rows(bank, *one(patches, *before))
    assert not own.any()
    assert all(torch.equal(a, b[0]) for a, b in zip(before, after, strict=True))


def test_an_image_that_gave_every_row_is_infinitely_far(random_state):
    patches = random_state.normal(size=(30, D)).astype(np.float32)
    bank = filled(patches)
    distances, indices, own = exclude_own_rows(bank, *one(patches, *found(bank, patches)))
    assert torch.isinf(distances).all()
    assert float(image_scores(bank, *one(patches), distances, indices, 9, own)) == np.inf


def test_images_together_score_as_each_alone(random_state):
    bank = filled(random_state.normal(size=(60, D)).astype(np.float32))
    patches = random_state.normal(size=(4, 30, D)).astype(np.float32)
    patches[0, :5], patches[2, 3:9] = bank.features[:5], bank.features[4:10]
    features = torch.as_tensor(patches)
    distances, indices = (
        torch.stack(each) for each in zip(*(found(bank, image) for image in patches), strict=True)
    )
    *judged, own = exclude_own_rows(bank, features, distances, indices)
    scores = image_scores(bank, features, *judged, 9, own)
    for image in range(4):
        alone = [each[image : image + 1] for each in (features, distances, indices)]
        *others, lost = exclude_own_rows(bank, *alone)
        assert torch.equal(lost[0], own[image])
        assert torch.equal(others[1][0], judged[1][image])
        assert float(image_scores(bank, alone[0], *others, 9, lost)) == pytest.approx(
            float(scores[image]), rel=1e-6
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_gpu_scores_as_a_cpu_does(dtype, random_state):
    rows, patches = (
        random_state.normal(size=size).astype(dtype) for size in ((900, D), (8, 64, D))
    )
    patches[:, ::7] = rows[:80].reshape(8, 10, D)
    results = []
    for device in ("cpu", "cuda"):
        bank = MemoryBank(D, device=device)
        bank.add(rows)
        features = torch.as_tensor(patches, device=device)
        distances, indices = (x.view(8, 64) for x in bank.neighbours(features.flatten(0, 1)))
        *judged, own = exclude_own_rows(bank, features, distances, indices)
        scores = image_scores(bank, features, *judged, 9, own)
        maps = anomaly_maps(distances.view(8, 8, 8), (50, 70), Viewport((64, 64), (56, 56)))
        results.append([x.cpu() for x in (distances, *judged, own, scores, maps)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (10, 100), (8, 8)])
def test_a_map_is_the_distances_upsampled_and_smoothed_by_sigma_4(size, random_state):
    grid = torch.as_tensor(random_state.random((-(-size[0] // 8), -(-size[1] // 8))))
    drawn = anomaly_maps(grid[None], size, Viewport(size, size))[0]
    assert (tuple(drawn.shape), drawn.dtype) == (size, torch.float32)
    upsampled = torch.nn.functional.interpolate(grid[None, None], size, mode="bilinear")[0, 0]
    if min(size) > 16:  # the whole kernel fits
        expected = gaussian_filter(upsampled.numpy(), 4.0, mode="mirror", truncate=4.0)
        np.testing.assert_allclose(drawn, expected, rtol=1e-4)
    assert upsampled.min() * 0.9999 <= drawn.min() <= drawn.max() <= upsampled.max() * 1.0001


def test_a_map_of_equal_distances_is_flat():
    drawn = anomaly_maps(torch.full((1, 4, 9), 2.5), (37, 71), Viewport((32, 72), (32, 72)))[0]
    torch.testing.assert_close(drawn, torch.full((37, 71), 2.5))


@pytest.mark.parametrize("crop", [24, 25, 32, 37, 44, 47])
@pytest.mark.parametrize("size", [(32, 48), (33, 49), (40, 40)])
def test_a_crop_is_put_back_where_it_was_taken(size, crop):
    # an image's centre crop, laid back onto the image, falls on the pixels it came from
    image = torch.rand(1, *size)
    cropped = tvf.center_crop(image, [crop, crop])
    back = _undo_crop(cropped[None], size, (crop, crop))[0]
    seen = _undo_crop(torch.ones(1, 1, crop, crop), size, (crop, crop))[0]
    assert torch.equal(back, image * seen)
    assert int(seen.sum()) == min(crop, size[0]) * min(crop, size[1])


def test_a_map_is_zero_where_a_crop_left_the_image_out():
    drawn = anomaly_maps(torch.ones(1, 4, 4), (64, 96), Viewport((64, 96), (32, 32)))[0]
    assert (drawn[16:48, 32:64] > 0.99).all()
    assert drawn.sum() == drawn[16:48, 32:64].sum()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 4))
def test_no_largest_distance_is_found_along_the_border(h: int, w: int, border: int) -> None:
    distances = torch.from_numpy(np.random.default_rng(h * w).random((2, h, w), np.float32))
    rows, columns = min(border, (h - 1) // 2), min(border, (w - 1) // 2)
    middle = distances[:, rows : h - rows, columns : w - columns]
    left = mask_border(distances, border)
    torch.testing.assert_close(left.flatten(1).max(1)[0], middle.flatten(1).max(1)[0])
    assert torch.isfinite(left).sum() == middle.numel()
