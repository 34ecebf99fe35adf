"""VisA (Zou et al., SPot-the-Difference, ECCV 2022), and other objects kept in its layout.

split_csv/1cls.csv                            object,split,label,image,mask
<object>/Data/Images/{Normal,Anomaly}/*.JPG
<object>/Data/Masks/Anomaly/*.png             0 where nothing is wrong, small numbers where it is

The split file rules: an image that it does not list is not there.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.data.dataset import DataError, Defect, InspectionDataset, Sample, read_mask
from src.data.folder import components
from src.data.layout import choose_names

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = {"normal": 0, "anomaly": 1}

LAYOUT = (
    f"expected <root>/{SPLIT_FILE} with the columns {', '.join(COLUMNS)}, and the images it "
    "names below <root>/<object>/Data/Images"
)


class VisADataset(InspectionDataset):
    """The images that a split file gives some objects; `Sample.defect` is "good" or "anomaly".

    `objects` is a list of names, a comma-separated string, or None or "all" for every object of
    the split file. `split_file` is relative to `root`; its columns beyond VisA's own five become
    `Sample.metadata`. Raises `DataError` for a missing root, split file, object or split, and for
    a row that makes no sense; that an image is there shows only when it is read.
    """

    def __init__(
        self,
        root: str | Path,
        objects: str | Sequence[str] | None = None,
        split: str = "train",
        split_file: str | Path = SPLIT_FILE,
    ) -> None:
        if split not in ("train", "test"):
            raise DataError(f"unknown split {split!r}: choose 'train' or 'test'")
        folder = Path(os.path.abspath(Path(root).expanduser()))
        every = read_split_file(folder, split_file)
        names = choose_listed(folder / split_file, every, objects)
        samples = [s for s in every if s.object in names and s.split == split]
        lacking = [name for name in names if name not in {s.object for s in samples}]
        if lacking:
            raise DataError(
                f"{folder / split_file} lists no images in the {split} split of "
                f"{', '.join(lacking)}: leave these objects out, or add rows"
            )
        super().__init__("visa", folder, sorted(samples, key=lambda sample: sample.key))

    def read_defects(self, sample: Sample) -> list[Defect]:
        """One defect a connected component, saturating at its area: AU-sPRO is then AUPRO."""
        return [part for path in sample.masks for part in components(read_mask(path) > 0)]


def read_split_file(root: Path, split_file: str | Path = SPLIT_FILE) -> list[Sample]:
    """All samples of a split file, of every object and both splits, in its order.

    `root` is absolute. Raises `DataError` for a root or file that is not there or cannot be read,
    and, with its line, for a row that makes no sense.
    """
    if not root.is_dir():
        raise DataError(f"data root {root} is not a folder; {LAYOUT}")
    path = root / split_file
    if not path.is_file():
        raise DataError(f"split file {path} does not exist; {LAYOUT}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _index_rows(root, path, csv.DictReader(file, restval="", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def choose_listed(
    path: Path, samples: Sequence[Sample], objects: str | Sequence[str] | None
) -> list[str]:
    """The objects named, or all that the split file at `path` lists; raises `DataError` for others.

    `samples` are those of the file.
    """
    found = sorted({sample.object for sample in samples})
    if not found:
        raise DataError(f"{path} has no rows; {LAYOUT}")
    return choose_names(path, found, objects)


def _index_rows(root: Path, path: Path, reader: csv.DictReader[str]) -> list[Sample]:
    lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(lacking)}; its columns: {reader.fieldnames}"
        )
    samples: dict[str, Sample] = {}
    for row in reader:
        try:
            sample = _sample(root, row)
            if sample.key in samples:
                raise ValueError(f"second row for {sample.key}")
        except ValueError as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
        samples[sample.key] = sample
    return list(samples.values())


def _sample(root: Path, row: dict[str, str]) -> Sample:
    if complaint := next(_complaints(row), ""):
        raise ValueError(complaint)
    image, label = _below(root, row["image"]), LABELS[row["label"]]
    masks = (_below(root, row["mask"]),) if label and row["mask"] else ()
    metadata = {name: value for name, value in row.items() if name not in COLUMNS}
    defect = "anomaly" if label else "good"
    key = image.relative_to(root).as_posix()
    return Sample(image, key, row["object"], row["split"], label, defect, masks, metadata)


def _complaints(row: dict[str, str]) -> Iterator[str]:
    if None in row:
        yield "more cells than columns"
    if not row["object"] or not row["image"]:
        yield "the cell of object or image is empty"
    if row["split"] not in ("train", "test"):
        yield f"split {row['split']!r}; expected 'train' or 'test'"
    if row["label"] not in LABELS:
        yield f"label {row['label']!r}; expected 'normal' or 'anomaly'"
    if (row["split"], row["label"]) == ("train", "anomaly"):
        yield "an anomalous training image; PatchCore learns from normal ones, so take a 1cls split"


def _below(root: Path, relative: str) -> Path:
    path = Path(os.path.normpath(root / relative))
    if not path.is_relative_to(root):
        raise ValueError(f"{relative} lies outside the data root; paths are relative to it")
    return path
