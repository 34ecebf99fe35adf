"""Split Magnetic Tile Defects by surface, so that no surface is in both training and test.

The normal images form series: one surface under up to six exposures, with consecutive numbers. In a
random split by image, most test surfaces also occur in training. This script links the same images
into a new folder with whole series in training or in test. The series are in metadata.csv, as
groups for privacy.group.

    python benchmarks/mtd_series.py DATA OUT --seed 0
"""

import argparse
import csv
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

NUMBER = re.compile(r"num_(\d+)")
# from these differences between numbers, a new series can begin, or always begins
GAP, LARGE_GAP = 60, 1000


def assign_series(images: list[tuple[int, int]]) -> list[int]:
    """Return the series of each image (number, exposure); images are sorted by number.

    A series continues while the exposure rises or the numbers are close.
    """
    series = [0]
    for (previous, previous_exposure), (number, exposure) in pairwise(images):
        gap = number - previous
        is_new = gap > LARGE_GAP or (exposure <= previous_exposure and gap >= GAP)
        series.append(series[-1] + is_new)
    return series


def split_by_series(data: Path, out: Path, train: int, seed: int) -> None:
    """Put whole series, in random order, into training up to `train` images, then into test."""
    with (data / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    normal = [row for row in rows if row["label"] == "good"]
    normal.sort(key=number_of)
    series = assign_series([(number_of(row), int(row["exposure"])) for row in normal])
    order = np.random.default_rng(seed).permutation(max(series) + 1)
    written: list[dict[str, str]] = []
    for number in order:
        split = "train" if len(written) < train else "test"
        for row in (row for row, s in zip(normal, series, strict=True) if s == number):
            path = f"{split}/good/{Path(row['path']).name}"
            written.append(row | {"path": path, "split": split, "series": f"{number:03d}"})
            link(data / row["path"], out / path)
    for row in rows:
        if row["label"] != "good":
            written.append(row | {"series": ""})
            link(data / row["path"], out / row["path"])
            if row["mask"]:
                link(data / row["mask"], out / row["mask"])
    with (out / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(written[0]))
        writer.writeheader()
        writer.writerows(written)
    count = sum(row["split"] == "train" for row in written)
    print(f"{out}: {len(order)} series, {count} training and {len(written) - count} test images")


def number_of(row: dict[str, str]) -> int:
    """Return the number in the file name of an image."""
    match = NUMBER.search(row["path"])
    if not match:
        raise SystemExit(f"{row['path']} has no number: name the data set in MVTec layout")
    return int(match[1])


def link(source: Path, target: Path) -> None:
    """Link to a file, replacing what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="Magnetic Tile Defects in MVTec layout")
    parser.add_argument("out", type=Path, help="folder for the new split")
    parser.add_argument("--train", type=int, default=600, help="least number of training images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    split_by_series(args.data, args.out, args.train, args.seed)
