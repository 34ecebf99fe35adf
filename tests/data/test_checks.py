"""What `check_dataset` finds in a sound set, and in one with known damage."""

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
from src.data.checks.report import Findings
from src.data.checks.rules import ERROR, FEW, WARNING, Problem

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


def _sound(folder: Path) -> Path:
    """An object `clip` in the AutoVI layout, with enough of everything."""
    clip = folder / "clip"
    counts = {"train/good": FEW, "test/good": 2, "test/dent": 4}
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
    return _sound(tmp_path)


def _only(found: Findings) -> Problem:
    [problem] = found.problems
    return problem


def test_a_sound_set_is_told_and_nothing_is_wrong(clip) -> None:
    found = check_dataset(clip.parent)
    assert (found.kind, found.reason) == ("autovi", "clip has a defects_config.json")
    assert found.problems == ()
    assert [(g.split, g.defect, g.images, dict(g.masks)) for g in found.groups] == [
        ("train", "good", FEW, {}),
        ("test", "good", 2, {}),
        ("test", "dent", 4, {"marked": 4}),
    ]
    assert found.pictures["clip"].sizes == {SIZE: FEW + 6}
    assert found.pictures["clip"].modes == {"RGB": FEW + 6}
    [line] = found.columns
    assert (line.name, line.complete, line.divides) == ("line", True, True)
    assert line.values == {"a": FEW // 4, "b": FEW // 2, "c": FEW // 4}  # of training images only


# what is done to the set; where it shows; the grade; and words of the sentence
DAMAGE = {
    "no image": (
        lambda clip: (clip / "train/good/0000.png").write_bytes(b"no image"),
        (ERROR, "clip/train/good/0000.png (of no image format known here)", "image that cannot be"),
    ),
    "half an image": (
        lambda clip: (clip / "test/good/0001.png").write_bytes(
            (clip / "test/good/0001.png").read_bytes()[:90]
        ),
        (ERROR, "clip/test/good/0001.png (", "replace the file"),
    ),
    "no mask": (
        lambda clip: (clip / "ground_truth/dent/0000/0000.png").write_bytes(b"no mask"),
        (ERROR, "clip/ground_truth/dent/0000/0000.png (of no", "mask that cannot be read"),
    ),
    "another size": (
        lambda clip: _mask(clip / "ground_truth/dent/0001/0000.png", size=(7, 8)),
        (ERROR, "dent/0001/0000.png (7 × 8, the image 6 × 8)", "of another size than the image"),
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
        (WARNING, "clip/ground_truth/dent/0000/0001.png", "in which no pixel is marked"),
    ),
    "unmarked, another size": (
        lambda clip: _mask(clip / "ground_truth/dent/0001/0001.png", value=0, size=(7, 8)),
        (WARNING, "clip/ground_truth/dent/0001/0001.png", "in which no pixel is marked"),
    ),
    "copy": (
        lambda clip: shutil.copy(clip / "train/good/0001.png", clip / "train/good/0002.png"),
        (WARNING, "good/0002.png = clip/train/good/0001.png", "with the very pixels of another"),
    ),
    "stray": (
        lambda clip: _image(clip / "train/bad/0000.png", 99),
        (WARNING, "clip/train/bad/0000.png", "that no rule of the layout takes up"),
    ),
    "another format": (
        lambda clip: (clip / "test/good/0009.webp").write_bytes(b""),
        (WARNING, "clip/test/good/0009.webp", "that no rule of the layout takes up"),
    ),
    "rowless": (
        lambda clip: _image(clip / "train/good/9999.png", 98),
        (WARNING, "clip/train/good/9999.png", "image without a row in metadata.csv"),
    ),
    "gone": (
        lambda clip: (clip / "test/dent/0003.png").unlink(),
        (WARNING, "clip/test/dent/0003.png", "row of metadata.csv for an image that is not there"),
    ),
}  # fmt: skip
LOOSENS = {"gone"}  # an image that has gone leaves its mask astray


@pytest.mark.parametrize("name", sorted(DAMAGE.keys() - LOOSENS))
def test_damage_is_told_with_its_place_and_nothing_else_is(name, clip) -> None:
    harm, (grade, place, words) = DAMAGE[name]
    harm(clip)
    problem = _only(check_dataset(clip.parent))
    assert problem.grade == grade
    assert words in problem.sentence
    assert problem.sentence.startswith("1 ")
    [where] = problem.places
    assert place in where


def _stops(root: Path) -> bool:
    """Whether a run that reads everything stops: the plain way to know."""
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
def test_errors_are_told_exactly_where_a_run_would_stop(names) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clip = _sound(Path(folder))
        for name in sorted(names):
            DAMAGE[name][0](clip)
        found = check_dataset(folder)
        assert bool(found.count(ERROR)) == _stops(Path(folder))
        told = [(p.grade, place) for p in found.problems for place in p.places]
        for grade, place, _ in (DAMAGE[name][1] for name in names - {"two values", *LOOSENS}):
            assert any(grade == g and place in where for g, where in told)


def test_an_image_counts_once_whatever_its_masks(clip) -> None:
    DAMAGE["unmarked"][0](clip)  # beside one that is marked
    _mask(clip / "ground_truth/dent/0001/0000.png", value=0)
    DAMAGE["another value"][0](clip)
    shutil.rmtree(clip / "ground_truth/dent/0003")
    masks = check_dataset(clip.parent).groups[-1].masks
    assert masks == {"marked": 1, "empty": 1, "unusable": 1, "missing": 1}


def test_a_test_image_among_the_training_images_is_an_error(clip) -> None:
    pixels = np.array(Image.open(clip / "train/good/0003.png"))
    Image.fromarray(pixels).save(clip / "test/good/0000.png", compress_level=0)  # other bytes
    problem = _only(check_dataset(clip.parent))
    assert problem.grade == ERROR
    assert problem.places == ("clip/test/good/0000.png = clip/train/good/0003.png",)


def test_equal_pixels_in_another_shape_are_no_copy(clip) -> None:
    for path, shape in (("train/good/0000", SIZE), ("test/good/0000", SIZE[::-1])):
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(clip / f"{path}.png")
    assert check_dataset(clip.parent).problems == ()


def test_defects_without_masks_and_tables_that_name_none(clip) -> None:
    shutil.rmtree(clip / "ground_truth/dent/0000")
    rows = [("path", "mask"), ("test/dent/0001.png", ""), ("test/dent/0002.png", "gone.png")]
    (clip / "defects_config.json").unlink()
    _table(clip / "metadata.csv", rows)
    found = check_dataset(clip)
    assert (found.kind, found.groups[-1].masks) == (
        "folder",
        {"missing": 3, "unusable": 1},  # the folder layout knows no ground_truth/<defect>/<id>/
    )
    lost, unmasked, *_ = found.problems
    assert (lost.grade, lost.places) == (ERROR, ("gone.png",))
    assert (unmasked.grade, len(unmasked.places)) == (WARNING, 3)


def test_the_config_of_masks_is_told_once_where_it_is_missing(clip) -> None:
    (clip / "defects_config.json").unlink()
    problem = _only(check_dataset(clip.parent, "autovi"))
    assert problem.grade == ERROR
    assert "need" in problem.sentence
    assert "defects_config.json does not exist" in problem.sentence


def test_an_object_must_have_images_of_each_label(clip) -> None:
    shutil.rmtree(clip / "test/good")
    shutil.copytree(clip, clip.parent / "pipe")
    shutil.rmtree(clip.parent / "pipe/test/dent")
    _image(clip.parent / "pipe/test/good/0000.png", 97)
    for folder in (clip, clip.parent / "pipe"):
        (folder / "metadata.csv").unlink()
    for i in range(2, FEW):
        (clip.parent / f"pipe/train/good/{i:04d}.png").unlink()
    told = {p.sentence.split(".")[0]: p.places for p in check_dataset(clip.parent).problems}
    assert told[f"1 object with fewer than {FEW} training images"] == ("pipe (2)",)
    assert told["1 object without normal test images"] == ("clip",)
    assert told["1 object without defective test images"] == ("pipe",)


def test_one_object_is_looked_at_alone(clip) -> None:
    shutil.copytree(clip, clip.parent / "pipe")
    (clip.parent / "pipe/test/good/0000.png").write_bytes(b"")
    (clip.parent / "stray.png").write_bytes(b"")
    found = check_dataset(clip.parent, objects="clip")
    assert ({group.object for group in found.groups}, found.problems) == ({"clip"}, ())
    with pytest.raises(DataError, match="has no object valve: choose from clip, pipe"):
        check_dataset(clip.parent, objects="valve")


@pytest.mark.parametrize("name", ["half an image", "two values", "another value", "copy"])
def test_headers_alone_do_not_tell_what_needs_pixels(name, clip) -> None:
    DAMAGE[name][0](clip)
    found = check_dataset(clip.parent, quick=True)
    assert found.problems == ()
    assert found.groups[-1].masks == {"marked": 4}


@pytest.mark.parametrize("name", ["no image", "no mask", "another size"])
def test_headers_tell_the_rest(name, clip) -> None:
    harm, (_, place, _) = DAMAGE[name]
    harm(clip)
    assert place in _only(check_dataset(clip.parent, quick=True)).places[0]


def test_images_in_no_layout_are_told(tmp_path) -> None:
    _image(tmp_path / "0000.png", 0)
    fault, stray = check_dataset(tmp_path).problems
    assert (fault.grade, stray.places) == (ERROR, ("0000.png",))
    assert "no object folder" in fault.sentence
    assert "train/good" in fault.sentence
    (tmp_path / "0000.png").unlink()
    assert "no object folder" in _only(check_dataset(tmp_path)).sentence


def test_a_split_that_is_not_there_does_not_hide_the_other(clip) -> None:
    (clip / "train/good").rename(clip / "train/normal")
    (clip / "metadata.csv").unlink()
    found = check_dataset(clip.parent)
    fault, stray = found.problems
    assert "no images in the train split" in fault.sentence
    assert len(stray.places) == FEW
    assert {group.split for group in found.groups} == {"test"}


def test_where_no_split_opens_the_images_that_are_there_are_told(clip) -> None:
    for name in ("train", "test"):
        (clip / name).rename(clip / f"{name}-")
        (clip / name).mkdir()
    (clip / "metadata.csv").unlink()
    shutil.rmtree(clip / "ground_truth")
    train, test, stray = check_dataset(clip.parent).problems
    assert "in the train split" in train.sentence
    assert "in the test split" in test.sentence
    assert len(stray.places) == FEW + 6


def test_a_table_that_cannot_be_read_is_all_that_is_told(clip) -> None:
    (clip / "metadata.csv").write_text("image,line\n")
    assert "metadata.csv has no column 'path'" in _only(check_dataset(clip.parent)).sentence


@pytest.mark.parametrize("content", [b"image,line\n1,a\n", b"\xff\xfe"])
def test_a_table_for_all_objects_that_cannot_be_read_is_told_once(content, clip) -> None:
    shutil.copytree(clip, clip.parent / "pipe")
    (clip.parent / "metadata.csv").write_bytes(content)
    problem = _only(check_dataset(clip.parent))
    assert (problem.grade, problem.places) == (ERROR, ())
    assert str(clip.parent / "metadata.csv") in problem.sentence


def test_columns_that_can_divide_have_two_values_or_more_everywhere(clip) -> None:
    names = sorted(path.relative_to(clip).as_posix() for path in clip.glob("t*/*/*.png"))
    rows = [("path", "one", "each", "line")]
    _table(clip / "metadata.csv", rows + [(n, "x", n, str(i % 2)) for i, n in enumerate(names)])
    columns = {c.name: c for c in check_dataset(clip.parent).columns}
    assert [c.divides for c in columns.values()] == [False, True, True]
    (clip / "metadata.csv").write_text("path,line\ntrain/good/0000.png,a\ntrain/good/0001.png,b\n")
    [line] = check_dataset(clip.parent).columns
    assert (len(line.values), line.complete, line.divides) == (2, False, False)


def test_visa_is_known_by_its_split_files(tmp_path) -> None:
    rows = [("object", "split", "label", "image", "mask")]
    for i in range(FEW + 2):
        label, split = ("anomaly" if i == FEW else "normal"), ("train" if i < FEW else "test")
        name = f"pcb1/Data/Images/{i:03d}.png"
        _image(tmp_path / name, i)
        rows.append(("pcb1", split, label, name, "m.png" if i == FEW else ""))
    (tmp_path / "split_csv").mkdir()
    _table(tmp_path / "split_csv/1cls.csv", rows)
    _mask(tmp_path / "m.png", value=3)
    found = check_dataset(tmp_path)
    assert (found.kind, found.problems, found.columns) == ("visa", (), ())
    (tmp_path / "pcb1/Data/Images/000.png").unlink()
    _image(tmp_path / "pcb1/Data/Images/999.png", 999)
    image, stray = check_dataset(tmp_path).problems
    assert (image.grade, image.places[0]) == (
        ERROR,
        "pcb1/Data/Images/000.png (No such file or directory)",
    )
    assert stray.places == ("pcb1/Data/Images/999.png",)
    _table(tmp_path / "split_csv/1cls.csv", rows[: FEW + 1])
    fault = check_dataset(tmp_path).problems[0]
    assert "lists no images in the test split of pcb1" in fault.sentence
    (tmp_path / "split_csv/1cls.csv").unlink()
    assert "1cls.csv does not exist" in _only(check_dataset(tmp_path)).sentence


def test_every_image_is_counted_off(clip) -> None:
    steps = []
    check_dataset(clip.parent, step=lambda *counts: steps.append(counts))
    assert steps == [(i, FEW + 6) for i in range(1, FEW + 7)]


def test_what_cannot_be_looked_at_is_said(tmp_path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        check_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="unknown kind of data 'mvtec': choose auto, folder"):
        check_dataset(tmp_path, "mvtec")


@pytest.mark.skipif(not MTD.is_dir(), reason="shared/mtd is not beside the checkout")
def test_magnetic_tiles_have_four_empty_masks_and_nothing_else(tmp_path) -> None:
    for name in ("test", "ground_truth"):
        (tmp_path / name).symlink_to(MTD / name)
    (tmp_path / "train/good").mkdir(parents=True)
    for path in sorted((MTD / "train/good").iterdir())[:FEW]:
        (tmp_path / "train/good" / path.name).symlink_to(path)
    found = check_dataset(tmp_path, "folder")
    masks = sum((group.masks for group in found.groups), Counter())
    assert masks == {"marked": 388, "empty": 4}
    problem = _only(found)
    assert (problem.grade, len(problem.places)) == (WARNING, 4)
    assert all(place.startswith("ground_truth/uneven/") for place in problem.places)
