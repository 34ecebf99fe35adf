"""Features on disk: an image goes through the backbone once, and damage is made good."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from src.models.extraction import PatchGrid
from src.models.feature_cache import FeatureCache


@dataclass(frozen=True)
class Photo:
    path: Path
    label: int = 0


class Photos:
    """A dataset as PatchCore's cache asks for one: items by index, and samples with paths."""

    def __init__(self, paths):
        self.samples = [Photo(path) for path in paths]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        image = tvf.pil_to_tensor(Image.open(self.samples[i].path)).float() / 255
        return image, 0, str(self.samples[i].path)


@pytest.fixture
def photos(tmp_path, images):
    """Five image files of two sizes."""
    paths = []
    for i, image in enumerate([*images(3), *images(2, (48, 80), seed=1)]):
        paths.append(tmp_path / f"{i}.png")
        tvf.to_pil_image(image).save(paths[-1])
    return Photos(paths)


@pytest.fixture
def cached(small_model, tmp_path):
    """cached(**options) is a model with a cache, and a list that grows as images are extracted."""

    def make(**options):
        model = small_model(cache=tmp_path / "cache", **options)
        seen = []
        model.backbone.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
        return model, seen

    return make


def entries(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.safetensors"))


def embedded(model, dataset):
    grids = (grid for batch in model.embed(dataset) for grid in batch)
    return [(grid.features.clone(), grid.image_size) for grid in grids]


def same(ones, others):
    return all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(ones, others, strict=True))


def test_the_second_pass_extracts_nothing_and_gives_the_same(cached, photos):
    model, seen = cached()
    first = embedded(model, photos)
    assert sum(seen) == 5
    again, seen_again = cached()
    assert same(first, embedded(again, photos))
    assert not seen_again


def test_cached_features_are_the_extracted_ones_in_half_precision(cached, small_model, photos):
    plain = embedded(small_model(), photos)
    model, _ = cached()
    assert same([(x.half(), size) for x, size in plain], embedded(model, photos))


def test_only_what_the_cache_lacks_is_extracted_in_order(cached, photos):
    whole = embedded(cached()[0], photos)
    model, seen = cached()
    for i in (1, 3):
        model.cache._entry(photos.samples[i].path).unlink()
    assert same(whole, embedded(model, photos))
    assert sum(seen) == 2


def test_the_same_content_elsewhere_is_known(cached, photos, tmp_path):
    model, seen = cached()
    embedded(model, photos)
    elsewhere = tmp_path / "elsewhere" / "renamed.png"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(photos.samples[2].path.read_bytes())
    seen.clear()
    embedded(model, Photos([elsewhere]))
    assert not seen


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 48},
        {"crop": 32},
        {"layers": ["layer2"]},
        {"patch_size": 1},
        {"pretrained": False},
    ],
)
def test_whatever_shapes_the_features_keys_the_entry(cached, photos, options):
    embedded(cached()[0], photos)
    other, seen = cached(**options)
    embedded(other, photos)
    assert sum(seen) == 5


def test_what_does_not_shape_the_features_does_not(cached, photos):
    embedded(cached()[0], photos)
    other, seen = cached(coreset_percentage=0.5, neighbors=1, seed=3)
    embedded(other, photos)
    assert not seen


def test_a_file_written_anew_under_its_old_name_is_extracted_anew(cached, photos, images):
    model, seen = cached()
    before = embedded(model, photos)
    path = photos.samples[0].path
    tvf.to_pil_image(images(1, seed=9)[0]).save(path)
    os.utime(path, (time.time() + 5, time.time() + 5))
    seen.clear()
    after = embedded(model, photos)
    assert sum(seen) == 1
    assert not torch.equal(before[0][0], after[0][0])
    assert same(before[1:], after[1:])


@pytest.mark.parametrize("length", [0, 7, 300])
def test_a_damaged_entry_is_computed_again(cached, photos, tmp_path, length):
    whole = embedded(cached()[0], photos)
    damaged = entries(tmp_path)[1]
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:length])
    model, seen = cached()
    assert same(whole, embedded(model, photos))
    assert sum(seen) == 1
    assert damaged.read_bytes() == sound


def test_an_entry_that_never_was_is_none(tmp_path, photos):
    cache = FeatureCache(tmp_path / "cache", {})
    assert cache.load(photos.samples[0].path) is None
    assert not cache.has(photos.samples[0].path)


def test_writers_at_once_leave_one_whole_entry_and_no_scraps(tmp_path, photos):
    path = photos.samples[0].path
    grid = PatchGrid(torch.rand(8, 8, 152), (64, 64))

    def write(_):
        cache = FeatureCache(tmp_path / "cache", {"backbone": "any"})
        cache.store(path, grid)
        return cache.load(path)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(write, range(40)))
    assert all(torch.equal(one.features, grid.features.half()) for one in found)
    assert len(entries(tmp_path)) == 1
    assert not list((tmp_path / "cache").rglob(".*"))


def test_a_failed_write_leaves_nothing(tmp_path, photos, monkeypatch):
    write_bytes = Path.write_bytes

    def fill_the_disk(path, content):
        write_bytes(path, content[:20])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    cache = FeatureCache(tmp_path / "cache", {})
    with pytest.raises(OSError, match="no space left"):
        cache.store(photos.samples[0].path, PatchGrid(torch.rand(2, 2, 3), (16, 16)))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_features_beyond_half_precision_are_refused_by_the_image_s_name(tmp_path, photos):
    cache = FeatureCache(tmp_path / "cache", {})
    with pytest.raises(ValueError, match=r"0\.png: patch features are not finite in half"):
        cache.store(photos.samples[0].path, PatchGrid(torch.full((2, 2, 3), 1e6), (16, 16)))


def test_a_model_fitted_through_the_cache_detects_as_one_without(cached, small_model, photos):
    plain = small_model(coreset_percentage=0.5).fit(photos)
    for _ in ("first pass", "second pass"):
        model, _ = cached(coreset_percentage=0.5)
        model.fit(photos)
        for one, other in zip(plain.score(photos), model.score(photos), strict=True):
            assert one.score == pytest.approx(other.score, rel=0.1)
