"""The AutoVI layout, its ground truth and its saturation areas."""

import json
import shutil

import numpy as np
import pytest

from src.data import AutoVIDataset, DataError
from src.data.autovi import Saturation


def test_the_train_split_is_train_good_in_order(autovi_object, tmp_path):
    autovi_object(tmp_path / "clip")
    dataset = AutoVIDataset(tmp_path, ["clip"])
    assert [s.key for s in dataset.samples] == [
        "clip/train/good/0000.png",
        "clip/train/good/0001.png",
    ]
    assert {(s.label, s.defect, s.split, s.object) for s in dataset.samples} == {
        (0, "good", "train", "clip")
    }


@pytest.mark.parametrize("nested", ["clip", "clip/clip", "archive-v1/clip/clip"])
def test_nested_archive_folders_are_searched(nested, autovi_object, tmp_path):
    autovi_object(tmp_path / nested)
    dataset = AutoVIDataset(tmp_path, ["clip"], "test")
    assert dataset.objects == ["clip"]
    assert dataset.samples[0].key == f"{nested}/test/dent/0000.png"
    assert len(dataset.defects(0)) == 2


@pytest.mark.parametrize("objects", ["all", None, "pipe, clip", ["pipe", "clip"]])
def test_objects_are_a_list_a_comma_separated_string_or_all(objects, autovi_object, tmp_path):
    for name in ("pipe", "clip"):
        autovi_object(tmp_path / name)
    dataset = AutoVIDataset(tmp_path, objects)
    assert dataset.objects == ["clip", "pipe"]
    assert [s.key for s in dataset.samples] == sorted(s.key for s in dataset.samples)


def test_each_mask_is_a_defect_with_the_saturation_of_its_value(autovi_object, tmp_path):
    autovi_object(tmp_path / "clip")
    dent, chip = AutoVIDataset(tmp_path, ["clip"], "test").defects(0)
    # Value 200, 2x5 pixels, relative 0.35: floor(3.5). Value 100, 2x2 pixels, absolute: min(3, 4).
    assert (dent.mask.sum(), dent.saturation) == (10, 3)
    assert (chip.mask.sum(), chip.saturation) == (4, 3)
    assert dent.mask.dtype == bool
    assert dent.mask[:2, :5].all()


@pytest.mark.parametrize(
    ("threshold", "relative", "area", "expected"),
    [(1.0, True, 7, 7), (0.5, True, 7, 3), (0.1, True, 3, 1), (20, False, 7, 7), (5, False, 7, 5)],
)
def test_saturation_areas_worked_by_hand(threshold, relative, area, expected):
    assert Saturation(threshold, relative).area(area) == expected


def test_normal_images_have_no_defects_and_images_without_masks_unknown_ones(
    autovi_object, tmp_path
):
    autovi_object(tmp_path / "clip")
    dataset = AutoVIDataset(tmp_path, ["clip"], "test")
    truths = {s.key: dataset.defects(i) for i, s in enumerate(dataset.samples)}
    assert truths["clip/test/good/0000.png"] == []
    assert truths["clip/test/dent/0001.png"] is None


def test_an_empty_mask_leaves_the_ground_truth_unknown(autovi_object, save, block, tmp_path):
    truth = autovi_object(tmp_path / "clip") / "ground_truth/dent/0001"
    save(truth / "0000.png", block(slice(0), slice(0)))
    assert AutoVIDataset(tmp_path, ["clip"], "test").defects(1) is None


def test_a_value_without_an_entry_names_mask_and_value(autovi_object, save, block, tmp_path):
    truth = autovi_object(tmp_path / "clip") / "ground_truth/dent/0001"
    save(truth / "0007.png", block(slice(1), slice(1), 77))
    with pytest.raises(DataError, match=r"0007\.png.*77"):
        AutoVIDataset(tmp_path, ["clip"], "test").defects(1)


def test_a_mask_of_two_values_or_another_size_is_refused(autovi_object, save, block, tmp_path):
    truth = autovi_object(tmp_path / "clip") / "ground_truth/dent/0001"
    dataset = AutoVIDataset(tmp_path, ["clip"], "test")
    save(truth / "0000.png", block(slice(1), slice(1), 100) + block(slice(2, 3), slice(1), 200))
    with pytest.raises(DataError, match="use one value"):
        AutoVIDataset(tmp_path, ["clip"], "test").defects(1)
    save(truth / "0000.png", np.full((5, 5), 100, np.uint8))
    with pytest.raises(DataError, match=r"0001\.png .* its mask is \(5, 5\)"):
        AutoVIDataset(tmp_path, ["clip"], "test").defects(1)
    assert dataset.defects(1) is None  # listed when the dataset was opened


def test_a_missing_config_matters_only_when_masks_are_read(autovi_object, tmp_path):
    (autovi_object(tmp_path / "clip") / "defects_config.json").unlink()
    dataset = AutoVIDataset(tmp_path, ["clip"], "test")
    assert len(dataset) == 3
    with pytest.raises(DataError, match=r"clip/defects_config\.json"):
        dataset.defects(0)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '[{"pixel_value": 1}]',
        json.dumps([{"pixel_value": 1, "saturation_threshold": 1.5, "relative_saturation": True}]),
    ],
)
def test_a_malformed_config_is_named(content, autovi_object, tmp_path):
    (autovi_object(tmp_path / "clip") / "defects_config.json").write_text(content)
    with pytest.raises(DataError, match=r"defects_config\.json"):
        AutoVIDataset(tmp_path, ["clip"], "test").defects(0)


def test_missing_folders_and_objects_are_named(autovi_object, tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder; expected"):
        AutoVIDataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no object folder"):
        AutoVIDataset(tmp_path)
    folder = autovi_object(tmp_path / "clip")
    with pytest.raises(DataError, match=r"has no object pipe: choose from clip"):
        AutoVIDataset(tmp_path, "clip,pipe")
    with pytest.raises(DataError, match="unknown split"):
        AutoVIDataset(tmp_path, "clip", "val")
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match=r"no images in the train split of .*clip"):
        AutoVIDataset(tmp_path, "clip")


def test_two_folders_for_one_object_are_both_named(autovi_object, tmp_path):
    autovi_object(tmp_path / "a/clip")
    autovi_object(tmp_path / "b/clip")
    with pytest.raises(DataError, match=r"a/clip, .*b/clip"):
        AutoVIDataset(tmp_path, "all")
