"""A small data set in the AutoVI layout, drawn rather than photographed.

It is there so that everything runs on a machine with no data. Two parts come off three production
lines that differ in light, tint and grain (column `line` of metadata.csv), so that a bank from one
line raises false alarms on the others.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.dataset import DataError
from src.data.synthetic.parts import DEFECTS, LINES, PARTS, draw_part

VERSION = 1  # of the drawings: raise it when the same arguments would give other images
MARKER = "synthetic.json"
PIXEL_VALUES = {"scratch": 255, "stain": 254, "missing_hole": 253, "missing_pin": 252}


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
    """Write `train` normal, `good` normal test and `defects` anomalous test images an object.

    `size` is (H, W) in pixels. The same arguments give the same bytes. The set appears under
    `root` all at once; one already there is kept if it was made with the same arguments. Returns
    the absolute root; raises `DataError` if it holds anything else or cannot be written.
    """
    request = {
        "version": VERSION,
        "objects": list(objects),
        "train": train,
        "good": good,
        "defects": defects,
        "size": list(size),
        "seed": seed,
    }
    _check_request(request)
    target = Path(os.path.abspath(Path(root).expanduser()))
    if _is_written(target, request):
        return target
    try:
        _write_set(target, request)
    except OSError as error:
        raise DataError(f"cannot write a synthetic set to {target}: {error}") from error
    return target


def _write_set(target: Path, request: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        draft = Path(scratch) / "set"
        for name in request["objects"]:
            _write_object(draft / name, name, request)
        (draft / MARKER).write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
        _install(draft, target, request)


def _check_request(request: dict[str, Any]) -> None:
    unknown = [name for name in request["objects"] if name not in PARTS]
    if unknown or not request["objects"]:
        raise DataError(f"synthetic objects are {', '.join(PARTS)}; asked for: {unknown}")
    if len(set(request["objects"])) < len(request["objects"]):
        raise DataError(f"a synthetic object is named twice: {', '.join(request['objects'])}")
    if request["train"] < 1 or request["good"] < 0 or request["defects"] < 0 or request["seed"] < 0:
        raise DataError("a synthetic set needs train >= 1, and good, defects and seed >= 0")
    if min(request["size"]) < 64:
        raise DataError(f"synthetic images of {request['size']} pixels: each side needs 64 or more")


def _is_written(target: Path, request: dict[str, Any]) -> bool:
    """Whether `target` holds this very set; False if it is missing or an empty folder."""
    marker = target / MARKER
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        held = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{target} exists and is no synthetic set ({MARKER}: {error}); choose another folder"
        ) from error
    if held != request:
        raise DataError(
            f"{target} holds a synthetic set made with other arguments: {held}, now asked for "
            f"{request}; delete it or choose another folder"
        )
    return True


def _install(draft: Path, target: Path, request: dict[str, Any]) -> None:
    try:
        draft.rename(target)
    except OSError:  # another process was faster: its set will do if it is the same
        if not _is_written(target, request):
            raise


def _write_object(folder: Path, name: str, request: dict[str, Any]) -> None:
    rows = []
    for number, (split, defect, index, line) in enumerate(_plan(name, request)):
        rng = np.random.default_rng([request["seed"], zlib.crc32(name.encode()), number])
        image, masks = draw_part(name, LINES[line], defect, tuple(request["size"]), rng)
        path = f"{split}/{defect}/{index:04d}.png"
        _save_png(folder / path, image)
        for order, mask in enumerate(masks):
            value = np.uint8(PIXEL_VALUES[defect]) * mask
            truth = folder / "ground_truth" / defect / f"{index:04d}" / f"{order:04d}.png"
            _save_png(truth, np.repeat(value[..., None], 3, axis=2))
        rows.append((path, line))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "line"), *rows])
    config = json.dumps(_defects_config(name, request), indent=1)
    (folder / "defects_config.json").write_text(config + "\n", encoding="utf-8")


def _plan(name: str, request: dict[str, Any]) -> Iterator[tuple[str, str, int, str]]:
    """(split, defect, index, line) of each image; kinds and lines take turns, crosswise."""
    lines, kinds = list(LINES), DEFECTS[name]
    for index in range(request["train"]):
        yield "train", "good", index, lines[index % len(lines)]
    for index in range(request["good"]):
        yield "test", "good", index, lines[index % len(lines)]
    for index in range(request["defects"]):
        turn, kind = divmod(index, len(kinds))
        yield "test", kinds[kind], turn, lines[(turn + kind) % len(lines)]


def _defects_config(name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Half a scratch or stain is enough to find it; of a missing fitting, a few pixels are."""
    height, width = request["size"]
    few = max(1, round(height * width / 500))
    return [
        {
            "defect_name": defect,
            "pixel_value": PIXEL_VALUES[defect],
            "saturation_threshold": few if defect.startswith("missing") else 0.5,
            "relative_saturation": not defect.startswith("missing"),
        }
        for defect in DEFECTS[name]
    ]


def _save_png(path: Path, pixels: np.ndarray) -> None:  # [H, W, 3] uint8
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)
