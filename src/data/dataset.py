"""Inspection images and their ground truth: the types that every dataset shares."""

import copy
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.utils.data import Dataset

from src.errors import UserError

# Pillow raises these for a file that is missing, truncated, too large, or in an unknown format.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class DataError(UserError, ValueError):
    """The data on disk do not match the request; the message says where and what to do."""


@dataclass(frozen=True)
class Sample:
    """One image: its path, its label and the paths of its masks."""

    path: Path  # absolute
    key: str  # POSIX path relative to the data root; unique within a dataset
    object: str
    split: str  # "train" or "test"
    label: int  # 0 normal, 1 anomalous
    defect: str  # "good", or the name of the defect folder
    masks: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class Defect:
    """One ground-truth defect of an image: the unit that sPRO averages over (MVTec LOCO AD)."""

    mask: np.ndarray  # [H, W] bool
    saturation: float  # pixels, > 0: an overlap of this size counts as full detection


class InspectionDataset(Dataset[tuple[torch.Tensor, int, str]]):
    """Samples that decode to `(image [3, H, W] float32 in [0, 1], label, path)`.

    Images keep their original size: the model resizes and normalises them. Images are decoded in
    `__getitem__`, so a dataset is cheap to build, to subset and to pickle into workers.
    """

    def __init__(self, name: str, root: Path, samples: Sequence[Sample]) -> None:
        self.name = name
        self.root = root
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int, str]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, str]:
        sample = self.samples[index]
        return read_image(sample.path), sample.label, str(sample.path)

    @property
    def objects(self) -> list[str]:
        """Names of the objects in this dataset, sorted."""
        return sorted({sample.object for sample in self.samples})

    def select(self, indices: Iterable[int]) -> Self:
        """Return a dataset of the same type with the samples at `indices`, in that order."""
        subset = copy.copy(self)
        subset.samples = [self.samples[index] for index in indices]
        return subset

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (H, W) in pixels, read from the file header."""
        path = self.samples[index].path
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except UNREADABLE as error:
            raise DataError(f"cannot read image {path}: {error}") from error

    def defects(self, index: int) -> list[Defect] | None:
        """Return the defects of an image: `[]` for a normal image, None for unknown ground truth.

        Ground truth is unknown for an anomalous image without masks or with empty masks only.

        Raises `DataError` for a mask that cannot be read or differs in size from its image.
        """
        sample = self.samples[index]
        if sample.label == 0:
            return []
        if not sample.masks:
            return None
        defects = self.read_defects(sample)
        for defect in defects:
            if defect.mask.shape != self.image_size(index):
                raise DataError(
                    f"{sample.path} is {self.image_size(index)} pixels (H, W), but its mask is "
                    f"{defect.mask.shape}: redraw {', '.join(path.name for path in sample.masks)} "
                    "at the size of the image"
                )
        return defects or None

    def read_defects(self, sample: Sample) -> list[Defect]:
        """Decode the masks of an anomalous sample into defects.

        Each 8-connected component is one defect and saturates at its own area, so that AU-sPRO
        equals AUPRO. A layout with its own rule overrides this method.
        """
        defects = []
        for path in sample.masks:
            labels, count = ndimage.label(read_mask(path) > 0, structure=np.ones((3, 3)))
            components = [labels == number for number in range(1, count + 1)]
            defects += [Defect(component, float(component.sum())) for component in components]
        return defects


def read_image(path: Path) -> torch.Tensor:  # [3, H, W] float32
    """Decode an image file to RGB in [0, 1].

    Greyscale is repeated over the channels and alpha is dropped; 16-bit greyscale is divided by
    65535. EXIF orientation is ignored, because masks are drawn on the pixels as stored.

    Raises `DataError`, naming the file, if it cannot be read.
    """
    pixels, white = _decode(path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    # fill one float tensor: threads that decode in parallel contend for every other allocation
    image = torch.empty(3, *pixels.shape[:2])
    return image.copy_(torch.from_numpy(pixels).permute(2, 0, 1)).div_(white)


def read_mask(path: Path) -> np.ndarray:  # [H, W] uint8
    """Decode a mask file to the maximum over its colour channels, or to its palette indices.

    Raises `DataError`, naming the file, if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("L", "P"):
                return np.array(image, dtype=np.uint8)
            if image.mode in ("1", "LA"):
                return np.array(image.convert("L"))
            return np.array(image.convert("RGB")).max(axis=2)
    except UNREADABLE as error:
        raise DataError(f"cannot read mask {path}: {error}") from error


def _decode(path: Path) -> tuple[np.ndarray, int]:  # [H, W] or [H, W, 3]; value of white
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                pixels = np.array(image)
                if pixels.min() < 0 or pixels.max() > 65535:
                    raise ValueError("more than 16 bits per pixel; convert it to 8 or 16 bits")
                return pixels.astype(np.int32), 65535
            if image.mode == "F":
                raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
            if image.mode == "P":  # converting to RGBA first handles palettes with transparency
                return np.array(image.convert("RGBA").convert("RGB")), 255
            return np.array(image.convert("RGB")), 255
    except UNREADABLE as error:
        raise DataError(f"cannot read image {path}: {error}") from error
