"""A look at one image and its masks: whether a run can use them, and what they are like."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from src.data.checks.rules import Note
from src.data.dataset import UNREADABLE, Sample, read_image, read_mask

TRUTHS = ("unusable", "marked", "empty", "missing")  # of several masks, the first of these counts


@dataclass(frozen=True)
class Look:
    """What there is to see of one image and its masks."""

    sample: Sample
    size: tuple[int, int] | None  # (H, W) in pixels; None for an image that cannot be read
    mode: str
    content: bytes  # a hash of the pixels; empty where they were not read
    truth: str  # marked, empty, missing or unusable; "" for a normal image
    notes: tuple[Note, ...]


def look_at_all(
    root: Path,
    samples: Sequence[Sample],
    entries: Mapping[str, set[int]],
    *,
    quick: bool = False,
    step: Callable[[int, int], None] | None = None,
) -> list[Look]:
    """A look at each sample, in their order.

    `entries` has, by object, the values that a mask may have; of an object that is not in it a mask
    may have any. `quick` reads headers only. `step` is called with the number done and of all.
    """
    looks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for look in pool.map(partial(_look_at, root, entries, quick), samples):
            looks.append(look)
            if step:
                step(len(looks), len(samples))
    return looks


def place(root: Path, path: Path) -> str:
    """A path as it is told: relative to the data root, if it lies below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _look_at(root: Path, entries: Mapping[str, set[int]], quick: bool, sample: Sample) -> Look:
    size, mode, content, notes = _look_at_image(sample, quick)
    states = set()
    for path in sample.masks:
        rule, detail = _look_at_mask(path, size, entries.get(sample.object), quick)
        states.add({"": "marked", "empty": "empty"}.get(rule, "unusable"))
        if rule:
            notes.append(Note(rule, place(root, path) + detail))
    if sample.label and not sample.masks:
        states = {"missing"}
        notes.append(Note("unmasked", sample.key))
    truth = next((state for state in TRUTHS if state in states), "")
    return Look(sample, size, mode, content, truth, tuple(notes))


def _look_at_image(
    sample: Sample, quick: bool
) -> tuple[tuple[int, int] | None, str, bytes, list[Note]]:  # as in a Look
    mode = ""
    try:
        with Image.open(sample.path) as image:
            size, mode = (image.height, image.width), image.mode
        return size, mode, b"" if quick else _fingerprint(sample.path), []
    except UNREADABLE as error:
        return None, mode, b"", [Note("image", f"{sample.key} ({_cause(error)})")]


def _look_at_mask(
    path: Path, image: tuple[int, int] | None, entries: set[int] | None, quick: bool
) -> tuple[str, str]:  # the rule that it breaks, or "", and what is known of it
    if not path.is_file():
        return "lost", ""
    try:
        with Image.open(path) as mask:
            size = mask.height, mask.width
        values = [] if quick else [int(value) for value in np.unique(read_mask(path)) if value]
    except UNREADABLE as error:
        return "mask", f" ({_cause(error)})"
    if image and size != image and (quick or values):  # where nothing is marked, sizes may differ
        return "size", f" ({_by(size)}, the image {_by(image)})"
    return ("", "") if quick else _judge(values, entries)


def _judge(values: list[int], entries: set[int] | None) -> tuple[str, str]:
    """A mask by its values other than 0; `entries` is None where any value will do."""
    if not values:
        return "empty", ""
    if entries is not None and len(values) > 1:
        return "values", f" ({', '.join(map(str, values[:5]))})"
    if entries is not None and values[0] not in entries:
        known = ", ".join(map(str, sorted(entries))) or "none"
        return "value", f" (value {values[0]}, entries {known})"
    return "", ""


def _fingerprint(path: Path) -> bytes:
    pixels = read_image(path).numpy()  # [3, H, W] float32
    return blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


def _cause(error: BaseException) -> str:
    """What Pillow says, without the path that it may repeat."""
    error = error.__cause__ or error
    if isinstance(error, UnidentifiedImageError):
        return "of no image format known here"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
