"""AutoVI (Renault Group, 2024), and other data in its layout.

<object>/train/good/0001.png
<object>/test/{good,<defect>}/0001.png
<object>/ground_truth/<defect>/0001/*.png     one mask per defect
<object>/defects_config.json                  the meaning of each pixel value of a mask
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.dataset import DataError, Defect, InspectionDataset, Sample, read_mask
from src.data.layout import absolute_root, list_images, read_samples


class AutoVIDataset(InspectionDataset):
    """Images of some objects in the AutoVI layout, at most three folders below `root`.

    `objects` is a list of names, a comma-separated string, or None or "all" for every object. An
    optional metadata.csv beside an object's `train` has a column `path` relative to itself; its
    other columns become `Sample.metadata`. Raises `DataError` for any other layout.
    """

    def __init__(
        self,
        root: str | Path = "/data/autovi",
        objects: str | Sequence[str] | None = ("engine_wiring",),
        split: str = "train",
        name: str = "autovi",
    ) -> None:
        folder = absolute_root(root)
        super().__init__(name, folder, read_samples(folder, objects, split, _find_masks))

    def read_defects(self, sample: Sample) -> list[Defect]:
        """Decode one defect per mask file, saturating as defects_config.json defines.

        Empty masks are skipped. Raises `DataError` for a missing defects_config.json, and for a
        mask without exactly one pixel value that has an entry there.
        """
        saturations = read_saturations(sample.path.parents[2])
        defects = [_read_defect(path, saturations) for path in sample.masks]
        return [defect for defect in defects if defect is not None]


@dataclass(frozen=True)
class Saturation:
    """The overlap that counts as full detection of one kind of defect."""

    threshold: float  # a fraction of the defect area if relative, else pixels
    relative: bool

    def area(self, defect_area: int) -> float:
        """Return the saturation area in pixels, as the MVTec LOCO AD and AutoVI evaluators do.

        Relative: threshold × area, rounded down, but at least one pixel (the evaluators would
        divide by zero). Absolute: the smaller of threshold and area.
        """
        if self.relative:
            return float(max(1, int(self.threshold * defect_area)))
        return float(min(self.threshold, defect_area))


def read_saturations(folder: Path) -> dict[int, Saturation]:
    """Return the saturation of each pixel value, from defects_config.json in an object folder.

    Raises `DataError` for a missing or malformed file.
    """
    path = folder / "defects_config.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist, but the masks of {folder.name} need it; add it")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {int(entry["pixel_value"]): _parse_saturation(entry) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; expected a list of {{defect_name, "
            "pixel_value (1-255), saturation_threshold, relative_saturation}}"
        ) from error


def _parse_saturation(entry: dict[str, Any]) -> Saturation:
    threshold = float(entry["saturation_threshold"])
    relative = bool(entry["relative_saturation"])
    if not threshold > 0 or (relative and threshold > 1):
        raise ValueError(f"saturation_threshold {threshold} of pixel value {entry['pixel_value']}")
    return Saturation(threshold, relative)


def _read_defect(path: Path, saturations: dict[int, Saturation]) -> Defect | None:
    pixels = read_mask(path)  # [H, W] uint8
    values = [int(value) for value in np.unique(pixels) if value > 0]
    if not values:
        return None
    if len(values) > 1:
        raise DataError(f"mask {path} has the values {values[:5]}; use one value, and 0 elsewhere")
    if values[0] not in saturations:
        raise DataError(
            f"mask {path} has the value {values[0]}, but defects_config.json of its object has "
            f"entries for {sorted(saturations)} only; add one"
        )
    mask = pixels > 0
    return Defect(mask, saturations[values[0]].area(int(mask.sum())))


def _find_masks(folder: Path, defect: str, image: Path) -> tuple[Path, ...]:
    parent = folder / "ground_truth" / defect / image.stem
    return tuple(list_images(parent)) if parent.is_dir() else ()
