"""What the AutoVI and MVTec AD layouts share: object folders, splits, and metadata.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from src.data.dataset import DataError, Sample

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
NESTING = 3  # an object may lie this many folders below the root: archives unpack twice nested

LAYOUT = (
    "expected <root>/<object>/train/good/*.png and <root>/<object>/test/{good,<defect>}/*.png "
    "(or the same with <root> being the object's folder)"
)

Metadata = dict[Path, dict[str, str]]  # image -> its row of metadata.csv
MasksOf = Callable[[Path, str, Path], tuple[Path, ...]]  # (object folder, defect, image) -> masks


def read_samples(
    root: Path, objects: str | Sequence[str] | None, split: str, masks_of: MasksOf
) -> list[Sample]:
    """The samples of a split, sorted by key.

    A `mask` column of metadata.csv, where there is one, wins over `masks_of`. Raises `DataError`
    for a missing root, object or split, and for a split without images.
    """
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: choose 'train' or 'test'")
    root_rows = _read_metadata(root)
    samples: list[Sample] = []
    for name, folder in choose_objects(root, objects).items():
        rows = root_rows if folder == root else root_rows | _read_metadata(folder)
        for defect, path in _split_images(folder, split):
            label = int(defect != "good")
            columns = dict(rows.get(path, {}))
            listed = columns.pop("mask", None)
            masks: tuple[Path, ...] = ()
            if label and listed is None:
                masks = masks_of(folder, defect, path)
            elif label and listed:
                masks = (Path(listed),)
            key = path.relative_to(root).as_posix()
            samples.append(Sample(path, key, name, split, label, defect, masks, columns))
    return sorted(samples, key=lambda sample: sample.key)


def absolute_root(root: str | Path) -> Path:
    """The data root as an absolute path, symbolic links kept; raises `DataError` if missing."""
    path = Path(os.path.abspath(Path(root).expanduser()))
    if not path.is_dir():
        raise DataError(f"data root {path} is not a folder; {LAYOUT}")
    return path


def choose_objects(root: Path, objects: str | Sequence[str] | None) -> dict[str, Path]:
    """Object name -> folder, for the objects named: None or "all", a comma list, or a sequence."""
    found = _find_objects(root)
    if not found:
        raise DataError(f"no object folder under {root}; {LAYOUT}")
    return {name: found[name] for name in choose_names(root, list(found), objects)}


def choose_names(
    place: Path, found: Sequence[str], objects: str | Sequence[str] | None
) -> list[str]:
    """Of the objects found in a place those that are named; raises `DataError` for others."""
    names = objects.split(",") if isinstance(objects, str) else list(objects or [])
    names = [name.strip() for name in names if name.strip()]
    if objects is None or names == ["all"]:
        return list(found)
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        asked = ", ".join(unknown) or "nothing"
        raise DataError(f"{place} holds the objects {', '.join(found)}; asked for: {asked}")
    return names


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name; hidden files are passed over."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def _find_objects(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _object_folders(root, NESTING):
        if folder.name in found:
            raise DataError(f"two folders for object {folder.name}: {found[folder.name]}, {folder}")
        found[folder.name] = folder
    return dict(sorted(found.items()))


def _object_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        yield folder
    elif depth:
        for inner in _folders(folder):
            yield from _object_folders(inner, depth - 1)


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _split_images(folder: Path, split: str) -> list[tuple[str, Path]]:  # (defect, image)
    if split == "train":
        kinds = [folder / "train" / "good"]
    else:
        kinds = _folders(folder / "test") if (folder / "test").is_dir() else []
    images = [(kind.name, path) for kind in kinds if kind.is_dir() for path in list_images(kind)]
    if not images:
        raise DataError(f"no images in the {split} split of {folder}; {LAYOUT}")
    return images


def _read_metadata(folder: Path) -> Metadata:
    """The rows of `folder`/metadata.csv, if there is one; `path` and `mask` are relative to it."""
    path = folder / "metadata.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            return _index_rows(path, reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _index_rows(path: Path, reader: csv.DictReader[str]) -> Metadata:
    if "path" not in (reader.fieldnames or ()):
        raise DataError(f"{path} has no column 'path'; its columns: {reader.fieldnames}")
    rows: Metadata = {}
    for row in reader:
        if None in row:
            raise DataError(f"{path}, line {reader.line_num}: more cells than columns")
        image = _beside(path, row.pop("path"))
        if image in rows:
            raise DataError(f"{path}, line {reader.line_num}: second row for {image.name}")
        if row.get("mask"):
            row["mask"] = str(_beside(path, row["mask"]))
        rows[image] = row
    return rows


def _beside(file: Path, relative: str) -> Path:
    return Path(os.path.normpath(file.parent / relative))
