"""Small image trees for the data tests."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

SIZE = (6, 8)  # (H, W) of every image below, unless a test says otherwise

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def _save(path: Path, pixels: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8) if pixels is None else pixels).save(path)
    return path


def _block(rows: slice, columns: slice, value: int = 255) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = value
    return mask


def _autovi_object(folder: Path) -> Path:
    for name in ("train/good/0000", "train/good/0001", "test/good/0000", "test/dent/0000"):
        _save(folder / f"{name}.png")
    _save(folder / "test/dent/0001.png")  # without a mask
    truth = folder / "ground_truth/dent/0000"
    rgba = np.repeat(_block(slice(0, 2), slice(0, 5), 200)[..., None], 4, axis=2)
    rgba[..., 3] = 255  # opaque everywhere: alpha is not ground truth
    _save(truth / "0000.png", rgba)
    _save(truth / "0001.png", _block(slice(4, 6), slice(0, 2), 100))
    relative = {"pixel_value": 200, "saturation_threshold": 0.35, "relative_saturation": True}
    absolute = {"pixel_value": 100, "saturation_threshold": 3, "relative_saturation": False}
    entries = [{"defect_name": "dent"} | relative, {"defect_name": "chip"} | absolute]
    (folder / "defects_config.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def save():
    """save(path, pixels=black) writes an image and its folders."""
    return _save


@pytest.fixture
def block():
    """block(rows, columns, value=255) is a mask with one filled rectangle."""
    return _block


@pytest.fixture
def autovi_object():
    """autovi_object(folder) writes an object: test/dent/0000 has two masks, 0001 has none."""
    return _autovi_object
