"""AutoVI (Renault Group, 2024), and any other objects kept in its layout.

<object>/train/good/0001.png
<object>/test/{good,<defect>}/0001.png
<object>/ground_truth/<defect>/0001/*.png     one mask a defect
<object>/defects_config.json                  what a mask's pixel value means
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.dataset import DataError, Defect, InspectionDataset, Sample, read_mask
from src.data.layout import absolute_root, list_images, read_samples


class AutoVIDataset(InspectionDataset):
    """The images of some objects in the AutoVI layout; archives may be unpacked twice nested.

    `objects` is a list of names, a comma-separated string, or None or "all" for every object
    found. An optional metadata.csv beside an object's `train`, with a column `path` relative to
    itself, gives `Sample.metadata`. Raises `DataError` where the folders are not as described.
    """

    def __init__(
        self,
        root: str | Path = "/data/autovi",
        objects: str | Sequence[str] | None = ("engine_wiring",),
        split: str = "train",
        name: str = "autovi",
    ) -> None:
        folder = absolute_root(root)
        super().__init__(name, folder, read_samples(folder, objects, split, _masks))

    def read_defects(self, sample: Sample) -> list[Defect]:
        """One defect a mask file, saturating as defects_config.json says (an empty mask: none).

        Raises `DataError` where the file or its entry for a mask's pixel value is missing.
        """
        saturations = read_saturations(sample.path.parents[2])
        found = [_read_defect(path, saturations) for path in sample.masks]
        return [defect for defect in found if defect is not None]


@dataclass(frozen=True)
class Saturation:
    """From which overlap a kind of defect counts as found."""

    threshold: float  # a fraction of the defect's area if relative, else pixels
    relative: bool

    def area(self, defect_area: int) -> float:
        """The saturation area in pixels, as the evaluator of MVTec LOCO AD and AutoVI has it.

        Relative: threshold × area, rounded down (but at least one pixel, where the evaluator
        would divide by zero). Absolute: the threshold, or the area where that is smaller.
        """
        if self.relative:
            return float(max(1, int(self.threshold * defect_area)))
        return float(min(self.threshold, defect_area))


def read_saturations(folder: Path) -> dict[int, Saturation]:
    """Pixel value -> saturation, from an object folder's defects_config.json."""
    path = folder / "defects_config.json"
    if not path.is_file():
        raise DataError(f"the masks of {folder.name} need {path}, which does not exist")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {int(entry["pixel_value"]): _saturation(entry) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: {type(error).__name__}: {error}; expected a list of {{defect_name, "
            "pixel_value (1-255), saturation_threshold, relative_saturation}}"
        ) from error


def _saturation(entry: dict[str, Any]) -> Saturation:
    threshold = float(entry["saturation_threshold"])
    relative = bool(entry["relative_saturation"])
    if not threshold > 0 or (relative and threshold > 1):
        raise ValueError(f"saturation_threshold {threshold} of value {entry['pixel_value']}")
    return Saturation(threshold, relative)


def _read_defect(path: Path, saturations: dict[int, Saturation]) -> Defect | None:
    pixels = read_mask(path)  # [H, W] uint8
    values = [int(value) for value in np.unique(pixels) if value > 0]
    if not values:
        return None
    if len(values) > 1:
        raise DataError(f"mask {path} has the values {values[:5]}; expected one, and 0 elsewhere")
    if values[0] not in saturations:
        raise DataError(
            f"mask {path} has the value {values[0]}, for which defects_config.json of its object "
            f"has no entry; entries: {sorted(saturations)}"
        )
    mask = pixels > 0
    return Defect(mask, saturations[values[0]].area(int(mask.sum())))


def _masks(folder: Path, defect: str, image: Path) -> tuple[Path, ...]:
    truth = folder / "ground_truth" / defect / image.stem
    return tuple(list_images(truth)) if truth.is_dir() else ()
