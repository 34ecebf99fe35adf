"""Images under inspection and their ground truth: the types that all datasets here share."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from src.errors import UserError

# What Pillow raises for a file that is missing, truncated, of no known format, or far too large.
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
    """The data on disk are not what was asked for; the message says where and what to do."""


@dataclass(frozen=True)
class Sample:
    """One image: where it is, what it shows, and where its ground truth lies."""

    path: Path  # absolute
    key: str  # posix path relative to the data root; unique in a dataset
    object: str
    split: str  # "train" or "test"
    label: int  # 0 normal, 1 anomalous
    defect: str  # "good", or the name of the defect's folder
    masks: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class Defect:
    """One ground-truth defect of an image: the unit over which sPRO is averaged."""

    mask: np.ndarray  # [H, W] bool
    saturation: float  # pixels, > 0: the overlap from which the defect counts as found


class InspectionDataset(Dataset[tuple[torch.Tensor, int, str]]):
    """Samples that decode to `(image [3, H, W] float32 in [0, 1], label, path)`.

    Images keep their own size: resizing and normalisation belong to the model. Decoding happens
    in `__getitem__`, so a dataset is cheap to build, to select from and to pickle into workers.
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
        """The names of the objects present, sorted."""
        return sorted({sample.object for sample in self.samples})

    def select(self, indices: Iterable[int]) -> InspectionDataset:
        """The same kind of dataset with the samples at `indices`, in that order."""
        chosen = copy.copy(self)
        chosen.samples = [self.samples[index] for index in indices]
        return chosen

    def image_size(self, index: int) -> tuple[int, int]:
        """(H, W) in pixels, read from the file's header."""
        path = self.samples[index].path
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except UNREADABLE as error:
            raise DataError(f"cannot read image {path}: {error}") from error

    def defects(self, index: int) -> list[Defect] | None:
        """The defects of an image: `[]` if it is normal, None if its ground truth is unknown.

        An anomalous image whose masks are all empty has a defect that nobody marked: unknown.

        Raises `DataError` for a mask that cannot be read or differs in size from its image.
        """
        sample = self.samples[index]
        if sample.label == 0:
            return []
        if not sample.masks:
            return None
        found = self.read_defects(sample)
        for defect in found:
            if defect.mask.shape != self.image_size(index):
                raise DataError(
                    f"ground truth of {sample.path} is {defect.mask.shape} pixels (H, W), "
                    f"the image {self.image_size(index)}; masks: {_names(sample.masks)}"
                )
        return found or None

    def read_defects(self, sample: Sample) -> list[Defect]:
        """Turn the mask files of an anomalous sample into defects; each layout has its own way."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its masks mean")


def read_image(path: Path) -> torch.Tensor:  # [3, H, W] float32
    """Decode an image file to RGB in [0, 1]; greyscale is repeated, an alpha channel dropped.

    16-bit greyscale is divided by 65535. An EXIF orientation is not applied: masks are drawn on
    the pixels as they are stored. Raises `DataError`, naming the file, for one that cannot be read.
    """
    pixels, white = _decode(path)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    # into one float tensor at once: what is allocated on the way is what several threads wait for
    image = torch.empty(3, *pixels.shape[:2])
    return image.copy_(torch.from_numpy(pixels).permute(2, 0, 1)).div_(white)


def read_mask(path: Path) -> np.ndarray:  # [H, W] uint8
    """Decode a mask file: the largest of its colour channels, or its palette's indices.

    Raises `DataError`, naming the file, for one that cannot be read.
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


def _decode(path: Path) -> tuple[np.ndarray, int]:  # [H, W] or [H, W, 3], and the value of white
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                return _sixteen_bits(np.array(image)), 65535
            if image.mode == "F":
                raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
            if image.mode == "P":  # a palette's transparency survives only a conversion to RGBA
                return np.array(image.convert("RGBA").convert("RGB")), 255
            return np.array(image.convert("RGB")), 255
    except UNREADABLE as error:
        raise DataError(f"cannot read image {path}: {error}") from error


def _sixteen_bits(pixels: np.ndarray) -> np.ndarray:  # [H, W] integers
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("more than 16 bits a pixel; convert it to 8 or 16 bits")
    return pixels.astype(np.int32)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
