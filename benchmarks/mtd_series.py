"""Magnetic Tile Defects, split so that no surface lies on both sides.

Its normal images are series: one surface, shot under up to six exposures, with numbers that follow
each other. Where a split is drawn by images, most test surfaces have been seen in training. This
writes the same images, as links, with whole series in training or in test, and their series in
metadata.csv, as groups for privacy.group.

    python benchmarks/mtd_series.py DATA OUT --seed 0
"""

import argparse
import csv
import re
from pathlib import Path

import numpy as np

NUMBER = re.compile(r"num_(\d+)")
GAP, LARGE_GAP = 60, 1000  # numbers apart, from which on another surface may, and must, begin


def series_of(images: list[tuple[int, int]]) -> list[int]:
    """The series of each image (number, exposure), which are in the order of their numbers.

    A series goes on as long as the exposure rises or the numbers lie close together.
    """
    found, current = [], 0
    for i, (number, exposure) in enumerate(images):
        if i:
            before, last = images[i - 1]
            gap = number - before
            current += gap > LARGE_GAP or (exposure <= last and gap >= GAP)
        found.append(current)
    return found


def split_by_series(data: Path, out: Path, train: int, seed: int) -> None:
    """Write the split: whole series, in the seed's order, until training has `train` images."""
    with (data / "metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    normal = [row for row in rows if row["label"] == "good"]
    normal.sort(key=number_of)
    series = series_of([(number_of(row), int(row["exposure"])) for row in normal])
    order = np.random.default_rng(seed).permutation(max(series) + 1)
    members = {s: [r for r, of in zip(normal, series, strict=True) if of == s] for s in order}
    written, held = [], 0
    for s, images in members.items():
        split = "train" if held < train else "test"
        held += len(images)
        for row in images:
            path = f"{split}/good/{Path(row['path']).name}"
            written.append(row | {"path": path, "split": split, "series": f"{s:03d}"})
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
    print(f"{out}: {len(members)} series, {count} training images, {len(written) - count} others")


def number_of(row: dict[str, str]) -> int:
    """The number in an image's file name."""
    found = NUMBER.search(row["path"])
    if not found:
        raise SystemExit(f"{row['path']} has no number: this is not the data set in MVTec layout")
    return int(found[1])


def link(source: Path, target: Path) -> None:
    """Link a file, whatever was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    split_by_series(given.data, given.out, given.train, given.seed)
