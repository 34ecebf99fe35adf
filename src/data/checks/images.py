"""Check one image and its masks: whether a run can read them, and their format."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from src.data.checks.rules import Violation
from src.data.dataset import UNREADABLE, Sample, read_image, read_mask

MASK_STATES = ("unusable", "marked", "empty", "missing")  # an image's is the first among its masks


@dataclass(frozen=True)
class ImageCheck:
    """The result of checking one image and its masks."""

    sample: Sample
    size: tuple[int, int] | None  # (H, W) in pixels; None for an unreadable image
    mode: str  # Pillow's mode
    digest: bytes  # hash of the pixels; empty if they were not decoded
    mask_state: str  # one of MASK_STATES; "" for a normal image
    violations: tuple[Violation, ...]


def check_images(
    root: Path,
    samples: Sequence[Sample],
    mask_values: Mapping[str, set[int]],
    *,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[ImageCheck]:
    """Check every sample, in order.

    `mask_values` has the valid pixel values of an object's masks; masks of other objects may have
    any. `quick` reads headers only. `progress` is called with the numbers of checked images and of
    all images.
    """
    checks = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for check in pool.map(partial(_check_image, root, mask_values, quick), samples):
            checks.append(check)
            if progress:
                progress(len(checks), len(samples))
    return checks


def relative_path(root: Path, path: Path) -> str:
    """Return a path relative to the root, or the whole path if it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _check_image(
    root: Path, mask_values: Mapping[str, set[int]], quick: bool, sample: Sample
) -> ImageCheck:
    size, mode, digest, violations = None, "", b"", []
    try:
        with Image.open(sample.path) as image:
            mode, header_size = image.mode, (image.height, image.width)
        digest = b"" if quick else _pixel_digest(sample.path)
        size = header_size
    except UNREADABLE as error:
        violations.append(("unreadable-image", f"{sample.key} ({_cause(error)})"))
    states = set()
    for path in sample.masks:
        rule, details = _check_mask(path, size, mask_values.get(sample.object), quick)
        states.add({"": "marked", "empty-mask": "empty"}.get(rule, "unusable"))
        if rule:
            violations.append((rule, relative_path(root, path) + details))
    if sample.label and not sample.masks:
        states = {"missing"}
        violations.append(("unmasked", sample.key))
    state = next((state for state in MASK_STATES if state in states), "")
    return ImageCheck(sample, size, mode, digest, state, tuple(violations))


def _check_mask(
    path: Path, image_size: tuple[int, int] | None, valid: set[int] | None, quick: bool
) -> tuple[str, str]:
    """Return the violated rule, or "", and details; `valid` is None if any value is valid."""
    if not path.is_file():
        return "missing-mask", ""
    try:
        with Image.open(path) as mask:
            size = mask.height, mask.width
        values = [] if quick else [int(value) for value in np.unique(read_mask(path)) if value]
    except UNREADABLE as error:
        return "unreadable-mask", f" ({_cause(error)})"
    if image_size and size != image_size and (quick or values):  # an empty mask may have any size
        sizes = "{} × {}, the image {} × {}".format(*size, *image_size)
        return "mask-size", f" ({sizes})"
    return ("", "") if quick else _check_values(values, valid)


def _check_values(values: list[int], valid: set[int] | None) -> tuple[str, str]:
    if not values:
        return "empty-mask", ""
    if valid is not None and len(values) > 1:
        return "several-values", f" ({', '.join(map(str, values[:5]))})"
    if valid is not None and values[0] not in valid:
        entries = ", ".join(map(str, sorted(valid))) or "none"
        return "unknown-value", f" (value {values[0]}, entries {entries})"
    return "", ""


def _pixel_digest(path: Path) -> bytes:
    pixels = read_image(path).numpy()  # [3, H, W] float32
    return blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


def _cause(error: BaseException) -> str:
    """Return Pillow's own message, without the path."""
    error = error.__cause__ or error
    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
