"""Object folders with train and test splits and a metadata.csv: shared by AutoVI and MVTec AD."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from src.data.dataset import DataError, Sample

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_DEPTH = 3  # folders between the root and an object: archives unpack into nested folders

LAYOUT = (
    "expected <root>/<object>/train/good/*.png and <root>/<object>/test/{good,<defect>}/*.png "
    "(or the same with <root> being the object folder)"
)

FindMasks = Callable[[Path, str, Path], tuple[Path, ...]]  # (object folder, defect, image) -> masks


def read_samples(
    root: Path, objects: str | Sequence[str] | None, split: str, find_masks: FindMasks
) -> list[Sample]:
    """Return the samples of a split, sorted by key.

    The `mask` column of metadata.csv takes precedence over `find_masks`. Raises `DataError` for a
    missing object or split, and for a split without images.
    """
    check_split(split)
    root_rows = read_metadata(root)
    folders = find_objects(root)
    samples: list[Sample] = []
    for name in select_objects(root, list(folders), objects):
        folder = folders[name]
        rows = root_rows if folder == root else root_rows | read_metadata(folder)
        for defect, path in _split_images(folder, split):
            label = int(defect != "good")
            metadata = dict(rows.get(path, {}))
            mask = metadata.pop("mask", None)
            if not label or mask == "":
                masks: tuple[Path, ...] = ()
            else:
                masks = (Path(mask),) if mask else find_masks(folder, defect, path)
            key = path.relative_to(root).as_posix()
            samples.append(Sample(path, key, name, split, label, defect, masks, metadata))
    return sorted(samples, key=lambda sample: sample.key)


def check_split(split: str) -> None:
    """Raise `DataError` for a split other than train and test."""
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: choose 'train' or 'test'")


def absolute_root(root: str | Path, layout: str = LAYOUT) -> Path:
    """Return the data root as an absolute path, keeping symbolic links.

    Raises `DataError`, which describes the expected `layout`, if it is not a folder.
    """
    path = Path(os.path.abspath(Path(root).expanduser()))
    if not path.is_dir():
        raise DataError(f"data root {path} is not a folder; {layout}")
    return path


def find_objects(root: Path) -> dict[str, Path]:
    """Return the folder of every object below a root, by name, sorted.

    Raises `DataError` if there is none, or if two folders have the same name.
    """
    objects: dict[str, Path] = {}
    for folder in _object_folders(root, MAX_DEPTH):
        if folder.name in objects:
            raise DataError(
                f"two folders for object {folder.name}: {objects[folder.name]}, {folder}; "
                "rename one, or choose a data root above only one of them"
            )
        objects[folder.name] = folder
    if not objects:
        raise DataError(f"no object folder under {root}; {LAYOUT}")
    return dict(sorted(objects.items()))


def select_objects(
    source: Path, available: Sequence[str], objects: str | Sequence[str] | None
) -> list[str]:
    """Return the requested names: all for None or "all", else those of a list or comma list.

    Raises `DataError`, naming `source`, for an empty request or a name that is not available.
    """
    names = objects.split(",") if isinstance(objects, str) else list(objects or [])
    names = [name.strip() for name in names if name.strip()]
    if objects is None or names == ["all"]:
        return list(available)
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        raise DataError(
            f"{source} has no object {', '.join(unknown) or repr(objects)}: choose from "
            f"{', '.join(available)}"
        )
    return names


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def read_metadata(folder: Path) -> dict[Path, dict[str, str]]:
    """Return the rows of `folder`/metadata.csv by absolute image path; `{}` without the file.

    The columns `path` and `mask` are relative to the folder. Raises `DataError` for a malformed
    file and for an image with two rows.
    """
    table = folder / "metadata.csv"
    rows: dict[Path, dict[str, str]] = {}
    for line, row in read_table(table, ["path"]) if table.is_file() else ():
        image = Path(os.path.normpath(folder / row.pop("path")))
        if image in rows:
            raise DataError(f"{table}, line {line}: second row for {image.name}; delete one")
        if row.get("mask"):
            row["mask"] = os.path.normpath(folder / row["mask"])
        rows[image] = row
    return rows


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV file, each with its line number; missing cells are empty.

    Raises `DataError` for a file that cannot be read or lacks one of `columns`, and for a row with
    more cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            header = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    missing = [repr(name) for name in columns if name not in header]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its header is {header}")
    for line, row in rows:
        if None in row:
            raise DataError(f"{path}, line {line}: more cells than columns")
    return rows


def _object_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        yield folder
    elif depth:
        for child in _subfolders(folder):
            yield from _object_folders(child, depth - 1)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _split_images(folder: Path, split: str) -> list[tuple[str, Path]]:  # (defect, image)
    parent = folder / split
    folders = _subfolders(parent) if parent.is_dir() else []
    if split == "train":
        folders = [folder for folder in folders if folder.name == "good"]
    images = [(defect.name, path) for defect in folders for path in list_images(defect)]
    if not images:
        raise DataError(f"no images in the {split} split of {folder}; {LAYOUT}")
    return images
