"""The rows a client sends cover its patches, and the radii it reports are true."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.federated.candidates import client_stats, encode_bank, find_candidates
from src.federated.types import ClientStats
from src.models.coreset.streaming import BoundedRows, Selection
from tests.federated.plain import covering_radius

PATCHES = 64  # of an image of 64 pixels


@dataclass
class FixedPatches:
    """Stands in for PatchCore: the patches are given."""

    rows: np.ndarray  # [N, D] float32
    coreset_percentage: float

    def select(
        self, dataset, fraction: float, *, existing=None, squared_distances=None, progress=None
    ) -> Selection:
        assert 0 < fraction <= 1
        kept = BoundedRows(2**20, seed=0)
        kept.add(torch.from_numpy(self.rows))
        target = max(1, round(fraction * kept.seen))
        return kept.select(target, progress, existing, squared_distances)


def encode_all(model, images, reach: float, encoding: str = "float32"):
    """A client's candidates, and all of them as the server decodes them."""
    candidates = find_candidates(model, images, reach)
    share_radius = candidates.local_bank().radius
    encoded = encode_bank(candidates, len(candidates.rows), encoding, share_radius)
    return candidates, encoded.bank


def test_first_rows_are_the_bank_that_the_client_alone_would_fit(small_model, images) -> None:
    model, train = small_model(coreset_percentage=0.1), images(3)
    candidates = find_candidates(model, train, reach=2.0)
    assert candidates.stats == ClientStats(images=3, patches=3 * PATCHES, share=19)  # 0.1 * 192
    assert candidates.stats == client_stats(model, train)
    assert len(candidates.rows) == 38
    own = candidates.local_bank().features
    np.testing.assert_array_equal(own, model.fit(train).get_memory_bank())


@pytest.mark.parametrize(
    ("percentage", "reach", "share", "rows"),
    [
        (0.1, 1.0, 13, 13),  # 12.8 of 128
        (0.1, 2.0, 13, 26),  # 25.6
        (0.1, 4.0, 13, 51),  # 51.2
        (0.4, 4.0, 51, 128),  # 204.8, but there are no more
        (1.0, 1.0, 128, 128),
        (0.001, 1.0, 1, 1),  # 0.128, but one row at least
    ],
)
def test_candidates_are_a_multiple_of_the_share_and_never_more_than_all_patches(
    percentage: float, reach: float, share: int, rows: int
) -> None:
    patches = np.random.default_rng(0).normal(size=(128, 4)).astype(np.float32)
    candidates = find_candidates(FixedPatches(patches, percentage), [0, 1], reach)
    stats = candidates.stats
    assert (stats.share, len(candidates.rows), stats.patches) == (share, rows, 128)


def test_a_local_bank_has_no_more_rows_than_there_are_distinct_patches() -> None:
    patches = np.tile(np.eye(3, dtype=np.float32), (10, 1))
    with pytest.warns(UserWarning, match="only 3 of 30 rows are distinct"):
        candidates = find_candidates(FixedPatches(patches, 0.5), [0])
    local = candidates.local_bank()
    assert (len(local.features), local.radius) == (3, 0.0)


@given(
    st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(["float32", "float16", "int8"])
)
def test_every_patch_lies_within_the_radii_whatever_the_encoding(seed, scale, encoding) -> None:
    rng = np.random.default_rng(seed)
    patches = rng.normal(rng.uniform(-2, 2), scale, (60, 5)).astype(np.float32)
    candidates, bank = encode_all(FixedPatches(patches, 0.2), [0], 2.0, encoding)
    assert bank.features.dtype == ("float32" if encoding == "float32" else "float16")
    assert covering_radius(patches, bank.features) <= bank.radius * (1 + 1e-5)
    local = candidates.local_bank().features
    assert covering_radius(patches, local) <= bank.share_radius * (1 + 1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_rows_beside_a_bank_cover_what_it_does_not(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    patches, bank = (rng.normal(size=(n, 4)).astype(np.float32) for n in (80, 7))
    candidates = find_candidates(FixedPatches(patches, 0.25), [0], 1.0, covered=bank)
    curve = candidates.curve()
    assert (curve.counts[0], curve.counts[-1]) == (0, 20)
    assert curve.radii[0] == pytest.approx(covering_radius(patches, bank), rel=1e-5)
    assert (np.diff(curve.radii) <= 0).all()
    both = np.concatenate([bank, candidates.rows[:count]])
    radius = covering_radius(patches, both)
    assert candidates.radius(count) == pytest.approx(radius, rel=1e-4, abs=1e-5)


def test_the_radius_of_all_patches_in_half_precision_is_the_rounding() -> None:
    patches = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    _, bank = encode_all(FixedPatches(patches, 1.0), [0], 1.0, "float16")
    assert 0 < covering_radius(patches, bank.features) <= bank.radius * (1 + 1e-5) < 1e-2


@pytest.mark.parametrize("encoding", ["float16", "int8"])
def test_features_beyond_half_precision_are_refused_with_the_setting_to_change(encoding) -> None:
    patches = np.full((2, 3), 2e5, np.float32)
    patches[1] = 0
    with pytest.raises(ValueError, match=re.escape("set merge.encoding to float32")):
        encode_all(FixedPatches(patches, 1.0), [0], 1.0, encoding)
    assert encode_all(FixedPatches(patches, 1.0), [0], 1.0, "float32")[1].radius == 0
