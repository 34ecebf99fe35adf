"""A client's part in exact rounds: distances are true, and what is offered is the farthest."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.federated.exact import Standing, farthest_patches, stand_to
from src.models.extraction import PatchGrids

seeds = st.integers(0, 2**32 - 1)


class Images(list):
    """Patches of each image: [h, w, D] half precision."""

    def select(self, indices) -> "Images":
        return Images(self[i] for i in indices)


class Backbone:
    @staticmethod
    def get_feature_dim() -> int:
        return 4


@dataclass
class Given:
    """In place of PatchCore: images are patches already."""

    coreset_percentage: float = 0.1
    device: str = "cpu"
    backbone: type = Backbone

    def embed(self, images, progress=None):
        for image in images:
            yield PatchGrids(torch.from_numpy(image)[None], [(8, 8)])


def drawn(seed: int) -> tuple[Images, np.ndarray]:
    """Some images of unlike size, and rows of a bank, some of which are patches of theirs."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 5, (int(rng.integers(1, 6)), 2))
    images = Images(rng.normal(size=(*shape, 4)).astype(np.float16) for shape in shapes)
    patches = flat(images)
    own = patches[rng.integers(len(patches), size=2)]
    return images, np.concatenate([own, rng.normal(size=(5, 4)).astype(np.float16)])


def flat(images: Images) -> np.ndarray:
    return np.concatenate([image.reshape(-1, 4) for image in images])


def brute_force(patches: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance of each patch to the bank, in float64: [P]."""
    return np.linalg.norm(patches.astype(float)[:, None] - bank.astype(float), axis=2).min(1)


@given(seeds, st.integers(1, 6))
def test_distances_are_those_to_the_whole_bank_however_it_came(seed: int, first: int) -> None:
    images, bank = drawn(seed)
    standing = stand_to(Given(), images, bank[:first])
    standing = stand_to(Given(), images, bank[first:], standing)
    np.testing.assert_allclose(
        np.sqrt(standing.squared), brute_force(flat(images), bank), rtol=1e-5
    )
    whole = stand_to(Given(), images, bank)
    np.testing.assert_array_equal(standing.squared, whole.squared)
    assert stand_to(Given(), images, bank[:0], standing) is standing


@given(seeds, st.integers(0, 30), st.integers(0, 30))
def test_what_is_offered_is_the_farthest_that_the_server_has_not(
    seed: int, most: int, count: int
) -> None:
    images, bank = drawn(seed)
    standing = stand_to(Given(), images, bank)
    patches, distances = flat(images), brute_force(flat(images), bank)
    for _ in range(2):  # the second time without what was sent the first time
        found, standing = farthest_patches(Given(), images, standing, most)
        left = np.setdiff1d(np.arange(len(patches)), standing.sent)
        left = left[distances[left] > 0]
        assert len(found.rows) == min(most, len(left))
        np.testing.assert_array_equal(found.rows, patches[standing.offered])
        assert set(standing.offered) <= set(left)
        for n in range(len(found.rows) + 1):
            rest = np.setdiff1d(left, standing.offered[:n])
            assert found.radius(n) == pytest.approx(distances[rest].max(initial=0.0), rel=1e-5)
        assert (found.holding.images, found.holding.patches) == (len(images), len(patches))
        standing = standing.settled(min(count, len(found.rows)))


def test_a_client_without_a_patch_left_offers_nothing() -> None:
    images, _ = drawn(0)
    standing = stand_to(Given(), images, flat(images))
    found, standing = farthest_patches(Given(), images, standing, 9)
    assert (found.rows.shape, found.before, len(standing.offered)) == ((0, 4), 0.0, 0)
    assert isinstance(standing, Standing)
