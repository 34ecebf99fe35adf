"""The MVTec AD layout, metadata.csv, and the Magnetic Tile Defects in it."""

from collections import Counter
from pathlib import Path

import pytest

from src.data import DataError, FolderDataset, open_dataset

MTD = Path(__file__).parents[2].parent / "shared" / "mtd"


@pytest.fixture
def tile(save, block, tmp_path):
    """One object: two components in the mask of 0, an empty mask for 1, no mask for 2."""
    folder = tmp_path / "tile"
    for name in ("train/good/0.png", "train/good/1.JPG", "test/good/0.bmp", "test/crack/0.png"):
        save(folder / name)
    save(folder / "test/crack/1.tiff")
    save(folder / "test/crack/2.jpeg")
    (folder / "train/good/notes.txt").write_text("not an image")
    two = block(slice(0, 2), slice(0, 2)) + block(slice(3, 4), slice(0, 5))
    save(folder / "ground_truth/crack/0_mask.png", two)
    save(folder / "ground_truth/crack/1.png", block(slice(0), slice(0)))
    return folder


def test_the_root_is_an_object_or_contains_objects(tile):
    alone, nested = FolderDataset(tile), FolderDataset(tile.parent, "tile")
    assert alone.objects == nested.objects == ["tile"]
    assert [s.key for s in alone.samples] == ["train/good/0.png", "train/good/1.JPG"]
    assert [f"tile/{s.key}" for s in alone.samples] == [s.key for s in nested.samples]


def test_each_component_is_a_defect_that_saturates_at_its_area(tile):
    dataset = FolderDataset(tile, split="test")
    assert [s.key for s in dataset.samples][:3] == [
        f"test/crack/{n}" for n in ("0.png", "1.tiff", "2.jpeg")
    ]
    assert sorted((d.mask.sum(), d.saturation) for d in dataset.defects(0)) == [(4, 4.0), (5, 5.0)]
    assert [dataset.defects(i) for i in (1, 2, 3)] == [None, None, []]


def test_pixels_that_touch_at_a_corner_are_one_component(tile, save, block):
    mask = block(slice(0, 1), slice(0, 1)) + block(slice(1, 2), slice(1, 2))
    save(tile / "ground_truth/crack/0_mask.png", mask)
    assert [defect.saturation for defect in FolderDataset(tile, split="test").defects(0)] == [2]


@pytest.mark.parametrize("prefix", ["", "tile/"])
def test_metadata_is_next_to_the_object_or_at_the_root(prefix, tile):
    rows = [
        "path,camera,mask",
        f"{prefix}train/good/0.png,left,",
        f"{prefix}test/crack/0.png,right,",
    ]
    (tile.parent / ("metadata.csv" if prefix else "tile/metadata.csv")).write_text("\n".join(rows))
    train = FolderDataset(tile.parent, "all").samples
    assert [dict(s.metadata) for s in train] == [{"camera": "left"}, {}]
    test = FolderDataset(tile.parent, "all", "test")
    assert test.samples[0].metadata == {"camera": "right"}
    assert test.defects(0) is None  # the empty cell overrides ground_truth/crack/0_mask.png


def test_a_mask_column_names_the_mask(tile):
    rows = [
        "path,mask",
        "test/crack/2.jpeg,ground_truth/crack/0_mask.png",
        "test/crack/1.tiff,gone.png",
    ]
    (tile / "metadata.csv").write_text("\n".join(rows))
    dataset = FolderDataset(tile, split="test")
    assert len(dataset.defects(2)) == 2
    assert len(dataset.defects(0)) == 2  # no row: the mask of the layout
    with pytest.raises(DataError, match=r"gone\.png"):
        dataset.defects(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,x\n", "no column 'path'"),
        (b"", "no column 'path'"),
        (b"path,x\na.png,1,2\n", "line 2: more cells"),
        (b"path\na.png\nb/../a.png\n", "line 3: second row for a.png"),
        (b"path\n\xff\n", "codec"),
    ],
)
def test_a_malformed_metadata_file_is_named(content, message, tile):
    (tile / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"metadata\.csv.*{message}"):
        FolderDataset(tile)


def test_open_dataset_knows_the_kinds(tile, autovi_object):
    assert open_dataset("folder", tile, None, "train").name == "tile"
    autovi_object(tile.parent / "autovi" / "clip")
    assert open_dataset("autovi", tile.parent / "autovi", "all", "test").name == "autovi"
    with pytest.raises(DataError, match="autovi, folder, synthetic or visa"):
        open_dataset("mvtec", tile, None, "train")


@pytest.mark.skipif(not MTD.is_dir(), reason="shared/mtd is not beside the checkout")
def test_magnetic_tiles_have_the_published_counts():
    train, test = (FolderDataset(MTD, split=split) for split in ("train", "test"))
    assert len(train) == 762
    assert Counter(s.defect for s in test.samples) == {
        "good": 190, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103,
    }  # fmt: skip
    assert set(train.samples[0].metadata) == {"split", "label", "exposure"}
    empty = [i for i, s in enumerate(test.samples) if s.label and test.defects(i) is None]
    assert {test.samples[i].defect for i in empty} == {"uneven"}
    assert len(empty) == 4
