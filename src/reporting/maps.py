"""Anomaly maps as files and as pictures, always on a scale that other images share.

A scale of each image's own would make the maxima of all images alike, and with them the image
score that a reader of the files computes. So one map alone is written in a fixed unit, and
`save_maps` writes a run's maps on one scale, in the layout of AutoVI's official evaluator.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from src.data.dataset import Sample

LEVELS = 65535  # of a 16-bit PNG
UNIT = 1 / 512  # of distance, a grey level of a map that is saved without a scale
UNIT_SCALE = (0.0, LEVELS * UNIT)  # 0 to 128, nearly
OPACITY = 0.7  # of the heat map where it is hottest
OUTLINE = (0, 255, 255)  # RGB


def save_anomaly_map(
    anomaly_map: np.ndarray, path: str | Path, scale: tuple[float, float] | None = None
) -> None:
    """Writes one map, [H, W]; the suffix of `path` says how, and missing folders are made.

    .png: 16-bit greyscale. With `scale` (low, high) a grey level is
    round(65535 * (m - low) / (high - low)), and values outside are clipped. Without it a grey
    level is 1/512 of distance, the same for every map; values outside [0, 128) are refused,
    since clipping them would make different images' maxima equal. .tif, .tiff, .npy: float32
    as it is. Raises ValueError for another suffix, shape or scale, and for values not finite.
    """
    path, anomaly_map = Path(path), _checked(anomaly_map)
    kind = path.suffix.lower()
    if kind not in (".png", ".tif", ".tiff", ".npy"):
        raise ValueError(f"cannot tell the format of {path}; name it .png, .tif, .tiff or .npy")
    if kind == ".png":
        if scale is None:
            _check_range(anomaly_map, path)
        levels = LEVELS * _relative(anomaly_map, scale or UNIT_SCALE)
        anomaly_map = np.rint(levels).astype(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == ".npy":
        np.save(path, anomaly_map, allow_pickle=False)
    else:
        Image.fromarray(anomaly_map).save(path)


def save_maps(
    root: str | Path, maps: Sequence[np.ndarray], samples: Sequence["Sample"]
) -> tuple[float, float]:
    """Writes a run's maps to `root`/maps/<object>/test/<defect>/<id>.png, all on one scale.

    maps: one [H, W] a sample; a sequence that loads at indexing is read twice. The scale, from
    the smallest value of all maps to the largest, is returned and written to maps/scale.json.
    Raises ValueError where two samples would share a file, and as `save_anomaly_map`.
    """
    if len(maps) != len(samples):
        raise ValueError(f"{len(maps)} maps for {len(samples)} samples")
    folder = Path(root) / "maps"
    paths = _map_paths(folder, samples)
    scale = _common_scale(maps)
    for i, path in enumerate(paths):
        save_anomaly_map(maps[i], path, scale)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"low": scale[0], "high": scale[1], "dtype": "uint16"}
    (folder / "scale.json").write_text(json.dumps(content, indent=2) + "\n")
    return scale


def overlay(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    low: float,
    high: float,
    outline: np.ndarray | None = None,
) -> np.ndarray:
    """The map as heat over its image, [H, W, 3] uint8: clear at `low`, hottest at `high`.

    image: [3, H, W] float in [0, 1] or [H, W, 3] uint8; anomaly_map: [H, W]; outline: [H, W]
    bool, a ground truth whose border is drawn as a line. Give all images of a comparison the
    same `low` and `high`. Raises ValueError for sizes that differ.
    """
    picture = _picture(image)
    heat = _relative(_checked(anomaly_map), (low, high))
    _check_size("map", heat, picture)
    alpha = OPACITY * heat[:, :, None]
    colours = 255 * colormaps["inferno"](heat)[:, :, :3]
    blended = np.rint((1 - alpha) * picture + alpha * colours).astype(np.uint8)
    if outline is not None:
        _check_size("outline", outline, picture)
        mask = outline.astype(bool)
        blended[mask & ~ndimage.binary_erosion(mask)] = OUTLINE
    return blended


def _relative(anomaly_map: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Position between low and high, clipped to [0, 1]; float64."""
    low, high = scale
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"a scale is (low, high) with low < high, got ({low}, {high})")
    return np.clip((anomaly_map.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def _common_scale(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """(smallest, largest) of all maps' values; one unit wide where nothing varies."""
    if not len(maps):
        return 0.0, 1.0
    ends = [(float(m.min()), float(m.max())) for m in map(_checked, maps)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return low, high if high > low else low + 1.0


def _map_paths(folder: Path, samples: Sequence["Sample"]) -> list[Path]:
    taken: dict[Path, Sample] = {}
    for sample in samples:
        path = folder / sample.object / "test" / sample.defect / f"{sample.path.stem}.png"
        if path in taken:
            raise ValueError(
                f"{taken[path].path} and {sample.path} would both write {path}; "
                "give the images of one defect folder names of their own"
            )
        taken[path] = sample
    return list(taken)


def _picture(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] float64 in 0..255."""
    image = np.asarray(image)
    if image.ndim == 3 and image.dtype == np.uint8 and image.shape[2] == 3:
        return image.astype(np.float64)
    if image.ndim == 3 and np.issubdtype(image.dtype, np.floating) and image.shape[0] == 3:
        return 255 * np.clip(image.transpose(1, 2, 0).astype(np.float64), 0.0, 1.0)
    raise ValueError(
        f"expected an image [3, H, W] float or [H, W, 3] uint8, got {image.dtype} {image.shape}"
    )


def _checked(anomaly_map: np.ndarray) -> np.ndarray:
    """[H, W] float32."""
    anomaly_map = np.asarray(anomaly_map, dtype=np.float32)
    if anomaly_map.ndim != 2 or not anomaly_map.size:
        raise ValueError(f"an anomaly map is [H, W], got shape {anomaly_map.shape}")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("an anomaly map holds values that are not finite (NaN or infinity)")
    return anomaly_map


def _check_range(anomaly_map: np.ndarray, path: Path) -> None:
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    if low < UNIT_SCALE[0] or high > UNIT_SCALE[1]:
        raise ValueError(
            f"values {low:g} to {high:g} do not fit {path.name} in units of 1/512 (0 to 128): "
            "pass one scale=(low, high) for all maps, or save as .tif or .npy"
        )


def _check_size(what: str, array: np.ndarray, picture: np.ndarray) -> None:
    if array.shape != picture.shape[:2]:
        raise ValueError(f"the {what} is {array.shape}, but the image {picture.shape[:2]}")
