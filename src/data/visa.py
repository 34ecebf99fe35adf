"""VisA (Zou et al., SPot-the-Difference, ECCV 2022), and other data in its layout.

split_csv/1cls.csv                            object,split,label,image,mask
<object>/Data/Images/{Normal,Anomaly}/*.JPG
<object>/Data/Masks/Anomaly/*.png             0 for normal pixels, other numbers for defects

Images that the split file does not list are ignored.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from src.data.dataset import DataError, InspectionDataset, Sample
from src.data.layout import absolute_root, check_split, read_table, select_objects

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = {"normal": 0, "anomaly": 1}

LAYOUT = (
    f"expected <root>/{SPLIT_FILE} with the columns {', '.join(COLUMNS)}, and the images it "
    "names below <root>/<object>/Data/Images"
)


class VisADataset(InspectionDataset):
    """The images that a split file lists; `Sample.defect` is "good" or "anomaly".

    `objects` is a list of names, a comma-separated string, or None or "all" for every object of
    the split file. `split_file` is relative to `root`; columns other than VisA's own five become
    `Sample.metadata`. Each connected component of a mask is one defect. Raises `DataError` for a
    missing root, split file, object or split, and for a malformed row. A missing image is reported
    when it is read.
    """

    def __init__(
        self,
        root: str | Path,
        objects: str | Sequence[str] | None = None,
        split: str = "train",
        split_file: str | Path = SPLIT_FILE,
    ) -> None:
        check_split(split)
        folder = absolute_root(root, LAYOUT)
        listed = read_split_file(folder, split_file)
        names = select_objects(folder / split_file, sorted({s.object for s in listed}), objects)
        samples = [s for s in listed if s.object in names and s.split == split]
        missing = sorted(set(names) - {sample.object for sample in samples})
        if missing:
            raise DataError(
                f"{folder / split_file} lists no images in the {split} split of "
                f"{', '.join(missing)}: leave these objects out, or add rows"
            )
        super().__init__("visa", folder, sorted(samples, key=lambda sample: sample.key))


def read_split_file(root: Path, split_file: str | Path = SPLIT_FILE) -> list[Sample]:
    """Return the samples of every object and both splits, in the order of the split file.

    `root` is absolute. Raises `DataError` for a missing, unreadable or empty file, and, with its
    line, for a malformed row.
    """
    path = root / split_file
    if not path.is_file():
        raise DataError(f"split file {path} does not exist; {LAYOUT}")
    samples: dict[str, Sample] = {}
    for line, row in read_table(path, COLUMNS):
        try:
            sample = _parse_row(root, row)
            if sample.key in samples:
                raise ValueError(f"second row for {sample.key}; delete one")
        except ValueError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
        samples[sample.key] = sample
    if not samples:
        raise DataError(f"{path} has no rows; {LAYOUT}")
    return list(samples.values())


def _parse_row(root: Path, row: dict[str, str]) -> Sample:
    if not row["object"] or not row["image"]:
        raise ValueError("object or image is empty; fill in both")
    if row["split"] not in ("train", "test"):
        raise ValueError(f"split {row['split']!r}; expected 'train' or 'test'")
    if row["label"] not in LABELS:
        raise ValueError(f"label {row['label']!r}; expected 'normal' or 'anomaly'")
    if (row["split"], row["label"]) == ("train", "anomaly"):
        raise ValueError(
            "anomalous training image; PatchCore trains on normal images, so use a 1cls split"
        )
    image, label = _path_below(root, row["image"]), LABELS[row["label"]]
    masks = (_path_below(root, row["mask"]),) if label and row["mask"] else ()
    metadata = {name: value for name, value in row.items() if name not in COLUMNS}
    defect = "anomaly" if label else "good"
    key = image.relative_to(root).as_posix()
    return Sample(image, key, row["object"], row["split"], label, defect, masks, metadata)


def _path_below(root: Path, relative: str) -> Path:
    path = Path(os.path.normpath(root / relative))
    if not path.is_relative_to(root):
        raise ValueError(f"{relative} lies outside the data root; use a path relative to the root")
    return path
