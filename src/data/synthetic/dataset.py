"""A small generated dataset in the AutoVI layout, so that everything runs without data.

Two parts come from three production lines that differ in light, tint and grain (column `line` of
metadata.csv), so that a bank of one line raises false alarms on the others.
"""

import csv
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.dataset import DataError
from src.data.synthetic.parts import DEFECTS, LINES, PARTS, draw_part

VERSION = 1  # raise it when the same arguments give different images
MARKER = "synthetic.json"
PIXEL_VALUES = {"scratch": 255, "stain": 254, "missing_hole": 253, "missing_pin": 252}


@dataclass(frozen=True)
class Request:
    """The arguments of `write_synthetic`."""

    objects: tuple[str, ...]
    train: int
    good: int
    defects: int
    size: tuple[int, int]
    seed: int

    def to_json(self) -> bytes:
        """Return the content of the marker file of a set."""
        return (json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n").encode()


def write_synthetic(
    root: str | Path,
    objects: Sequence[str] = ("bracket", "connector"),
    *,
    train: int = 40,
    good: int = 12,
    defects: int = 12,
    size: tuple[int, int] = (192, 192),
    seed: int = 0,
) -> Path:
    """Write `train` normal, `good` normal test and `defects` anomalous test images per object.

    `size` is (H, W) in pixels. The same arguments give the same bytes. The set is moved to `root`
    when it is complete; an existing set of the same arguments is kept. Returns the absolute root.
    Raises `DataError` for invalid arguments, and for a root that has other content or cannot be
    written.
    """
    request = Request(tuple(objects), train, good, defects, size, seed)
    _check_request(request)
    target = Path(os.path.abspath(Path(root).expanduser()))
    if _is_written(target, request):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            draft = Path(scratch) / "set"
            for name in objects:
                _write_object(draft / name, name, request)
            (draft / MARKER).write_bytes(request.to_json())
            draft.rename(target)
    except OSError as error:
        if not _is_written(target, request):  # by another process in the meantime
            raise DataError(f"cannot write a synthetic set to {target}: {error}") from error
    return target


def _check_request(request: Request) -> None:
    unknown = [name for name in request.objects if name not in PARTS]
    if unknown or not request.objects:
        raise DataError(f"unknown synthetic objects {unknown}: choose from {', '.join(PARTS)}")
    if len(set(request.objects)) < len(request.objects):
        raise DataError(f"a synthetic object is named twice: {', '.join(request.objects)}")
    if request.train < 1 or min(request.good, request.defects, request.seed) < 0:
        raise DataError("a synthetic set needs train >= 1, and good, defects and seed >= 0")
    if min(request.size) < 64:
        raise DataError(f"synthetic images of {request.size} pixels: each side needs 64 or more")


def _is_written(target: Path, request: Request) -> bool:
    """Return whether `target` has this set; False if it is missing or an empty folder."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    marker = target / MARKER
    try:
        content = marker.read_bytes()
    except OSError as error:
        raise DataError(
            f"{target} exists and is not a synthetic set ({error}); choose another folder"
        ) from error
    if content != request.to_json():
        raise DataError(
            f"{target} has a synthetic set of other arguments, see {marker}; delete it or choose "
            "another folder"
        )
    return True


def _write_object(folder: Path, name: str, request: Request) -> None:
    rows = []
    for number, (split, defect, index, line) in enumerate(_list_images(name, request)):
        rng = np.random.default_rng([request.seed, zlib.crc32(name.encode()), number])
        image, masks = draw_part(name, LINES[line], defect, request.size, rng)
        path = f"{split}/{defect}/{index:04d}.png"
        _save_png(folder / path, image)
        for order, mask in enumerate(masks):
            value = np.uint8(PIXEL_VALUES[defect]) * mask
            mask_path = folder / "ground_truth" / defect / f"{index:04d}/{order:04d}.png"
            _save_png(mask_path, np.repeat(value[..., None], 3, axis=2))
        rows.append((path, line))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "line"), *rows])
    config = json.dumps(_defects_config(name, request), indent=1)
    (folder / "defects_config.json").write_text(config + "\n", encoding="utf-8")


def _list_images(name: str, request: Request) -> Iterator[tuple[str, str, int, str]]:
    """Yield (split, defect, index, line) of each image; kinds and lines alternate."""
    lines, kinds = list(LINES), DEFECTS[name]
    for split, count in (("train", request.train), ("test", request.good)):
        for index in range(count):
            yield split, "good", index, lines[index % len(lines)]
    for index in range(request.defects):
        turn, kind = divmod(index, len(kinds))
        yield "test", kinds[kind], turn, lines[(turn + kind) % len(lines)]


def _defects_config(name: str, request: Request) -> list[dict[str, Any]]:
    """Scratches and stains saturate at half their area, missing fittings at a few pixels."""
    height, width = request.size
    few_pixels = max(1, round(height * width / 500))
    return [
        {
            "defect_name": defect,
            "pixel_value": PIXEL_VALUES[defect],
            "saturation_threshold": few_pixels if defect.startswith("missing") else 0.5,
            "relative_saturation": not defect.startswith("missing"),
        }
        for defect in DEFECTS[name]
    ]


def _save_png(path: Path, pixels: np.ndarray) -> None:  # [H, W, 3] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)
