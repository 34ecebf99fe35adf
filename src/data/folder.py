"""Folders in the layout of MVTec AD: one object's folder, or a folder of objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from src.data.dataset import Defect, InspectionDataset, Sample, read_mask
from src.data.layout import absolute_root, read_samples


class FolderDataset(InspectionDataset):
    """`train/good`, `test/{good,<defect>}`, `ground_truth/<defect>/<stem>_mask.png`.

    `root` is the folder of one object, or holds several; an object has its folder's name.
    An optional metadata.csv, in the object's folder or in `root`, has a column `path` relative to
    itself; its `mask` column names the mask (empty: ground truth unknown), and all others become
    `Sample.metadata`. Raises `DataError` where the folders are not as described.
    """

    def __init__(
        self,
        root: str | Path,
        objects: str | Sequence[str] | None = None,
        split: str = "train",
    ) -> None:
        folder = absolute_root(root)
        super().__init__(folder.name, folder, read_samples(folder, objects, split, _masks))

    def read_defects(self, sample: Sample) -> list[Defect]:
        """One defect a connected component, saturating at its area: AU-sPRO is then AUPRO."""
        masks = [read_mask(path) > 0 for path in sample.masks]
        return [defect for mask in masks for defect in components(mask)]


def components(mask: np.ndarray) -> list[Defect]:  # mask [H, W] bool
    """The 8-connected components of a mask, each saturating at its own area."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    parts = [labels == number for number in range(1, count + 1)]
    return [Defect(part, float(part.sum())) for part in parts]


def _masks(folder: Path, defect: str, image: Path) -> tuple[Path, ...]:
    truth = folder / "ground_truth" / defect
    for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
        if (truth / name).is_file():
            return (truth / name,)
    return ()
