"""The VisA layout: the split file lists the images, connected components are defects."""

import csv
from pathlib import Path

import pytest

from src.data import DataError, VisADataset, open_dataset

HEADER = ("object", "split", "label", "image", "mask")


def _row(name: str, split: str, label: str, image: str, mask: str = "") -> tuple[str, ...]:
    return (name, split, label, f"{name}/Data/Images/{image}", mask)


ROWS = [
    _row("pcb1", "train", "normal", "Normal/0001.JPG"),
    _row("pcb1", "train", "normal", "Normal/0000.JPG"),
    _row("pcb1", "test", "normal", "Normal/0002.JPG"),
    _row("pcb1", "test", "anomaly", "Anomaly/000.JPG", "pcb1/Data/Masks/Anomaly/000.png"),
    _row("candle", "train", "normal", "Normal/0000.JPG"),
    _row("candle", "test", "normal", "Normal/0001.JPG"),
    _row("candle", "test", "anomaly", "Anomaly/000.JPG"),  # without a mask
]


def _write(root: Path, rows: list, header=HEADER, name: str = "1cls.csv") -> Path:
    path = root / "split_csv" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return root


@pytest.fixture
def root(save, block, tmp_path) -> Path:
    for row in ROWS:
        save(tmp_path / row[3])
    save(tmp_path / "pcb1/Data/Images/Normal/0009.JPG")  # not listed
    # values 1 and 2 touch, and another 1 lies apart: two components of 4 + 2 and 3 pixels
    mask = block(slice(0, 2), slice(0, 2), 1) + block(slice(0, 2), slice(2, 3), 2)
    save(tmp_path / "pcb1/Data/Masks/Anomaly/000.png", mask + block(slice(5, 6), slice(0, 3), 1))
    return _write(tmp_path, ROWS)


def test_the_split_file_lists_the_images_of_a_split(root) -> None:
    train = VisADataset(root, "pcb1")
    assert [s.key for s in train.samples] == [
        "pcb1/Data/Images/Normal/0000.JPG",
        "pcb1/Data/Images/Normal/0001.JPG",
    ]
    assert {(s.object, s.split, s.label, s.defect) for s in train.samples} == {
        ("pcb1", "train", 0, "good")
    }
    test = VisADataset(root, split="test")
    assert [(s.object, s.label, s.defect) for s in test.samples] == [
        ("candle", 1, "anomaly"),
        ("candle", 0, "good"),
        ("pcb1", 1, "anomaly"),
        ("pcb1", 0, "good"),
    ]
    image, label, path = test[2]
    assert (image.shape, label, path) == ((3, 6, 8), 1, str(test.samples[2].path))


def test_every_pixel_above_zero_is_defective(root) -> None:
    test = VisADataset(root, split="test")
    defects = test.defects(2)
    assert sorted((d.mask.sum(), d.saturation) for d in defects) == [(3, 3.0), (6, 6.0)]
    assert [test.defects(i) for i in (0, 1, 3)] == [None, [], []]


@pytest.mark.parametrize("objects", ["all", None, "pcb1, candle", ["candle", "pcb1"]])
def test_objects_are_a_list_a_comma_separated_string_or_all(objects, root) -> None:
    dataset = open_dataset("visa", root, objects, "train")
    assert (dataset.name, dataset.objects, len(dataset)) == ("visa", ["candle", "pcb1"], 3)


def test_another_split_file_with_extra_columns(root) -> None:
    rows = [(*row, camera) for row, camera in zip(ROWS[:4], "abba", strict=True)]
    _write(root, rows, (*HEADER, "camera"), "cameras.csv")
    dataset = VisADataset(root, split_file="split_csv/cameras.csv")
    assert [dict(s.metadata) for s in dataset.samples] == [{"camera": "b"}, {"camera": "a"}]
    assert VisADataset(root, "pcb1").samples[0].metadata == {}


IMAGE = "pcb1/Data/Images/Normal/0000.JPG"
BAD_ROWS = {
    "split": (_row("pcb1", "val", "normal", "x.JPG"), "split 'val'; expected 'train' or 'test'"),
    "label": (_row("pcb1", "test", "bad", "x.JPG"), "label 'bad'; expected 'normal'"),
    "no image": (("pcb1", "train", "normal", "", ""), "object or image is empty"),
    "no object": (("", "train", "normal", IMAGE, ""), "object or image is empty"),
    "anomalous": (_row("pcb1", "train", "anomaly", "x.JPG"), "anomalous training image"),
    "twice": (_row("pcb1", "test", "normal", "../Images/Normal/0001.JPG"), "second row for pcb1/"),
    "outside": (("pcb1", "train", "normal", "../x.JPG", ""), "lies outside the data root"),
    "mask": (("pcb1", "test", "anomaly", "x.JPG", "/m.png"), "/m.png lies outside"),
    "cells": ((*ROWS[1], "x"), "more cells than columns"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_malformed_row_is_named_by_its_line(row, message, tmp_path) -> None:
    _write(tmp_path, [ROWS[0], row])
    with pytest.raises(DataError, match=rf"1cls\.csv, line 3: .*{message}"):
        VisADataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"object,split,image\n",
            "has no column 'label', 'mask'; its header is ['object', 'split'",
        ),
        (b"", "has no column 'object', 'split', 'label', 'image', 'mask'"),
        (",".join(HEADER).encode(), "has no rows; expected"),
        (b"\xff\xfe", "cannot read"),
    ],
)
def test_a_malformed_split_file_is_named(content, message, tmp_path) -> None:
    (_write(tmp_path, []) / "split_csv" / "1cls.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        VisADataset(tmp_path)
    assert "1cls.csv" in str(error.value)
    assert message in str(error.value)


def test_missing_files_and_objects_are_named(root) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder; expected <root>/split_csv"):
        VisADataset(root / "nowhere")
    with pytest.raises(DataError, match=r"split file .*2cls\.csv does not exist"):
        VisADataset(root, split_file="split_csv/2cls.csv")
    with pytest.raises(DataError, match="has no object pcb5: choose from candle, pcb1"):
        VisADataset(root, "pcb1,pcb5")
    with pytest.raises(DataError, match="unknown split 'val'"):
        VisADataset(root, split="val")
    _write(root, ROWS[:5])
    with pytest.raises(DataError, match="no images in the test split of candle"):
        VisADataset(root, split="test")
    assert VisADataset(root, "pcb1", "test").objects == ["pcb1"]
    (root / IMAGE).unlink()
    with pytest.raises(DataError, match="cannot read image .*0000.JPG"):
        VisADataset(root, "pcb1")[0]
