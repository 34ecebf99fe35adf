"""What a client sends covers what it holds, and what it measures is true."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.data import open_dataset, write_synthetic
from src.federated.candidates import (
    SHARED,
    Known,
    by_bank,
    by_object,
    calibrate_with,
    code_bank,
    find_candidates,
    pooled_threshold,
    score_with,
)
from src.federated.codec import Coding
from src.federated.types import Calibration, Holding
from src.models.coreset.streaming import BoundedRows, Selection

PATCHES = 64  # an image's, at 64 pixels


@dataclass
class Patches:
    """In place of PatchCore: patches that are there already."""

    rows: np.ndarray  # [N, D] float32
    coreset_percentage: float

    def select(
        self, dataset, fraction: float, *, existing=None, squared_distances=None, progress=None
    ) -> Selection:
        assert 0 < fraction <= 1
        held = BoundedRows(2**20, seed=0)
        held.add(torch.from_numpy(self.rows))
        target = max(1, round(fraction * held.seen))
        return held.select(target, progress, existing, squared_distances)


def send(model, images, reach: float, encoding: str = "float32", components: int = 0):
    """All that a client finds, as it is sent."""
    found = find_candidates(model, images, reach)
    coded = code_bank(found, len(found.rows), Coding(encoding, components), found.own().radius)
    return found, coded.bank


def patches_of(model, images) -> np.ndarray:  # [N, D] float32
    return np.concatenate([grids.features.flatten(0, 2).numpy() for grids in model.embed(images)])


def farthest(patches: np.ndarray, bank: np.ndarray) -> float:
    """Largest distance of a patch to the bank, by differences, in float64."""
    rows = bank.astype(float)
    return max(np.linalg.norm(rows - patch, axis=1).min() for patch in patches.astype(float))


def test_first_rows_are_the_bank_the_client_would_keep_by_itself(small_model, images) -> None:
    model, mine = small_model(coreset_percentage=0.1), images(3)
    found = find_candidates(model, mine, reach=2.0)
    assert found.holding == Holding(images=3, patches=3 * PATCHES, share=19)  # a tenth of 192
    assert len(found.rows) == 38
    np.testing.assert_array_equal(found.own().rows, model.fit(mine).get_memory_bank())


@pytest.mark.parametrize(
    ("percentage", "reach", "share", "rows"),
    [
        (0.1, 1.0, 13, 13),  # 12.8 of 128
        (0.1, 2.0, 13, 26),  # 25.6
        (0.1, 4.0, 13, 51),  # 51.2
        (0.4, 4.0, 51, 128),  # 204.8, but all there are
        (1.0, 1.0, 128, 128),
        (0.001, 1.0, 1, 1),  # 0.128: one row at least
    ],
)
def test_rows_found_are_as_many_as_wanted_and_never_more_than_all(
    percentage: float, reach: float, share: int, rows: int
) -> None:
    mine = np.random.default_rng(0).normal(size=(128, 4)).astype(np.float32)
    found = find_candidates(Patches(mine, percentage), [0, 1], reach)
    assert (found.holding.share, len(found.rows), found.holding.patches) == (share, rows, 128)


def test_own_bank_is_no_more_than_the_distinct_patches_there_are() -> None:
    mine = np.tile(np.eye(3, dtype=np.float32), (10, 1))
    with pytest.warns(UserWarning, match="only 3 of 30 rows are distinct"):
        found = find_candidates(Patches(mine, 0.5), [0])
    assert (len(found.own().rows), found.own().radius) == (3, 0.0)


CODINGS = [("float32", 0), ("float16", 0), ("int8", 0), ("float16", 3), ("int8", 2), ("int8", 9)]


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(CODINGS))
def test_every_patch_lies_within_the_radii_coding_included(seed, scale, coding) -> None:
    rng = np.random.default_rng(seed)
    mine = rng.normal(rng.uniform(-2, 2), scale, (60, 5)).astype(np.float32)
    found, bank = send(Patches(mine, 0.2), [0], 2.0, *coding)
    assert bank.features.dtype == ("float32" if coding[0] == "float32" else "float16")
    assert farthest(mine, bank.features) <= bank.radius * (1 + 1e-5)
    assert farthest(mine, found.own().rows) <= bank.share_radius * (1 + 1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_later_rows_cover_what_a_bank_does_not(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    mine, there = (rng.normal(size=(n, 4)).astype(np.float32) for n in (80, 7))
    found = find_candidates(Patches(mine, 0.25), [0], 1.0, covered=there)
    survey = found.survey()
    assert (survey.counts[0], survey.counts[-1]) == (0, 20)
    assert survey.radii[0] == pytest.approx(farthest(mine, there), rel=1e-5)
    assert (np.diff(survey.radii) <= 0).all()
    both = np.concatenate([there, found.rows[:rows]])
    assert found.radius(rows) == pytest.approx(farthest(mine, both), rel=1e-4, abs=1e-5)


def test_all_patches_in_half_precision_are_a_rounding_away_not_at_zero() -> None:
    mine = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    _, bank = send(Patches(mine, 1.0), [0], 1.0, "float16")
    assert 0 < farthest(mine, bank.features) <= bank.radius * (1 + 1e-5) < 1e-2


@pytest.mark.parametrize("coding", [("float16", 0), ("int8", 0), ("float16", 1), ("int8", 1)])
def test_features_beyond_half_precision_are_refused_with_what_to_set(coding) -> None:
    mine = np.full((2, 3), 2e5, np.float32)
    mine[1] = 0
    with pytest.raises(ValueError, match=re.escape("set merge.encoding to float32")):
        send(Patches(mine, 1.0), [0], 1.0, *coding)
    assert send(Patches(mine, 1.0), [0], 1.0, "float32")[1].radius == 0


def test_calibration_scores_an_image_as_if_none_of_its_own_rows_were_in_the_bank(
    model, images
) -> None:
    mine = images(4)
    own = [patches_of(model, [image]) for image in mine]
    bank = np.concatenate([rows[::7] for rows in own])
    calibration = calibrate_with(model, bank, mine)
    expected = []
    for i in range(len(mine)):
        model.set_memory_bank(np.concatenate([r[::7] for j, r in enumerate(own) if j != i]))
        [prediction] = model.score([mine[i]])
        expected.append(prediction.score)
    assert min(expected) > 0
    assert calibration.images == len(mine)
    np.testing.assert_allclose(calibration.quantiles[[0, -1]], [min(expected), max(expected)])
    np.testing.assert_allclose(calibration.quantiles[50], np.median(expected))


@pytest.mark.parametrize("coding", [("int8", 0), ("int8", 40), ("float16", 40)])
def test_calibration_knows_an_images_own_rows_when_coding_has_changed_them(
    small_model, images, coding
) -> None:
    model, mine = small_model(coreset_percentage=0.2), images(4)
    found, bank = send(model, mine, 1.0, *coding)
    judged = calibrate_with(model, bank.features, mine, Known(found.rows, bank.features))
    of_image = [{row.tobytes() for row in patches_of(model, [image])} for image in mine]
    expected = []
    for i, own in enumerate(of_image):
        others = [j for j, row in enumerate(found.rows) if row.tobytes() not in own]
        model.set_memory_bank(bank.features[others])
        [prediction] = model.score([mine[i]])
        expected.append(prediction.score)
    np.testing.assert_allclose(judged.quantiles[[0, -1]], [min(expected), max(expected)], rtol=1e-5)
    blind = calibrate_with(model, bank.features, mine)
    assert blind.quantiles[0] < judged.quantiles[0]  # an image that knows itself scores too low


def test_calibration_measures_the_covering_radius(model, images) -> None:
    mine = images(3)
    bank = patches_of(model, images(2, seed=1))[::5]
    measured = calibrate_with(model, bank, mine).radius
    assert measured == pytest.approx(farthest(patches_of(model, mine), bank), rel=1e-5)


def test_image_that_fills_the_bank_alone_cannot_be_judged_and_does_not_count(model, images) -> None:
    [only] = images(1)
    calibration = calibrate_with(model, patches_of(model, [only]), [only])
    assert calibration.images == 0
    with pytest.raises(ValueError, match="scores of normal images"):
        pooled_threshold({0: calibration}, 0.01)
    judged = Calibration(np.arange(101.0), 5, 1.0)
    both = {0: calibration, 1: judged}
    assert pooled_threshold(both, 0.1) == pooled_threshold({1: judged}, 0.1)


# Client 0's image scores are spread evenly over 0 to 100, client 1's over 1000 to 1100. Client 1
# has three times the images, so client 0's quantiles weigh 1/404 each, and 1/4 together; client
# 1's weigh 3/404 each.
@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.8, 80),  # the first 20 %: 81 × 1/404 = 0.2005, reached at client 0's 81st, 80
        (0.5, 1033),  # 1/4 + 34 × 3/404 = 0.5025, reached at client 1's 34th
        (0.1, 1087),  # 1/4 + 88 × 3/404 = 0.9035, reached at its 88th
        (0.001, 1100),  # 1/4 + 101 × 3/404 = 1, reached at its last
    ],
)
def test_clients_weigh_by_their_images_in_the_threshold(rate: float, threshold: float) -> None:
    spread = np.arange(101.0)
    calibrations = {0: Calibration(spread, 10, 1.0), 1: Calibration(1000 + spread, 30, 1.0)}
    assert pooled_threshold(calibrations, rate) == threshold
    assert pooled_threshold(dict(reversed(calibrations.items())), rate) == threshold


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_about_the_set_share_of_all_clients_normal_images_lies_above(seed, rate) -> None:
    rng = np.random.default_rng(seed)
    scores = [rng.gamma(4, rng.uniform(1, 3), int(rng.integers(100, 400))) for _ in range(3)]
    calibrations = {
        i: Calibration(np.quantile(s, np.linspace(0, 1, 101)), len(s), 1.0)
        for i, s in enumerate(scores)
    }
    above = (np.concatenate(scores) > pooled_threshold(calibrations, rate)).mean()
    assert above == pytest.approx(rate, abs=0.02)


@pytest.fixture(scope="module")
def two_objects(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts") / "set"
    write_synthetic(root, train=2, good=2, defects=2, size=(64, 64))
    return open_dataset("synthetic", root, "all", "test")


def test_each_object_has_a_bank_or_all_share_one(two_objects) -> None:
    apart, together = by_bank(two_objects, "object"), by_bank(two_objects, "shared")
    assert list(apart) == ["bracket", "connector"]
    assert {sample.object for sample in apart["bracket"].samples} == {"bracket"}
    assert list(together) == [SHARED]
    assert len(together[SHARED]) == sum(map(len, apart.values())) == 8


@pytest.mark.parametrize("scope", ["object", "shared"])
def test_no_images_make_no_bank(two_objects, scope: str) -> None:
    assert by_bank(two_objects.select([]), scope) == {}


def test_scores_belong_to_the_samples_and_the_bank_given(model, images, two_objects) -> None:
    bank = patches_of(model, images(2))[::3]
    test = by_object(two_objects)["connector"]
    scored = score_with(model, bank, test)
    assert scored.keys == tuple(sample.key for sample in test.samples)
    one = score_with(model, bank, test.select([2]))
    assert one.predictions[0].score == scored.by_key()[test.samples[2].key].score
