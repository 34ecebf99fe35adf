"""A client's part in exact rounds: its distances are right, and it offers its farthest patches."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.federated.exact import BankDistances, farthest_patches, update_distances
from src.models.extraction import PatchGrids
from tests.federated.plain import distances as plain_distances

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
class PatchesAsImages:
    """Stands in for PatchCore: the images are patches already."""

    coreset_percentage: float = 0.1
    device: str = "cpu"
    backbone: type = Backbone

    def embed(self, images, progress=None):
        for image in images:
            yield PatchGrids(torch.from_numpy(image)[None], [(8, 8)])


MODEL = PatchesAsImages()


def random_case(seed: int) -> tuple[Images, np.ndarray]:
    """Some images of different sizes, and the rows of a bank, some of which are their patches."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(1, 5, (int(rng.integers(1, 6)), 2))
    images = Images(rng.normal(size=(*shape, 4)).astype(np.float16) for shape in shapes)
    patches = flat(images)
    own = patches[rng.integers(len(patches), size=2)]
    return images, np.concatenate([own, rng.normal(size=(5, 4)).astype(np.float16)])


def flat(images: Images) -> np.ndarray:
    return np.concatenate([image.reshape(-1, 4) for image in images])


@given(seeds, st.integers(1, 6))
def test_distances_are_those_to_the_whole_bank_in_however_many_parts_it_came(
    seed: int, first: int
) -> None:
    images, bank = random_case(seed)
    distances = update_distances(MODEL, images, bank[:first])
    distances = update_distances(MODEL, images, bank[first:], distances)
    expected = plain_distances(flat(images), bank)
    np.testing.assert_allclose(np.sqrt(distances.squared), expected, rtol=1e-5)
    at_once = update_distances(MODEL, images, bank)
    np.testing.assert_array_equal(distances.squared, at_once.squared)
    assert update_distances(MODEL, images, bank[:0], distances) is distances


@given(seeds, st.integers(0, 30), st.integers(0, 30))
def test_an_offer_holds_the_farthest_patches_that_the_server_does_not_have(
    seed: int, most: int, count: int
) -> None:
    images, bank = random_case(seed)
    state = update_distances(MODEL, images, bank)
    patches, distances = flat(images), plain_distances(flat(images), bank)
    for _ in range(2):  # the second offer leaves out what was sent after the first
        candidates, state = farthest_patches(MODEL, images, state, most)
        left = np.setdiff1d(np.arange(len(patches)), state.sent)
        left = left[distances[left] > 0]
        assert len(candidates.rows) == min(most, len(left))
        np.testing.assert_array_equal(candidates.rows, patches[state.offered])
        assert set(state.offered) <= set(left)
        for n in range(len(candidates.rows) + 1):
            rest = np.setdiff1d(left, state.offered[:n])
            radius = distances[rest].max(initial=0.0)
            assert candidates.radius(n) == pytest.approx(radius, rel=1e-5)
        assert (candidates.stats.images, candidates.stats.patches) == (len(images), len(patches))
        state = state.after_sending(min(count, len(candidates.rows)))


def test_a_client_all_of_whose_patches_are_in_the_bank_offers_none() -> None:
    images, _ = random_case(0)
    distances = update_distances(MODEL, images, flat(images))
    candidates, distances = farthest_patches(MODEL, images, distances, 9)
    assert (candidates.rows.shape, candidates.initial_radius) == ((0, 4), 0.0)
    assert isinstance(distances, BankDistances)
    assert len(distances.offered) == 0
