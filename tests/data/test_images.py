"""Decoding image files of every kind."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.dataset import DataError, InspectionDataset, Sample, read_image, read_mask


def _sample(path, key="a", label=0):
    return Sample(path, key, "part", "test", label, "dent" if label else "good")


def test_rgb_keeps_its_values_channels_first(save, tmp_path):
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), pixels.transpose(2, 0, 1) / 255, atol=1e-7)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_eight_bit_mode_becomes_three_channels_in_unit_range(mode, tmp_path):
    path = tmp_path / "a.tif"
    white = Image.new("RGB", (8, 6), "white").convert(mode)
    white.save(path) if mode != "P" else white.save(path := tmp_path / "a.png")
    image = read_image(path)
    assert image.shape == (3, 6, 8)
    assert torch.all(image == 1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_greyscale_spans_zero_to_one(suffix, tmp_path):
    levels = np.array([[0, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(image[1, 0].numpy(), levels[0] / 65535, atol=1e-7)


def test_alpha_is_dropped_not_blended(save, tmp_path):
    clear = np.full((6, 8, 4), (200, 100, 50, 0), np.uint8)
    image = read_image(save(tmp_path / "a.png", clear))
    np.testing.assert_allclose(image[:, 0, 0].numpy(), np.array([200, 100, 50]) / 255, atol=1e-7)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to display"
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (3, 6, 8)


def test_a_truncated_image_is_named(save, tmp_path):
    path = save(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), "u1"))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png"):
        read_image(path)


@pytest.mark.parametrize("content", [None, b"", b"no image at all"])
def test_an_unreadable_file_is_named(content, tmp_path):
    path = tmp_path / "odd.png"
    if content is not None:
        path.write_bytes(content)
    dataset = InspectionDataset("x", tmp_path, [_sample(path)])
    for read in (lambda: dataset[0], lambda: dataset.image_size(0), lambda: read_mask(path)):
        with pytest.raises(DataError, match=r"odd\.png"):
            read()


def test_pixels_beyond_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, 0.5]], np.float32)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


def test_a_dataset_iterates_selects_and_pickles(save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.full((6, 8, 3), i, np.uint8)) for i in range(3)]
    dataset = InspectionDataset(
        "x", tmp_path, [_sample(p, p.name, i % 2) for i, p in enumerate(paths)]
    )
    assert [(label, path) for _, label, path in dataset] == [
        (i % 2, str(paths[i])) for i in range(3)
    ]
    chosen = pickle.loads(pickle.dumps(dataset.select([2, 0])))
    assert [sample.key for sample in chosen.samples] == ["2.png", "0.png"]
    assert len(dataset) == 3
    assert chosen.image_size(0) == (6, 8)


def test_worker_processes_read_the_same_images(save, tmp_path):
    paths = [save(tmp_path / f"{i}.png", np.full((6, 8, 3), i, np.uint8)) for i in range(4)]
    dataset = InspectionDataset("x", tmp_path, [_sample(p, p.name) for p in paths])
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, num_workers=1)
    images = torch.cat([images for images, _, _ in loader])
    assert torch.equal(images, torch.stack([image for image, _, _ in dataset]))
