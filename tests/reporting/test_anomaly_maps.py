import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from src.data.dataset import Defect
from src.evaluation import image_metrics, pixel_metrics
from src.reporting.maps import overlay, save_anomaly_map, save_maps

small_maps = arrays(np.float32, (3, 4), elements=st.floats(0, 100, width=32))


def sample(name, defect="good", kind="tile"):
    return SimpleNamespace(object=kind, defect=defect, path=Path("/data") / f"{name}.png")


def as_the_evaluator_reads(path):
    with Image.open(path) as image:
        values = np.array(image)
    assert values.ndim == 2
    return values


def load_anomaly_map(path, scale=(0.0, 65535 / 512)):
    """A map from its file, as the documentation of the formats says."""
    if path.suffix == ".npy":
        return np.load(path)
    values = as_the_evaluator_reads(path)
    if path.suffix != ".png":
        return values
    assert values.dtype == np.uint16
    low, high = scale
    return low + values * ((high - low) / 65535)


def run_of_maps():
    """Two good and two defective images, of differing sizes and means."""
    rng = np.random.default_rng(0)
    maps = [rng.random((20 + i, 30)).astype(np.float32) + 0.3 * i for i in range(4)]
    samples = [sample("0000"), sample("0001"), sample("0000", "crack"), sample("0000", "break")]
    return maps, samples


@given(small_maps)
def test_a_map_saved_alone_comes_back_within_half_a_step(tmp_path_factory, anomaly_map):
    path = tmp_path_factory.mktemp("maps") / "a" / "b.png"
    save_anomaly_map(anomaly_map, path)
    assert np.abs(load_anomaly_map(path) - anomaly_map).max() <= 0.5 / 512 * 1.01


@given(small_maps, st.floats(-5, 5), st.floats(101, 500))
def test_a_map_on_a_scale_comes_back_within_half_a_step(tmp_path_factory, anomaly_map, low, high):
    path = tmp_path_factory.mktemp("maps") / "map.png"
    save_anomaly_map(anomaly_map, path, scale=(low, high))
    expected = np.clip(anomaly_map, low, high)
    step = (high - low) / 65535
    assert np.abs(load_anomaly_map(path, scale=(low, high)) - expected).max() <= step * 0.51


@pytest.mark.parametrize("name", ["map.tif", "map.TIFF", "map.npy"])
def test_tiff_and_npy_keep_every_bit(tmp_path, name):
    anomaly_map = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * 1e4
    save_anomaly_map(anomaly_map, tmp_path / name)
    loaded = load_anomaly_map(tmp_path / name)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, anomaly_map)


def test_maps_saved_one_by_one_keep_their_order_across_images(tmp_path):
    maps, _ = run_of_maps()
    for i, anomaly_map in enumerate(maps):
        save_anomaly_map(anomaly_map, tmp_path / f"{i}.png")
    maxima = [as_the_evaluator_reads(tmp_path / f"{i}.png").max() for i in range(len(maps))]
    assert list(np.argsort(maxima)) == list(np.argsort([m.max() for m in maps]))
    assert len(set(maxima)) == len(maps)


def test_a_run_is_written_in_the_evaluators_layout(tmp_path):
    maps, samples = run_of_maps()
    save_maps(tmp_path, maps, samples)
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {
        "maps/scale.json",
        "maps/tile/test/good/0000.png",
        "maps/tile/test/good/0001.png",
        "maps/tile/test/crack/0000.png",
        "maps/tile/test/break/0000.png",
    }


def test_an_evaluator_reads_the_same_metrics_from_the_files(tmp_path):
    maps, samples = run_of_maps()
    save_maps(tmp_path, maps, samples)
    read = [
        as_the_evaluator_reads(tmp_path / "maps/tile/test" / s.defect / s.path.name)
        for s in samples
    ]
    labels = [0, 0, 1, 1]
    expected = image_metrics([m.max() for m in maps], labels)
    assert image_metrics([m.max() for m in read], labels) == pytest.approx(expected)
    masks = [m > m.mean() + 0.4 for m in maps[2:]]
    defects = [[], [], *([Defect(mask, float(mask.sum()))] for mask in masks)]
    found = pixel_metrics(read, defects)
    assert found["aupro"] == pytest.approx(pixel_metrics(maps, defects)["aupro"], abs=1e-3)


def test_the_scale_in_the_file_gives_the_values_back(tmp_path):
    maps, samples = run_of_maps()
    low, high = save_maps(tmp_path, maps, samples)
    assert (low, high) == (min(m.min() for m in maps), max(m.max() for m in maps))
    stated = json.loads((tmp_path / "maps/scale.json").read_text())
    assert stated == {"low": low, "high": high, "dtype": "uint16"}
    loaded = load_anomaly_map(tmp_path / "maps/tile/test/crack/0000.png", (low, high))
    np.testing.assert_allclose(loaded, maps[2], atol=0.51 * (high - low) / 65535)


def test_constant_maps_and_an_empty_run_can_be_saved(tmp_path):
    assert save_maps(tmp_path, [np.full((2, 2), 3.0)], [sample("0000")]) == (3, 4)
    assert load_anomaly_map(tmp_path / "maps/tile/test/good/0000.png", (3, 4)).max() == 3
    assert save_maps(tmp_path / "empty", [], []) == (0, 1)


def test_two_samples_of_one_file_name_are_refused_before_anything_is_written(tmp_path):
    maps = [np.zeros((2, 2))] * 2
    with pytest.raises(ValueError, match="would both write"):
        save_maps(tmp_path, maps, [sample("a/0000"), sample("b/0000")])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="2 maps for 1 samples"):
        save_maps(tmp_path, maps, [sample("0000")])


@pytest.mark.parametrize("value", [-0.1, 128.0])
def test_a_value_beyond_the_fixed_unit_is_refused_rather_than_clipped(tmp_path, value):
    with pytest.raises(ValueError, match="pass one scale"):
        save_anomaly_map(np.full((2, 2), value), tmp_path / "map.png")
    save_anomaly_map(np.full((2, 2), value), tmp_path / "map.tif")


def test_bad_maps_paths_and_scales_are_refused(tmp_path):
    fine = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"got shape \(3, 2, 2\)"):
        save_anomaly_map(np.zeros((3, 2, 2)), tmp_path / "map.png")
    with pytest.raises(ValueError, match="not finite"):
        save_anomaly_map(np.full((2, 2), np.nan), tmp_path / "map.png")
    with pytest.raises(ValueError, match="cannot tell the format"):
        save_anomaly_map(fine, tmp_path / "map.jpg")
    with pytest.raises(ValueError, match="low < high"):
        save_anomaly_map(fine, tmp_path / "map.png", scale=(1.0, 1.0))


def grey(shape=(4, 6)):
    return np.full((*shape, 3), 100, np.uint8)


def test_an_overlay_shows_the_bare_image_where_the_map_is_cold():
    image = np.random.default_rng(0).random((3, 4, 6)).astype(np.float32)
    shown = overlay(image, np.full((4, 6), 2.0), low=2.0, high=5.0)
    assert (shown.dtype, shown.shape) == (np.uint8, (4, 6, 3))
    np.testing.assert_array_equal(shown, np.rint(255 * image.transpose(1, 2, 0)))


def test_an_overlay_colours_equal_values_alike_whatever_else_the_map_holds():
    first, second = np.zeros((4, 6)), np.zeros((4, 6))
    first[0, 0] = second[0, 0] = 1.0
    second[1, 1] = 3.0
    shown = [overlay(grey(), m, 0.0, 3.0) for m in (first, second)]
    np.testing.assert_array_equal(shown[0][0, 0], shown[1][0, 0])
    changed = np.abs(shown[1].astype(int) - grey()).sum(axis=2)
    assert changed[1, 1] > changed[0, 0] > changed[2, 2] == 0


def test_an_outline_is_the_border_of_the_mask_and_nothing_else():
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:4, 1:6] = True
    shown = overlay(grey((5, 7)), np.zeros((5, 7)), 0.0, 1.0, outline=mask)
    border = mask.copy()
    border[2, 2:5] = False
    np.testing.assert_array_equal((shown != grey((5, 7))).any(axis=2), border)


def test_an_overlay_refuses_sizes_and_types_that_do_not_fit():
    with pytest.raises(ValueError, match=r"the map is \(3, 3\), but the image \(4, 6\)"):
        overlay(grey(), np.zeros((3, 3)), 0.0, 1.0)
    with pytest.raises(ValueError, match="the outline is"):
        overlay(grey(), np.zeros((4, 6)), 0.0, 1.0, outline=np.zeros((3, 3), bool))
    with pytest.raises(ValueError, match="expected an image"):
        overlay(np.zeros((4, 6, 3)), np.zeros((4, 6)), 0.0, 1.0)
