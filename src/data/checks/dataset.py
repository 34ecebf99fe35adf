"""Check a dataset before a run and report every problem at once.

A run stops at the first problem; `check_dataset` continues. If it reports no error, every split
opens and every image and mask can be read.
"""

import mimetypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from src.data import open_dataset
from src.data.autovi import read_saturations
from src.data.checks.images import ImageCheck, check_images, relative_path
from src.data.checks.report import DatasetReport, count_columns, count_formats, count_groups
from src.data.checks.rules import MIN_TRAIN_IMAGES, Violation, group_violations
from src.data.dataset import DataError, Sample
from src.data.layout import absolute_root, find_objects, read_metadata, select_objects
from src.data.visa import read_split_file

KINDS = ("folder", "autovi", "visa")


def check_dataset(
    root: str | Path,
    kind: str = "auto",
    objects: str | Sequence[str] | None = None,
    *,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Check every image and every mask of both splits.

    `kind` is one of `KINDS`, or auto; `objects` as for a dataset. `quick` reads headers only
    and misses what needs pixels: truncated files, empty masks, mask values, duplicates. `progress`
    is called with the numbers of checked images and of all images. Raises `DataError` for an
    unknown kind, a root that is not a folder, and missing objects; the report has everything else.
    """
    if kind not in ("auto", *KINDS):
        raise DataError(f"unknown kind of data {kind!r}: choose auto, {', '.join(KINDS)}")
    folder = absolute_root(root)
    kind, reason = detect_kind(folder) if kind == "auto" else (kind, "as requested")
    try:
        available = _object_folders(folder, kind)
    except DataError as error:
        unused = () if kind == "visa" else _unused_images(folder, [folder], [], set())
        return DatasetReport(kind, reason, problems=group_violations([str(error)], unused))
    selected = {name: available[name] for name in select_objects(folder, [*available], objects)}
    samples, errors, closed = _open_splits(folder, kind, selected)
    mask_values = _read_mask_values(selected, samples, errors) if kind == "autovi" else {}
    checks = check_images(folder, samples, mask_values, quick=quick, progress=progress)
    tops = [folder] if selected == available else selected.values()
    violations = [
        *(violation for check in checks for violation in check.violations),
        *_duplicates(checks),
        *_shortages(samples),
        *(_metadata_violations(folder, selected, samples) if kind != "visa" else ()),
        *_unused_images(folder, tops, samples, closed),
    ]
    return DatasetReport(
        kind,
        reason,
        count_groups(checks),
        count_formats(checks),
        count_columns(samples),
        group_violations(errors, violations),
    )


def detect_kind(root: Path) -> tuple[str, str]:
    """Return the kind of data below a root, and the evidence for it."""
    if (root / "split_csv").is_dir():
        return "visa", "there is a folder split_csv"
    with suppress(DataError):
        for folder in find_objects(root).values():
            if (folder / "defects_config.json").is_file():
                return "autovi", f"{folder.name} has a defects_config.json"
    return "folder", "there is no split_csv and no defects_config.json"


def _object_folders(root: Path, kind: str) -> dict[str, Path]:
    if kind == "visa":
        names = sorted({sample.object for sample in read_split_file(root)})
        return {name: root / name for name in names}
    return find_objects(root)


def _open_splits(
    root: Path, kind: str, folders: Mapping[str, Path]
) -> tuple[list[Sample], list[str], set[Path]]:
    """Return the samples, the errors, and the object folders with a malformed metadata.csv.

    There both splits fail alike, and nothing can be said about the images.
    """
    samples: list[Sample] = []
    errors: list[str] = []
    closed = set()
    for name, folder in folders.items():
        messages = []
        for split in ("train", "test"):
            try:
                samples += open_dataset(kind, root, [name], split).samples
            except DataError as error:
                messages.append(str(error))
        errors += messages
        if len(messages) == 2 and messages[0] == messages[1]:
            closed.add(folder)
    return samples, errors, closed


def _read_mask_values(
    folders: Mapping[str, Path], samples: Iterable[Sample], errors: list[str]
) -> dict[str, set[int]]:
    values = {}
    for name in sorted({sample.object for sample in samples if sample.masks}):
        try:
            values[name] = set(read_saturations(folders[name]))
        except DataError as error:
            errors.append(str(error))
    return values


def _duplicates(checks: Iterable[ImageCheck]) -> Iterator[Violation]:
    by_digest: dict[bytes, list[Sample]] = defaultdict(list)
    for check in checks:
        if check.digest:
            by_digest[check.digest].append(check.sample)
    for samples in by_digest.values():
        train = [sample.key for sample in samples if sample.split == "train"]
        test = [sample.key for sample in samples if sample.split == "test"]
        yield from (("leak", f"{key} = {train[0]}") for key in test if train)
        yield from (("duplicate", f"{key} = {train[0]}") for key in train[1:])


def _shortages(samples: Iterable[Sample]) -> Iterator[Violation]:
    labels: dict[tuple[str, str], list[int]] = defaultdict(list)
    for sample in samples:
        labels[sample.object, sample.split].append(sample.label)
    for (name, split), group in sorted(labels.items()):
        if split == "train" and len(group) < MIN_TRAIN_IMAGES:
            yield ("few-images", f"{name} ({len(group)})")
        if split == "test" and 0 not in group:
            yield ("no-normal", name)
        if split == "test" and 1 not in group:
            yield ("no-defect", name)


def _metadata_violations(
    root: Path, folders: Mapping[str, Path], samples: Sequence[Sample]
) -> Iterator[Violation]:
    tables = {folder for sample in samples for folder in (root, folders[sample.object])}
    rows = {path for folder in tables for path in read_metadata(folder)}
    if rows:
        yield from (("no-row", s.key) for s in samples if s.path not in rows)
        missing = sorted(path for path in rows if not path.is_file())
        yield from (("stale-row", relative_path(root, path)) for path in missing)


def _unused_images(
    root: Path, tops: Iterable[Path], samples: Iterable[Sample], closed: set[Path]
) -> Iterator[Violation]:
    """Find image files below the tops, outside closed folders, that are not in the samples."""
    used = {path for sample in samples for path in (sample.path, *sample.masks)}
    for top in tops:
        for parent, folders, names in os.walk(top):
            if Path(parent) in closed:
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(parent, name) for name in sorted(names)):
                if path not in used and not path.name.startswith(".") and _is_image(path):
                    yield ("unused-image", relative_path(root, path))


def _is_image(path: Path) -> bool:
    return (mimetypes.guess_type(path.name, strict=False)[0] or "").startswith("image/")
