"""Patch features of a dataset: prepare, run the backbone, one grid of features an image.

On a GPU, images run in batches, convolutions in bfloat16, averages and features in half precision,
while threads decode the next ones. On a CPU, each image runs by itself on one thread,
several at a time: as quick there, and an image's features are then the same to the bit whatever
its neighbours in the batch and however many cores there are.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from src.models.features import FeatureExtractor, aggregate_features

Size = tuple[int, int]
Item = TypeVar("Item")
Prepared = tuple[Tensor, Size]  # a network input, and the image's size before
Stack = tuple[Tensor, list[Size]]  # network inputs of one shape, and their sizes before
CHUNK = 8  # images that a thread decodes and stacks at a time
BATCH_PIXELS = 128 * 224 * 224  # of a batch on a GPU, where no number of images is given
LIGHT, CONTRAST = 0.45, 0.15  # about those of photographs
LEAST_SIDE, STEP = 32, 8  # pixels of a side that scaling leaves, and of which they are multiples


@dataclass(frozen=True)
class PatchGrid:
    """Patch features of one image.

    Attributes:
        features: [h, w, C] on the extractor's device: float32 from a CPU, float16 from a GPU and
            from a cache.
        image_size: (H, W) of the image as it came.
    """

    features: Tensor
    image_size: Size


@dataclass(frozen=True)
class PatchGrids:
    """Patch features of images of one shape.

    Attributes:
        features: [B, h, w, C].
        image_sizes: (H, W) of each image as it came.
    """

    features: Tensor
    image_sizes: list[Size]

    def __iter__(self) -> Iterator[PatchGrid]:
        for features, size in zip(self.features, self.image_sizes, strict=True):
            yield PatchGrid(features, size)


@dataclass(frozen=True)
class Preparation:
    """How an image becomes the network's input.

    Attributes:
        size: (H, W) to resize to; None keeps the image's own size.
        crop: side of a centre crop after that; None takes the whole.
        interpolation: bilinear or bicubic, as the backbone was trained.
        scale: without a size, what the image's own sides are multiplied with; other than 1 it gives
            multiples of 8 pixels.
        even_light: bring brightness and contrast of all images to the same values.
    """

    size: Size | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    scale: float = 1.0
    even_light: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """[3, H, W] in [0, 1] -> the network's input [3, H', W'] in [0, 1]."""
        # imported here: three seconds, which the command line need not wait for
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as tvf

        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"an image must be [3, H, W], not {tuple(image.shape)}")
        if not image.is_floating_point():
            raise ValueError(f"an image must be of floats in [0, 1], not of {image.dtype}")
        image = image.float()
        own = (image.shape[1], image.shape[2])
        resized, _ = self.frames(own)
        if resized != own:
            mode = InterpolationMode(self.interpolation)
            image = tvf.resize(image, list(resized), mode, antialias=True).clamp_(0, 1)
        if self.even_light:
            image = evened(image)
        return image if self.crop is None else tvf.center_crop(image, [self.crop, self.crop])

    def frames(self, image_size: Size) -> tuple[Size, Size]:
        """(size after resizing, size after cropping) of an image of the given size."""
        scaled = [max(LEAST_SIDE, STEP * round(self.scale * side / STEP)) for side in image_size]
        own = image_size if self.scale == 1 else (scaled[0], scaled[1])
        resized = self.size or own
        return resized, resized if self.crop is None else (self.crop, self.crop)


def evened(image: Tensor) -> Tensor:
    """An image [3, H, W] whose values have the mean `LIGHT` and the deviation `CONTRAST`."""
    deviation = image.std(correction=0) + 1e-3  # an image of one value has none
    return ((image - image.mean()) / deviation * CONTRAST + LIGHT).clamp_(0, 1)


def extract(
    extractor: FeatureExtractor,
    dataset: Iterable,
    prepare: Preparation,
    *,
    patch_size: int = 3,
    batch_size: int | None = None,
    workers: int = 0,
) -> Iterator[PatchGrids]:
    """Patch grids of a dataset's images, in order, batch by batch (on a CPU image by image).

    Args:
        extractor: the backbone, on the device to run on.
        dataset: items are images [3, H, W] in [0, 1], or tuples that begin with one. Needs
            `__len__` and `__getitem__` for `workers`.
        prepare: resizing and cropping.
        patch_size: side of the averaged neighbourhood.
        batch_size: images a batch on a GPU; 6.4 megapixels when left out. Images of unequal size
            go into separate batches.
        workers: threads that decode and prepare for a GPU; 0 does it here.

    Raises:
        ValueError: features beyond the range of half precision, on a GPU.
    """
    if extractor.mean.device.type == "cpu":
        return _on_cpu(extractor, (_prepared(item, prepare) for item in dataset), patch_size)
    if workers and hasattr(dataset, "__getitem__"):
        chunks = _read_ahead(dataset, prepare, workers)
    else:
        chunks = _stacked(_prepared(item, prepare) for item in dataset)
    return _on_gpu(extractor, chunks, patch_size, batch_size)


def _read_ahead(dataset: Any, prepare: Preparation, workers: int) -> Iterator[Stack]:
    """Images decoded, prepared and stacked by threads, in order, a few chunks ahead."""

    def chunk(start: int) -> list[Stack]:
        indices = range(start, min(start + CHUNK, len(dataset)))
        return list(_stacked(_prepared(dataset[i], prepare) for i in indices))

    with one_thread_each():
        pool = ThreadPoolExecutor(workers, "decode", torch.set_num_threads, (1,))
        try:
            coming = (pool.submit(chunk, start) for start in range(0, len(dataset), CHUNK))
            waiting = deque(islice(coming, 2 * workers))
            while waiting:
                stacks = waiting.popleft().result()
                waiting.extend(islice(coming, 1))
                yield from stacks
        finally:
            pool.shutdown(cancel_futures=True)


def _stacked(items: Iterable[Prepared]) -> Iterator[Stack]:
    """Consecutive network inputs of one shape as one tensor, from which a GPU copies quickly."""
    for run in runs(items, lambda item: item[0].shape, CHUNK):
        stack = torch.empty(len(run), *run[0][0].shape, pin_memory=torch.cuda.is_available())
        torch.stack([image for image, _ in run], out=stack)
        yield stack, [size for _, size in run]


def _prepared(item: object, prepare: Preparation) -> Prepared:
    image = torch.as_tensor(item[0] if isinstance(item, tuple | list) else item)
    return prepare(image), (image.shape[-2], image.shape[-1])


def _grids(extractor: FeatureExtractor, images: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, h, w, C], on the grid of the first layer."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        maps = extractor(images)
    if images.is_cuda:
        maps = {layer: x.half() for layer, x in maps.items()}
    size = next(iter(maps.values())).shape[-2:]
    return aggregate_features(maps, tuple(size), patch_size).permute(0, 2, 3, 1).contiguous()


def _on_cpu(
    extractor: FeatureExtractor, items: Iterable[Prepared], patch_size: int
) -> Iterator[PatchGrids]:
    extractor.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def one(item: Prepared) -> PatchGrids:
        image, size = item
        batch = image[None].contiguous(memory_format=torch.channels_last)
        return PatchGrids(_grids(extractor, batch, patch_size).clone(), [size])

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
    extractor: FeatureExtractor, stacks: Iterable[Stack], patch_size: int, batch_size: int | None
) -> Iterator[PatchGrids]:
    extractor.to(memory_format=torch.channels_last)
    device = extractor.mean.device
    finite = torch.ones((), dtype=torch.bool, device=device)
    here, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    for batch in _batches(stacks, batch_size):
        with torch.inference_mode():
            with torch.cuda.stream(copying):  # while the network still works on the last batch
                images = torch.cat([stack.to(device, non_blocking=True) for stack, _ in batch])
                images = images.contiguous(memory_format=torch.channels_last)
            here.wait_stream(copying)
            images.record_stream(here)
            grids = _grids(extractor, images, patch_size)
            finite &= torch.isfinite(grids).all()
        yield PatchGrids(grids, [size for _, sizes in batch for size in sizes])
    if not finite:  # asked once: the answer has to wait for the device
        raise ValueError("patch features are not finite in half precision")


def _batches(stacks: Iterable[Stack], batch_size: int | None) -> Iterator[list[Stack]]:
    """Consecutive stacks of one shape that make up a batch."""
    batch: list[Stack] = []
    held = 0
    for stack, sizes in stacks:
        most = batch_size or max(1, BATCH_PIXELS // stack[0, 0].numel())
        for part in range(0, len(stack), most):
            images = stack[part : part + most]
            if batch and (held + len(images) > most or images.shape[1:] != batch[0][0].shape[1:]):
                yield batch
                batch, held = [], 0
            batch.append((images, sizes[part : part + most]))
            held += len(images)
    if batch:
        yield batch


def runs(
    items: Iterable[Item], kind: Callable[[Item], Hashable], most: int
) -> Iterator[list[Item]]:
    """Consecutive items of one kind, at most `most` together."""
    run: list[Item] = []
    for item in items:
        if run and (len(run) == most or kind(item) != kind(run[0])):
            yield run
            run = []
        run.append(item)
    if run:
        yield run
