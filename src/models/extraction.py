"""Extracts the patch features of a dataset: prepare images, run the backbone, join the layers.

On a GPU, images run in batches with bfloat16 convolutions, and features are in half precision;
threads decode the next images meanwhile. On a CPU, each image runs alone on one thread, several in
parallel. This is as fast there, and an image's features are then identical to the bit, whatever the
rest of the dataset and the number of cores.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from src.models.features import FeatureExtractor, Size, aggregate_features

Item = TypeVar("Item")
Result = TypeVar("Result")
Prepared = tuple[Tensor, Size]  # a network input, and the size of its image
Stack = tuple[Tensor, list[Size]]  # network inputs of one shape, and the sizes of their images
CHUNK = 8  # images that a thread decodes and stacks at a time
BATCH_PIXELS = 128 * 224 * 224  # pixels per batch on a GPU by default
BRIGHTNESS, CONTRAST = 0.45, 0.15  # mean and deviation of typical photographs
MIN_SIDE, SIDE_STEP = 32, 8  # scaled sides are at least 32 pixels, and multiples of 8


@dataclass(frozen=True)
class PatchGrid:
    """Patch features of one image."""

    features: Tensor  # [h, w, C], float32 from a CPU, float16 from a GPU or a cache
    image_size: Size  # (H, W) of the original image


@dataclass(frozen=True)
class PatchGrids:
    """Patch features of images with grids of one shape; iterates over the images."""

    features: Tensor  # [B, h, w, C]
    image_sizes: list[Size]

    def __iter__(self) -> Iterator[PatchGrid]:
        return map(PatchGrid, self.features, self.image_sizes)


class Viewport(NamedTuple):
    """What the network sees of an image."""

    resized: Size  # (H, W) after resizing
    cropped: Size  # (H, W) of the centre crop of that, the network input


@dataclass(frozen=True)
class Preparation:
    """Turns an image into a network input."""

    size: Size | None = None  # (H, W) to resize to; None keeps the image's own size
    crop: int | None = None  # side of a centre crop after resizing; None keeps the whole image
    interpolation: str = "bilinear"  # or "bicubic", as in the backbone's training
    scale: float = 1.0  # of the image's own sides, if size is None
    normalize_brightness: bool = False  # give all images the same brightness and contrast

    def __call__(self, image: Tensor) -> Tensor:
        """Turn [3, H, W] in [0, 1] into the network input [3, H', W'] in [0, 1]."""
        # imported here because it takes three seconds, which the command line need not wait for
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as tvf

        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image must be [3, H, W], not {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"an image must be of floats in [0, 1], not of {image.dtype}")
        image = image.float()
        size = (image.shape[1], image.shape[2])
        resized = self.viewport(size).resized
        if resized != size:
            mode = InterpolationMode(self.interpolation)
            image = tvf.resize(image, list(resized), mode, antialias=True).clamp_(0, 1)
        if self.normalize_brightness:
            deviation = image.std(correction=0) + 1e-3  # avoids division by zero
            image = ((image - image.mean()) / deviation * CONTRAST + BRIGHTNESS).clamp_(0, 1)
        return image if self.crop is None else tvf.center_crop(image, [self.crop, self.crop])

    def viewport(self, image_size: Size) -> Viewport:
        """What the network sees of an image of this size."""
        resized = self.size or image_size
        if self.scale != 1:
            height, width = (SIDE_STEP * round(self.scale * x / SIDE_STEP) for x in image_size)
            resized = max(MIN_SIDE, height), max(MIN_SIDE, width)
        return Viewport(resized, resized if self.crop is None else (self.crop, self.crop))


def extract(
    extractor: FeatureExtractor,
    dataset: Iterable,
    prepare: Preparation,
    *,
    patch_size: int = 3,
    batch_size: int | None = None,
    workers: int = 0,
) -> Iterator[PatchGrids]:
    """Extract the patch grids of a dataset's images in order, in batches (one image on a CPU).

    Args:
        extractor: the backbone, on the device to run on.
        dataset: items are images [3, H, W] in [0, 1], or tuples that begin with one. `workers`
            needs `__len__` and `__getitem__`.
        prepare: turns images into network inputs.
        patch_size: side of the neighbourhood that is averaged.
        batch_size: images per batch on a GPU; 6.4 megapixels by default. Network inputs of
            different shapes go into separate batches.
        workers: threads that decode and prepare images for a GPU; 0 uses the caller's thread.

    Raises:
        ValueError: features exceed the range of half precision, on a GPU.
    """
    extractor.to(memory_format=torch.channels_last)
    inputs = (_prepare(item, prepare) for item in dataset)
    if extractor.mean.device.type == "cpu":
        return _extract_on_cpu(extractor, inputs, patch_size)
    read_ahead = workers and hasattr(dataset, "__getitem__")
    stacks = _read_ahead(dataset, prepare, workers) if read_ahead else _stack(inputs)
    return _extract_on_gpu(extractor, stacks, patch_size, batch_size)


def group_runs(
    items: Iterable[Item], key: Callable[[Item], Hashable], most: int
) -> Iterator[list[Item]]:
    """Group consecutive items of equal key, at most `most` per group."""
    for _, group in groupby(items, key):
        while run := list(islice(group, most)):
            yield run


def _prepare(item: object, prepare: Preparation) -> Prepared:
    image = torch.as_tensor(item[0] if isinstance(item, tuple | list) else item)
    return prepare(image), (image.shape[-2], image.shape[-1])


def _stack(items: Iterable[Prepared]) -> Iterator[Stack]:
    """Stack consecutive network inputs of one shape in memory that a GPU copies from quickly."""
    for run in group_runs(items, lambda item: item[0].shape, CHUNK):
        stack = torch.empty(len(run), *run[0][0].shape, pin_memory=torch.cuda.is_available())
        torch.stack([image for image, _ in run], out=stack)
        yield stack, [size for _, size in run]


def _read_ahead(dataset: Any, prepare: Preparation, workers: int) -> Iterator[Stack]:
    """Decode, prepare and stack images in threads, in order, a few chunks ahead."""

    def read(start: int) -> list[Stack]:
        indices = range(start, min(start + CHUNK, len(dataset)))
        return list(_stack(_prepare(dataset[i], prepare) for i in indices))

    with single_threaded_torch():
        for stacks in _map_ahead(workers, read, range(0, len(dataset), CHUNK)):
            yield from stacks


def _map_ahead(
    threads: int, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """`function` of each item in order; threads work on two items each in advance."""
    pool = ThreadPoolExecutor(threads, "extract", torch.set_num_threads, (1,))
    try:
        futures = (pool.submit(function, item) for item in items)
        pending = deque(islice(futures, 2 * threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(islice(futures, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _grids(extractor: FeatureExtractor, images: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, h, w, C], on the grid of the first layer."""
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        maps = extractor(images)
    if images.is_cuda:
        maps = {layer: x.half() for layer, x in maps.items()}
    size = next(iter(maps.values())).shape[-2:]
    return aggregate_features(maps, tuple(size), patch_size).permute(0, 2, 3, 1).contiguous()


def _extract_on_cpu(
    extractor: FeatureExtractor, items: Iterable[Prepared], patch_size: int
) -> Iterator[PatchGrids]:
    @torch.inference_mode()
    def extract_one(item: Prepared) -> PatchGrids:
        image, size = item
        return PatchGrids(_grids(extractor, image[None], patch_size).clone(), [size])

    with single_threaded_torch() as threads:
        yield from _map_ahead(min(threads, os.cpu_count() or 1), extract_one, items)


class _ThreadCount(threading.local):
    running = 0  # extractions that are now running in this thread
    before = 1  # torch's thread count before them


_thread_count = _ThreadCount()


@contextmanager
def single_threaded_torch() -> Iterator[int]:
    """Run torch calls on the calling thread alone; yields the previous thread count.

    Extractions may overlap and end in any order; the last one to end restores the count.
    """
    if not _thread_count.running:
        _thread_count.before = torch.get_num_threads()
        torch.set_num_threads(1)
    _thread_count.running += 1
    try:
        yield _thread_count.before
    finally:
        _thread_count.running -= 1
        if not _thread_count.running:
            torch.set_num_threads(_thread_count.before)


def _extract_on_gpu(
    extractor: FeatureExtractor, stacks: Iterable[Stack], patch_size: int, batch_size: int | None
) -> Iterator[PatchGrids]:
    device = extractor.mean.device
    finite = torch.ones((), dtype=torch.bool, device=device)
    main, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    for batch in _batches(stacks, batch_size):
        with torch.inference_mode():
            with torch.cuda.stream(copying):  # while the network still works on the last batch
                images = torch.cat([stack.to(device, non_blocking=True) for stack, _ in batch])
                images = images.contiguous(memory_format=torch.channels_last)
            main.wait_stream(copying)
            images.record_stream(main)
            grids = _grids(extractor, images, patch_size)
            finite &= torch.isfinite(grids).all()
        yield PatchGrids(grids, [size for _, sizes in batch for size in sizes])
    if not finite:  # checked once, because the check waits for the device
        raise ValueError("patch features are not finite in half precision")


def _batches(stacks: Iterable[Stack], batch_size: int | None) -> Iterator[list[Stack]]:
    """Group consecutive stacks of one shape into batches."""
    batch: list[Stack] = []
    count = 0
    for stack, sizes in stacks:
        most = batch_size or max(1, BATCH_PIXELS // stack[0, 0].numel())
        for part in range(0, len(stack), most):
            images = stack[part : part + most]
            if batch and (count + len(images) > most or images.shape[1:] != batch[0][0].shape[1:]):
                yield batch
                batch, count = [], 0
            batch.append((images, sizes[part : part + most]))
            count += len(images)
    if batch:
        yield batch
