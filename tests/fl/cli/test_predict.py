"""A model file is used on images it has not seen: maps, overlays, scores, figures."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl.results.predictions import evaluate_model, find_images, write_predictions
from src.data import DataError, open_dataset
from src.models import FileError, PatchCore

OPTIONS = {"device": "cpu", "weights": None}


@pytest.fixture(scope="module")
def detector(clean) -> PatchCore:
    return PatchCore.load(clean.out / "model.safetensors", **OPTIONS)


@pytest.fixture(scope="module")
def images(parts, tmp_path_factory) -> Path:
    """Three images in a folder: two normal ones and one with a defect."""
    folder = tmp_path_factory.mktemp("images")
    for name, source in (("a", "good/0000"), ("b", "good/0001"), ("c", "scratch/0000")):
        shutil.copy(parts / "bracket/test" / f"{source}.png", folder / f"{name}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_each_image_has_a_map_an_overlay_and_a_row(detector, images, tmp_path) -> None:
    rows = write_predictions(detector, find_images([images]), tmp_path)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    for folder in ("maps", "overlays"):
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ["a.png", "b.png", "c.png"]
    with (tmp_path / "scores.csv").open() as file:
        written = list(csv.DictReader(file))
    assert written == [{key: str(value) for key, value in row.items()} for row in rows]
    with Image.open(tmp_path / "overlays" / "a.png") as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_map_is_the_model_s_and_all_are_on_one_scale(detector, images, tmp_path) -> None:
    dataset = find_images([images])
    write_predictions(detector, dataset, tmp_path)
    for name, expected in zip("abc", detector.predict(dataset), strict=True):
        levels = np.array(Image.open(tmp_path / "maps" / f"{name}.png")).astype(float)
        np.testing.assert_allclose(levels / 512, expected, atol=1 / 256)  # a level is 1/512


def test_verdict_is_the_threshold_s(detector, images, tmp_path) -> None:
    dataset = find_images([images])
    scores = [prediction.score for prediction in detector.score(dataset)]
    before = detector.threshold
    try:
        detector.threshold = sorted(scores)[1]
        rows = write_predictions(detector, dataset, tmp_path / "with")
        assert [row["anomalous"] for row in rows] == [s >= detector.threshold for s in scores]
        assert sum(row["anomalous"] for row in rows) == 2
        detector.threshold = None
        rows = write_predictions(detector, dataset, tmp_path / "without")
        assert all(set(row) == {"image", "map", "score"} for row in rows)
    finally:
        detector.threshold = before


def test_images_of_one_name_keep_apart(detector, images, tmp_path) -> None:
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        shutil.copy(images / "a.png", tmp_path / folder / "a.png")
    shutil.copy(images / "b.png", tmp_path / "two" / "a-2.png")
    places = [tmp_path / folder for folder in ("one", "two", "three")]
    rows = write_predictions(detector, find_images(places), tmp_path / "out")
    assert len(rows) == len({row["image"] for row in rows}) == 4
    assert all((tmp_path / "out" / "maps" / row["map"]).is_file() for row in rows)
    for folder in ("maps", "overlays"):
        names = sorted(path.stem for path in (tmp_path / "out" / folder).iterdir())
        assert names == ["a", "a-2", "a-3", "a-4"]


def test_an_image_named_twice_is_scored_once(images) -> None:
    assert len(find_images([images / "a.png", images, images / "a.png"])) == 3


def test_places_that_hold_no_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent does not exist"):
        find_images([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        find_images([tmp_path / "empty"])


def test_file_that_is_no_image_is_named(detector, images, tmp_path) -> None:
    with pytest.raises(DataError, match="cannot read image .*notes.txt"):
        write_predictions(detector, find_images([images / "notes.txt"]), tmp_path)


def assert_close(figures: dict, expected: dict) -> None:
    assert figures.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_close(figures[key], value)
        else:
            assert figures[key] == pytest.approx(value, abs=2e-3), key


def test_figures_of_the_model_are_the_run_s_federated_figures(clean, parts) -> None:
    test = open_dataset("autovi", parts, "all", "test")
    figures = evaluate_model(clean.out / "model.safetensors", test, OPTIONS)
    assert_close(figures["mean"], clean.metrics["federated"])
    assert list(figures["objects"]) == ["bracket"]


def test_each_object_is_scored_with_its_own_bank(run, two_objects) -> None:
    done = run(data__root=str(two_objects), clients=2)
    test = open_dataset("autovi", two_objects, "all", "test")
    figures = evaluate_model(done.out / "model.safetensors", test, OPTIONS)
    for name in ("bracket", "connector"):
        assert_close(figures["objects"][name], done.metrics["objects"][name]["federated"])
    assert_close(figures["mean"], done.metrics["federated"])


def test_shared_bank_scores_every_object(run, two_objects) -> None:
    done = run(data__root=str(two_objects), clients=2, model__scope="shared")
    test = open_dataset("autovi", two_objects, "all", "test")
    figures = evaluate_model(done.out / "model.safetensors", test, OPTIONS)
    assert_close(figures["mean"], done.metrics["federated"])


def test_object_without_a_bank_is_named(run, two_objects, tmp_path) -> None:
    done = run(data__root=str(two_objects), clients=2)
    shutil.copytree(two_objects / "bracket", tmp_path / "valve")
    test = open_dataset("autovi", tmp_path, "all", "test")
    with pytest.raises(FileError, match="no bank 'valve': name one of bracket, connector"):
        evaluate_model(done.out / "model.safetensors", test, OPTIONS)
