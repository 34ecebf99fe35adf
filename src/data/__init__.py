"""Inspection datasets and their partitions among clients."""

from collections.abc import Sequence
from pathlib import Path

from src.data.autovi import AutoVIDataset
from src.data.dataset import DataError, Defect, InspectionDataset, Sample
from src.data.folder import FolderDataset
from src.data.synthetic.dataset import write_synthetic
from src.data.visa import VisADataset

__all__ = [
    "AutoVIDataset",
    "DataError",
    "Defect",
    "FolderDataset",
    "InspectionDataset",
    "Sample",
    "VisADataset",
    "open_dataset",
    "write_synthetic",
]


def open_dataset(
    kind: str, root: str | Path, objects: str | Sequence[str] | None, split: str
) -> InspectionDataset:
    """Open one split of a dataset of kind autovi, folder, visa or synthetic (`write_synthetic`).

    `objects` is a list of names, a comma-separated string, or None or "all" for every object.
    Raises `DataError` for an unknown kind, and for a root without the requested data.
    """
    if kind == "folder":
        return FolderDataset(root, objects, split)
    if kind in ("autovi", "synthetic"):
        return AutoVIDataset(root, objects, split, name=kind)
    if kind == "visa":
        return VisADataset(root, objects, split)
    raise DataError(f"unknown data.kind {kind!r}: choose autovi, folder, synthetic or visa")
