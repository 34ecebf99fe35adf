"""The synthetic dataset: reproducible, written atomically, with defects inside their masks."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from src.data import AutoVIDataset, DataError, open_dataset, write_synthetic
from src.data.synthetic import dataset as synthetic
from src.data.synthetic.parts import LINES, draw_part

SMALL = {"train": 6, "good": 3, "defects": 6, "size": (64, 80)}


def _digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    pairs = ((path.relative_to(root).as_posix(), path.read_bytes()) for path in files)
    return hashlib.sha256(repr(list(pairs)).encode()).hexdigest()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "parts", **SMALL)


def test_the_same_arguments_give_the_same_bytes(root, tmp_path):
    again = write_synthetic(tmp_path / "again", **SMALL)
    other = write_synthetic(tmp_path / "other", **SMALL, seed=1)
    assert _digest(again) == _digest(root) != _digest(other)


def test_an_object_does_not_depend_on_the_others(root, tmp_path):
    alone = write_synthetic(tmp_path / "alone", ["connector"], **SMALL)
    assert _digest(alone / "connector") == _digest(root / "connector")


def test_it_opens_as_two_objects_on_three_lines_in_every_split(root):
    train, test = (open_dataset("synthetic", root, "all", split) for split in ("train", "test"))
    assert train.name == "synthetic"
    assert train.objects == test.objects == ["bracket", "connector"]
    assert (len(train), len(test)) == (12, 18)
    for dataset in (train, test):
        assert {s.metadata["line"] for s in dataset.samples} == {"line-a", "line-b", "line-c"}
    assert all(image.shape == (3, 64, 80) for image, _, _ in train)


def test_every_defect_has_masks_of_a_plausible_area(root):
    test = open_dataset("synthetic", root, None, "test")
    truths = [test.defects(i) for i, s in enumerate(test.samples) if s.label]
    assert all(truths)
    assert any(len(truth) > 1 for truth in truths)
    for defect in (defect for truth in truths for defect in truth):
        assert 0.001 < defect.mask.mean() < 0.06
        assert 1 <= defect.saturation <= defect.mask.sum()


def test_a_defect_changes_the_image_inside_its_mask_more_than_outside():
    line = LINES["line-a"]
    for part, kind in (("bracket", "missing_hole"), ("connector", "missing_pin")):
        # The view is drawn first, so that both images have the same one.
        image, masks = draw_part(part, line, kind, (96, 96), np.random.default_rng(5))
        grey = image.mean(axis=2)
        whole, _ = draw_part(part, line, "good", (96, 96), np.random.default_rng(5))
        change = np.abs(grey - whole.mean(axis=2))
        inside = np.logical_or.reduce(masks)
        assert change[inside].mean() > 2 * change[~inside].mean()


def test_lines_differ_more_between_than_within(root):
    train = AutoVIDataset(root, ["bracket"])
    tints = {}
    for (image, _, _), sample in zip(train, train.samples, strict=True):
        colour = image.mean(dim=(1, 2))
        tints.setdefault(sample.metadata["line"], []).append((colour / colour.sum()).numpy())
    centres = np.array([np.mean(rows, axis=0) for rows in tints.values()])
    within = max(np.ptp(rows, axis=0).max() for rows in tints.values())
    between = min(np.abs(a - b).max() for i, a in enumerate(centres) for b in centres[:i])
    assert between > 3 * within


def test_a_set_with_the_same_arguments_is_kept(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert write_synthetic(root, **SMALL) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_another_set_or_other_files_are_kept(root, tmp_path):
    before = _digest(root)
    with pytest.raises(DataError, match="other arguments"):
        write_synthetic(root, **SMALL, seed=7)
    assert _digest(root) == before
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="choose another folder"):
        write_synthetic(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "parts", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_the_same_set_both_succeed(root, tmp_path, monkeypatch):
    target = tmp_path / "parts"

    def rename(draft, path):
        monkeypatch.undo()
        write_synthetic(path, **SMALL)  # another process is faster
        return draft.rename(path)

    monkeypatch.setattr(Path, "rename", rename)
    assert write_synthetic(target, **SMALL) == target
    assert _digest(target) == _digest(root)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "wrong",
    [{"objects": ["gear"]}, {"objects": []}, {"objects": ["bracket"] * 2}, {"train": 0},
     {"size": (32, 192)}, {"seed": -1}],
)  # fmt: skip
def test_invalid_arguments_are_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(DataError):
        write_synthetic(tmp_path / "parts", **wrong)
    assert list(tmp_path.iterdir()) == []
