"""Patch features of a dataset: prepare, run the backbone, one grid of features an image.

On a GPU, images run in batches under autocast, decoded by worker processes. On a CPU, each image
runs by itself on one thread, several at a time: as quick there, and an image's features are then
the same to the bit whatever its neighbours in the batch and however many cores there are.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from src.models.features import FeatureExtractor, aggregate_features

Size = tuple[int, int]
Prepared = tuple[Tensor, Size]  # a network input, and the image's size before
INTERPOLATION = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


@dataclass(frozen=True)
class PatchGrid:
    """Patch features of one image.

    Attributes:
        features: [h, w, C], on the extractor's device (float16 where read from a cache).
        image_size: (H, W) of the image as it came.
    """

    features: Tensor
    image_size: Size


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the network's input.

    Attributes:
        size: (H, W) to resize to; None keeps the image's own size.
        crop: side of a centre crop after that; None takes the whole.
        interpolation: bilinear or bicubic, as the backbone was trained.
    """

    size: Size | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] in [0, 1] -> the network's input [3, H', W'] in [0, 1]."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image must be [3, H, W], not {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"an image must be of floats in [0, 1], not of {image.dtype}")
        image = image.float()
        if self.size is not None and tuple(image.shape[1:]) != self.size:
            mode = INTERPOLATION[self.interpolation]
            image = tvf.resize(image, list(self.size), mode, antialias=True).clamp_(0, 1)
        return image if self.crop is None else tvf.center_crop(image, [self.crop, self.crop])

    def frames(self, image_size: Size) -> tuple[Size, Size]:
        """(size after resizing, size after cropping) of an image of the given size."""
        resized = self.size or image_size
        return resized, resized if self.crop is None else (self.crop, self.crop)


class _Prepared(Dataset):
    """Items as (network input [3, H', W'], original size); runs in worker processes."""

    def __init__(self, dataset: Any, prepare: Preparation) -> None:
        self.dataset, self.prepare = dataset, prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Prepared:
        return _prepared(self.dataset[i], self.prepare)


def extract(
    extractor: FeatureExtractor,
    dataset: Iterable,
    prepare: Preparation,
    *,
    patch_size: int = 3,
    batch_size: int = 32,
    workers: int = 0,
) -> Iterator[PatchGrid]:
    """Patch grids of a dataset's images, in order.

    Args:
        extractor: the backbone, on the device to run on.
        dataset: items are images [3, H, W] in [0, 1], or tuples that begin with one. Needs
            `__len__` and `__getitem__` for worker processes.
        prepare: resizing and cropping.
        patch_size: side of the averaged neighbourhood.
        batch_size: images a batch on a GPU; images of unequal size go into separate batches.
        workers: processes that decode and prepare; 0 does it here.
    """
    if workers and hasattr(dataset, "__getitem__"):
        source = _Prepared(dataset, prepare)
        items: Iterable[Prepared] = DataLoader(
            source, batch_size=None, num_workers=workers, collate_fn=_as_it_is
        )
    else:
        items = (_prepared(item, prepare) for item in dataset)
    device = extractor.mean.device
    if device.type == "cpu":
        yield from _on_cpu(extractor, items, patch_size)
    else:
        yield from _on_gpu(extractor, items, patch_size, batch_size, device)


def _as_it_is(item: Any) -> Any:
    return item


def _prepared(item: object, prepare: Preparation) -> Prepared:
    image = torch.as_tensor(item[0] if isinstance(item, tuple | list) else item)
    return prepare(image), (image.shape[-2], image.shape[-1])


def _grids(extractor: FeatureExtractor, images: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, h, w, C], on the grid of the first layer."""
    maps = extractor(images)
    size = next(iter(maps.values())).shape[-2:]
    return aggregate_features(maps, tuple(size), patch_size).permute(0, 2, 3, 1).contiguous()


def _on_cpu(
    extractor: FeatureExtractor, items: Iterable[Prepared], patch_size: int
) -> Iterator[PatchGrid]:
    extractor.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def one(item: Prepared) -> PatchGrid:
        image, size = item
        batch = image[None].contiguous(memory_format=torch.channels_last)
        return PatchGrid(_grids(extractor, batch, patch_size)[0].clone(), size)

    with one_thread_each() as threads:
        width = min(threads, os.cpu_count() or 1)
        with ThreadPoolExecutor(width, "extract", torch.set_num_threads, (1,)) as pool:
            source = iter(items)
            waiting = deque(pool.submit(one, item) for item in islice(source, 2 * width))
            while waiting:
                grid = waiting.popleft().result()
                waiting.extend(pool.submit(one, item) for item in islice(source, 1))
                yield grid


class _Caller(threading.local):
    """What torch's thread count was in this thread before the extractions that now run in it."""

    running = 0
    threads = 1


_caller = _Caller()


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let every torch call inside run on the thread that makes it; gives the count there was.

    Extractions may overlap and end in any order: the last to end restores the count.
    """
    if not _caller.running:
        _caller.threads = torch.get_num_threads()
        torch.set_num_threads(1)
    _caller.running += 1
    try:
        yield _caller.threads
    finally:
        _caller.running -= 1
        if not _caller.running:
            torch.set_num_threads(_caller.threads)


def _on_gpu(
    extractor: FeatureExtractor,
    items: Iterable[Prepared],
    patch_size: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[PatchGrid]:
    for batch in _batches(items, batch_size):
        images = torch.stack([image for image, _ in batch])
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            grids = _grids(extractor, images.to(device, non_blocking=True), patch_size).float()
        for grid, (_, size) in zip(grids, batch, strict=True):
            yield PatchGrid(grid, size)


def _batches(items: Iterable[Prepared], batch_size: int) -> Iterator[list[Prepared]]:
    """Runs of consecutive images of one shape, at most `batch_size` long."""
    batch: list[Prepared] = []
    for item in items:
        if batch and (len(batch) == batch_size or item[0].shape != batch[0][0].shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
