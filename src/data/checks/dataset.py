"""A look at a data set before a run: what is there, and what is wrong with it.

`check_dataset` goes on where a run would stop, so that everything wrong is told at once. Where it
finds no error, every image and every mask can be read, and every split opened.
"""

from __future__ import annotations

import mimetypes
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from src.data.autovi import AutoVIDataset, read_saturations
from src.data.checks.images import Look, look_at_all, place
from src.data.checks.report import Findings, count_columns, count_groups, count_pictures
from src.data.checks.rules import FAULT, FEW, Note, fold
from src.data.dataset import DataError, Sample
from src.data.folder import FolderDataset
from src.data.layout import absolute_root, find_objects, read_metadata, select_objects
from src.data.visa import SPLIT_FILE, VisADataset, read_split_file

KINDS = ("folder", "autovi", "visa")


@dataclass
class Opened:
    """What there is to look at, and what stands in the way of the rest."""

    samples: list[Sample] = field(default_factory=list)  # of both splits
    faults: list[str] = field(default_factory=list)  # why others do not open
    shut: set[Path] = field(default_factory=set)  # object folders of which a table cannot be read


def check_dataset(
    root: str | Path,
    kind: str = "auto",
    objects: str | Sequence[str] | None = None,
    *,
    quick: bool = False,
    step: Callable[[int, int], None] | None = None,
) -> Findings:
    """Look at every image and every mask of both splits.

    `kind` is one of `KINDS`, or auto; `objects` as for a dataset. `quick` reads headers only: what
    needs pixels (truncated files, empty masks, their values, copies) is then not found. `step` is
    called with the number of images done and of all. Raises `DataError` for an unknown kind, a root
    that is no folder, and objects that are not there; all else that is wrong is in the findings.
    """
    if kind not in ("auto", *KINDS):
        raise DataError(f"unknown kind of data {kind!r}: choose auto, {', '.join(KINDS)}")
    folder = absolute_root(root)
    kind, reason = detect_kind(folder) if kind == "auto" else (kind, "as asked for")
    try:
        every = _object_folders(folder, kind, None)
    except DataError as error:
        tops = [folder] if kind != "visa" else []  # whose images are for the split file to name
        notes = [Note(FAULT, str(error)), *_strays(folder, tops, Opened())]
        return Findings(folder, kind, reason, (), {}, (), fold(notes))
    chosen = _object_folders(folder, kind, objects)
    opened = _open_listed(folder, list(chosen)) if kind == "visa" else _open(folder, kind, chosen)
    samples = opened.samples
    entries, unread = _read_entries(kind, chosen, samples)
    looks = look_at_all(folder, samples, entries, quick=quick, step=step)
    notes = [
        *(Note(FAULT, sentence) for sentence in (*opened.faults, *unread)),
        *(note for look in looks for note in look.notes),
        *_copies(looks),
        *_shortages(samples),
        *(_row_notes(folder, chosen, samples) if kind != "visa" else ()),
        *_strays(folder, [folder] if chosen == every else chosen.values(), opened),
    ]
    return Findings(
        folder,
        kind,
        reason,
        count_groups(looks),
        count_pictures(looks),
        count_columns(samples),
        fold(notes),
    )


def detect_kind(root: Path) -> tuple[str, str]:
    """The kind of data below a root, and what tells."""
    if (root / "split_csv").is_dir():
        return "visa", "there is a folder split_csv"
    with suppress(DataError):
        for folder in find_objects(root).values():
            if (folder / "defects_config.json").is_file():
                return "autovi", f"{folder.name} has a defects_config.json"
    return "folder", "there is no split_csv and no defects_config.json"


def _object_folders(root: Path, kind: str, objects: str | Sequence[str] | None) -> dict[str, Path]:
    if kind == "visa":
        every = {
            s.object: root / s.object for s in sorted(read_split_file(root), key=lambda s: s.object)
        }
        source = root / SPLIT_FILE
    else:
        every, source = find_objects(root), root
    return {name: every[name] for name in select_objects(source, list(every), objects)}


def _open(root: Path, kind: str, folders: Mapping[str, Path]) -> Opened:
    """Each split of each object by itself.

    What stands in the way of both splits alike is a table that cannot be read, and the layout may
    well be in order.
    """
    dataset = AutoVIDataset if kind == "autovi" else FolderDataset
    opened = Opened()
    for name, folder in folders.items():
        said = []
        for split in ("train", "test"):
            try:
                opened.samples += dataset(root, [name], split).samples
            except DataError as error:
                said.append(str(error))
        opened.faults += said
        if len(said) == 2 and said[0] == said[1]:
            opened.shut.add(folder)
    return opened


def _open_listed(root: Path, names: list[str]) -> Opened:
    """The same by VisA's split file, which is known to be sound."""
    samples = [sample for sample in read_split_file(root) if sample.object in names]
    opened = Opened(sorted(samples, key=lambda sample: sample.key))
    for split in ("train", "test"):
        try:
            VisADataset(root, names, split)
        except DataError as error:
            opened.faults.append(str(error))
    return opened


def _read_entries(
    kind: str, folders: Mapping[str, Path], samples: Iterable[Sample]
) -> tuple[dict[str, set[int]], list[str]]:
    """Object -> the pixel values its defects_config.json explains; and what is wrong with those."""
    entries: dict[str, set[int]] = {}
    faults = []
    masked = {sample.object for sample in samples if sample.masks} if kind == "autovi" else set()
    for name in sorted(masked):
        try:
            entries[name] = set(read_saturations(folders[name]))
        except DataError as error:
            faults.append(str(error))
    return entries, faults


def _copies(looks: Iterable[Look]) -> Iterator[Note]:
    alike: dict[bytes, list[Sample]] = defaultdict(list)
    for look in looks:
        if look.content:
            alike[look.content].append(look.sample)
    for same in alike.values():
        train = [sample.key for sample in same if sample.split == "train"]
        test = [sample.key for sample in same if sample.split == "test"]
        yield from (Note("leak", f"{key} = {train[0]}") for key in test if train)
        yield from (Note("twice", f"{key} = {train[0]}") for key in train[1:])


def _shortages(samples: Iterable[Sample]) -> Iterator[Note]:
    """Of splits that hold something: one that is empty does not open, which says enough."""
    labels: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for sample in samples:
        labels[sample.object, sample.split][sample.label] += 1
    for (name, split), counts in sorted(labels.items()):
        if split == "train" and counts[0] < FEW:
            yield Note("few", f"{name} ({counts[0]})")
        if split == "test" and not counts[0]:
            yield Note("no-normal", name)
        if split == "test" and not counts[1]:
            yield Note("no-defect", name)


def _row_notes(
    root: Path, folders: Mapping[str, Path], samples: Sequence[Sample]
) -> Iterator[Note]:
    tables = {folder for sample in samples for folder in (root, folders[sample.object])}
    rows = {path for folder in sorted(tables) for path in read_metadata(folder)}
    if rows:
        yield from (Note("rowless", s.key) for s in samples if s.path not in rows)
        yield from (Note("gone", place(root, p)) for p in sorted(rows) if not p.is_file())


def _strays(root: Path, tops: Iterable[Path], opened: Opened) -> Iterator[Note]:
    """Pictures below the tops that are no image and no mask of what opened."""
    taken = {path for sample in opened.samples for path in (sample.path, *sample.masks)}
    for top in tops:
        for inside, folders, names in os.walk(top):
            here = Path(inside)
            if here in opened.shut:
                folders.clear()
                continue
            folders[:] = sorted(name for name in folders if name[0] != ".")
            found = [here / name for name in sorted(names) if name[0] != "." and _is_picture(name)]
            yield from (Note("stray", place(root, path)) for path in found if path not in taken)


def _is_picture(name: str) -> bool:
    return (mimetypes.guess_type(name, strict=False)[0] or "").startswith("image/")
