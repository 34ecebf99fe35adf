"""`check_dataset` on an intact dataset and on datasets with known damage."""

import csv
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import DataError, open_dataset
from src.data.checks.dataset import check_dataset
from src.data.checks.report import DatasetReport
from src.data.checks.rules import ERROR, MIN_TRAIN_IMAGES, WARNING, Problem

MTD = Path(__file__).parents[2].parent / "shared" / "mtd"
SIZE = (6, 8)  # (H, W)
LINES = ("a", "b", "b", "c")


def _image(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def _mask(path: Path, value: int = 200, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    pixels[1:3, 2:4] = value
    Image.fromarray(pixels).save(path)


def _table(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _intact(folder: Path) -> Path:
    """An object `clip` in the AutoVI layout without any problem."""
    clip = folder / "clip"
    counts = {"train/good": MIN_TRAIN_IMAGES, "test/good": 2, "test/dent": 4}
    names = [f"{place}/{i:04d}.png" for place, n in counts.items() for i in range(n)]
    for seed, name in enumerate(names):
        _image(clip / name, seed)
    for i in range(4):
        _mask(clip / f"ground_truth/dent/{i:04d}/0000.png")
    entry = {"pixel_value": 200, "saturation_threshold": 0.5, "relative_saturation": True}
    (clip / "defects_config.json").write_text(json.dumps([{"defect_name": "dent"} | entry]))
    rows = [("path", "line"), *((name, LINES[i % 4]) for i, name in enumerate(names))]
    _table(clip / "metadata.csv", rows)
    return clip


@pytest.fixture
def clip(tmp_path) -> Path:
    return _intact(tmp_path)


def _only(report: DatasetReport) -> Problem:
    [problem] = report.problems
    return problem


def test_an_intact_dataset_is_counted_and_has_no_problems(clip) -> None:
    report = check_dataset(clip.parent)
    assert (report.kind, report.reason) == ("autovi", "clip has a defects_config.json")
    assert report.problems == ()
    assert [(g.split, g.defect, g.images, dict(g.masks)) for g in report.groups] == [
        ("train", "good", MIN_TRAIN_IMAGES, {}),
        ("test", "good", 2, {}),
        ("test", "dent", 4, {"marked": 4}),
    ]
    assert report.formats["clip"].sizes == {SIZE: MIN_TRAIN_IMAGES + 6}
    assert report.formats["clip"].modes == {"RGB": MIN_TRAIN_IMAGES + 6}
    [line] = report.columns
    assert (line.name, line.complete, line.can_partition) == ("line", True, True)
    quarter = MIN_TRAIN_IMAGES // 4
    assert line.values == {"a": quarter, "b": 2 * quarter, "c": quarter}  # training images only


# name -> (damage, (severity, location, part of the message))
DAMAGE = {
    "no image": (
        lambda clip: (clip / "train/good/0000.png").write_bytes(b"no image"),
        (ERROR, "clip/train/good/0000.png (unknown image format)", "image that cannot be"),
    ),
    "half an image": (
        lambda clip: (clip / "test/good/0001.png").write_bytes(
            (clip / "test/good/0001.png").read_bytes()[:90]
        ),
        (ERROR, "clip/test/good/0001.png (", "replace or remove the file"),
    ),
    "no mask": (
        lambda clip: (clip / "ground_truth/dent/0000/0000.png").write_bytes(b"no mask"),
        (ERROR, "clip/ground_truth/dent/0000/0000.png (unknown", "mask that cannot be read"),
    ),
    "another size": (
        lambda clip: _mask(clip / "ground_truth/dent/0001/0000.png", size=(7, 8)),
        (ERROR, "dent/0001/0000.png (7 × 8, the image 6 × 8)", "of a different size than its"),
    ),
    "another value": (
        lambda clip: _mask(clip / "ground_truth/dent/0002/0000.png", value=77),
        (ERROR, "dent/0002/0000.png (value 77, entries 200)", "no entry in defects_config.json"),
    ),
    "two values": (
        lambda clip: Image.fromarray(np.full(SIZE, 200, np.uint8) - np.eye(*SIZE, dtype=np.uint8))
        .save(clip / "ground_truth/dent/0003/0000.png"),
        (ERROR, "dent/0003/0000.png (199, 200)", "mask with several values"),
    ),
    "unmarked": (
        lambda clip: _mask(clip / "ground_truth/dent/0000/0001.png", value=0),
        (WARNING, "clip/ground_truth/dent/0000/0001.png", "without a marked pixel"),
    ),
    "unmarked, another size": (
        lambda clip: _mask(clip / "ground_truth/dent/0001/0001.png", value=0, size=(7, 8)),
        (WARNING, "clip/ground_truth/dent/0001/0001.png", "without a marked pixel"),
    ),
    "copy": (
        lambda clip: shutil.copy(clip / "train/good/0001.png", clip / "train/good/0002.png"),
        (WARNING, "good/0002.png = clip/train/good/0001.png", "with the same pixels as another"),
    ),
    "stray": (
        lambda clip: _image(clip / "train/bad/0000.png", 99),
        (WARNING, "clip/train/bad/0000.png", "outside the layout"),
    ),
    "another format": (
        lambda clip: (clip / "test/good/0009.webp").write_bytes(b""),
        (WARNING, "clip/test/good/0009.webp", "outside the layout"),
    ),
    "rowless": (
        lambda clip: _image(clip / "train/good/9999.png", 98),
        (WARNING, "clip/train/good/9999.png", "image without a row in metadata.csv"),
    ),
    "gone": (
        lambda clip: (clip / "test/dent/0003.png").unlink(),
        (WARNING, "clip/test/dent/0003.png", "row of metadata.csv without an image"),
    ),
}  # fmt: skip
MULTIPLE = {"gone"}  # a deleted image also leaves its mask unused


@pytest.mark.parametrize("name", sorted(DAMAGE.keys() - MULTIPLE))
def test_damage_is_reported_with_its_location_and_nothing_else(name, clip) -> None:
    damage, (severity, location, words) = DAMAGE[name]
    damage(clip)
    problem = _only(check_dataset(clip.parent))
    assert problem.severity == severity
    assert words in problem.message
    assert problem.message.startswith("1 ")
    [reported] = problem.locations
    assert location in reported


def _stops(root: Path) -> bool:
    """Whether a run that reads everything stops."""
    try:
        for split in ("train", "test"):
            data = open_dataset("autovi", root, "all", split)
            for i in range(len(data)):
                data[i], data.defects(i)
    except DataError:
        return True
    return False


@settings(max_examples=40)
@given(st.sets(st.sampled_from(sorted(DAMAGE)), max_size=4))
def test_errors_are_reported_exactly_if_a_run_would_stop(names) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = _intact(Path(folder))
        for name in sorted(names):
            DAMAGE[name][0](clip)
        report = check_dataset(folder)
        assert bool(report.count(ERROR)) == _stops(Path(folder))
        reported = [(p.severity, where) for p in report.problems for where in p.locations]
        for severity, location, _ in (
            DAMAGE[name][1] for name in names - {"two values", *MULTIPLE}
        ):
            assert any(severity == s and location in where for s, where in reported)


def test_an_image_counts_once_whatever_its_masks(clip) -> None:
    DAMAGE["unmarked"][0](clip)  # next to a marked mask
    _mask(clip / "ground_truth/dent/0001/0000.png", value=0)
    DAMAGE["another value"][0](clip)
    shutil.rmtree(clip / "ground_truth/dent/0003")
    masks = check_dataset(clip.parent).groups[-1].masks
    assert masks == {"marked": 1, "empty": 1, "unusable": 1, "missing": 1}


def test_a_test_image_among_the_training_images_is_an_error(clip) -> None:
    pixels = np.array(Image.open(clip / "train/good/0003.png"))
    Image.fromarray(pixels).save(clip / "test/good/0000.png", compress_level=0)  # other bytes
    problem = _only(check_dataset(clip.parent))
    assert problem.severity == ERROR
    assert problem.locations == ("clip/test/good/0000.png = clip/train/good/0003.png",)


def test_equal_pixels_in_another_shape_are_no_duplicate(clip) -> None:
    for path, shape in (("train/good/0000", SIZE), ("test/good/0000", SIZE[::-1])):
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(clip / f"{path}.png")
    assert check_dataset(clip.parent).problems == ()


def test_missing_masks_in_the_layout_and_in_metadata(clip) -> None:
    shutil.rmtree(clip / "ground_truth/dent/0000")
    rows = [("path", "mask"), ("test/dent/0001.png", ""), ("test/dent/0002.png", "gone.png")]
    (clip / "defects_config.json").unlink()
    _table(clip / "metadata.csv", rows)
    report = check_dataset(clip)
    assert (report.kind, report.groups[-1].masks) == (
        "folder",
        {"missing": 3, "unusable": 1},  # ground_truth/<defect>/<id>/ is not the folder layout
    )
    lost, unmasked, *_ = report.problems
    assert (lost.severity, lost.locations) == (ERROR, ("gone.png",))
    assert (unmasked.severity, len(unmasked.locations)) == (WARNING, 3)


def test_a_missing_defects_config_is_reported_once(clip) -> None:
    (clip / "defects_config.json").unlink()
    problem = _only(check_dataset(clip.parent, "autovi"))
    assert problem.severity == ERROR
    assert "need" in problem.message
    assert "defects_config.json does not exist" in problem.message


def test_an_object_must_have_images_of_each_label(clip) -> None:
    shutil.rmtree(clip / "test/good")
    shutil.copytree(clip, clip.parent / "pipe")
    shutil.rmtree(clip.parent / "pipe/test/dent")
    _image(clip.parent / "pipe/test/good/0000.png", 97)
    for folder in (clip, clip.parent / "pipe"):
        (folder / "metadata.csv").unlink()
    for i in range(2, MIN_TRAIN_IMAGES):
        (clip.parent / f"pipe/train/good/{i:04d}.png").unlink()
    locations = {p.message.split(".")[0]: p.locations for p in check_dataset(clip.parent).problems}
    assert locations[f"1 object with fewer than {MIN_TRAIN_IMAGES} training images"] == (
        "pipe (2)",
    )
    assert locations["1 object without normal test images"] == ("clip",)
    assert locations["1 object without defective test images"] == ("pipe",)


def test_other_objects_are_ignored(clip) -> None:
    shutil.copytree(clip, clip.parent / "pipe")
    (clip.parent / "pipe/test/good/0000.png").write_bytes(b"")
    (clip.parent / "stray.png").write_bytes(b"")
    report = check_dataset(clip.parent, objects="clip")
    assert ({group.object for group in report.groups}, report.problems) == ({"clip"}, ())
    with pytest.raises(DataError, match="has no object valve: choose from clip, pipe"):
        check_dataset(clip.parent, objects="valve")


@pytest.mark.parametrize("name", ["half an image", "two values", "another value", "copy"])
def test_headers_do_not_show_what_needs_pixels(name, clip) -> None:
    DAMAGE[name][0](clip)
    report = check_dataset(clip.parent, quick=True)
    assert report.problems == ()
    assert report.groups[-1].masks == {"marked": 4}


@pytest.mark.parametrize("name", ["no image", "no mask", "another size"])
def test_headers_show_the_rest(name, clip) -> None:
    damage, (_, location, _) = DAMAGE[name]
    damage(clip)
    assert location in _only(check_dataset(clip.parent, quick=True)).locations[0]


def test_images_outside_any_layout_are_reported(tmp_path) -> None:
    _image(tmp_path / "0000.png", 0)
    fault, stray = check_dataset(tmp_path).problems
    assert (fault.severity, stray.locations) == (ERROR, ("0000.png",))
    assert "no object folder" in fault.message
    assert "train/good" in fault.message
    (tmp_path / "0000.png").unlink()
    assert "no object folder" in _only(check_dataset(tmp_path)).message


def test_a_missing_split_does_not_hide_the_other(clip) -> None:
    (clip / "train/good").rename(clip / "train/normal")
    (clip / "metadata.csv").unlink()
    report = check_dataset(clip.parent)
    fault, stray = report.problems
    assert "no images in the train split" in fault.message
    assert len(stray.locations) == MIN_TRAIN_IMAGES
    assert {group.split for group in report.groups} == {"test"}


def test_images_are_reported_if_no_split_opens(clip) -> None:
    for name in ("train", "test"):
        (clip / name).rename(clip / f"{name}-")
        (clip / name).mkdir()
    (clip / "metadata.csv").unlink()
    shutil.rmtree(clip / "ground_truth")
    train, test, stray = check_dataset(clip.parent).problems
    assert "in the train split" in train.message
    assert "in the test split" in test.message
    assert len(stray.locations) == MIN_TRAIN_IMAGES + 6


def test_a_malformed_table_is_the_only_problem_reported(clip) -> None:
    (clip / "metadata.csv").write_text("image,line\n")
    assert "metadata.csv has no column 'path'" in _only(check_dataset(clip.parent)).message


@pytest.mark.parametrize("content", [b"image,line\n1,a\n", b"\xff\xfe"])
def test_a_malformed_table_of_all_objects_is_reported_once(content, clip) -> None:
    shutil.copytree(clip, clip.parent / "pipe")
    (clip.parent / "metadata.csv").write_bytes(content)
    problem = _only(check_dataset(clip.parent))
    assert (problem.severity, problem.locations) == (ERROR, ())
    assert str(clip.parent / "metadata.csv") in problem.message


def test_columns_that_can_partition_are_complete_with_two_values_or_more(clip) -> None:
    names = sorted(path.relative_to(clip).as_posix() for path in clip.glob("t*/*/*.png"))
    rows = [("path", "one", "each", "line")]
    _table(clip / "metadata.csv", rows + [(n, "x", n, str(i % 2)) for i, n in enumerate(names)])
    columns = {c.name: c for c in check_dataset(clip.parent).columns}
    assert [c.can_partition for c in columns.values()] == [False, True, True]
    (clip / "metadata.csv").write_text("path,line\ntrain/good/0000.png,a\ntrain/good/0001.png,b\n")
    [line] = check_dataset(clip.parent).columns
    assert (len(line.values), line.complete, line.can_partition) == (2, False, False)


def test_visa_is_detected_by_its_split_files(tmp_path) -> None:
    rows = [("object", "split", "label", "image", "mask")]
    for i in range(MIN_TRAIN_IMAGES + 2):
        label, split = (
            ("anomaly" if i == MIN_TRAIN_IMAGES else "normal"),
            ("train" if i < MIN_TRAIN_IMAGES else "test"),
        )
        name = f"pcb1/Data/Images/{i:03d}.png"
        _image(tmp_path / name, i)
        rows.append(("pcb1", split, label, name, "m.png" if i == MIN_TRAIN_IMAGES else ""))
    (tmp_path / "split_csv").mkdir()
    _table(tmp_path / "split_csv/1cls.csv", rows)
    _mask(tmp_path / "m.png", value=3)
    report = check_dataset(tmp_path)
    assert (report.kind, report.problems, report.columns) == ("visa", (), ())
    (tmp_path / "pcb1/Data/Images/000.png").unlink()
    _image(tmp_path / "pcb1/Data/Images/999.png", 999)
    image, stray = check_dataset(tmp_path).problems
    assert (image.severity, image.locations[0]) == (
        ERROR,
        "pcb1/Data/Images/000.png (No such file or directory)",
    )
    assert stray.locations == ("pcb1/Data/Images/999.png",)
    _table(tmp_path / "split_csv/1cls.csv", rows[: MIN_TRAIN_IMAGES + 1])
    fault = check_dataset(tmp_path).problems[0]
    assert "lists no images in the test split of pcb1" in fault.message
    (tmp_path / "split_csv/1cls.csv").unlink()
    assert "1cls.csv does not exist" in _only(check_dataset(tmp_path)).message


def test_progress_counts_every_image(clip) -> None:
    steps = []
    check_dataset(clip.parent, progress=lambda *counts: steps.append(counts))
    assert steps == [(i, MIN_TRAIN_IMAGES + 6) for i in range(1, MIN_TRAIN_IMAGES + 7)]


def test_invalid_arguments_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        check_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="unknown kind of data 'mvtec': choose auto, folder"):
        check_dataset(tmp_path, "mvtec")


@pytest.mark.skipif(not MTD.is_dir(), reason="shared/mtd is not beside the checkout")
def test_magnetic_tiles_have_four_empty_masks_and_nothing_else(tmp_path) -> None:
    for name in ("test", "ground_truth"):
        (tmp_path / name).symlink_to(MTD / name)
    (tmp_path / "train/good").mkdir(parents=True)
    for path in sorted((MTD / "train/good").iterdir())[:MIN_TRAIN_IMAGES]:
        (tmp_path / "train/good" / path.name).symlink_to(path)
    report = check_dataset(tmp_path, "folder")
    masks = sum((group.masks for group in report.groups), Counter())
    assert masks == {"marked": 388, "empty": 4}
    problem = _only(report)
    assert (problem.severity, len(problem.locations)) == (WARNING, 4)
    assert all(place.startswith("ground_truth/uneven/") for place in problem.locations)
