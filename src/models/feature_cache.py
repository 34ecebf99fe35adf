"""Patch features on disk, so that each image goes through the backbone once.

An entry is keyed by the image file's content and by everything that shapes its features; it does
not matter where the image lies, which client holds it or which experiment asks.
"""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from src.models.extraction import PatchGrid, PatchGrids


class FeatureCache:
    """A folder of patch grids in half precision, one safetensors file an image.

    Args:
        root: the folder; made when the first entry is written. Several processes may share it.
        signature: what the features depend on beside the image (backbone, weights, size, ...).
    """

    def __init__(self, root: str | Path, signature: Mapping[str, object]) -> None:
        text = json.dumps(dict(signature), sort_keys=True)
        self.folder = Path(root) / "features" / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._digest = functools.lru_cache(None)(_digest)

    def has(self, image: Path) -> bool:
        """Whether there is an entry for the image, sound or not."""
        return self._entry(image).is_file()

    def find(self, image: Path) -> PatchGrid | None:
        """The image's patch grid (float16, on the CPU), or None; a damaged entry counts as none."""
        try:
            with safe_open(self._entry(image), framework="pt") as entry:
                height, width = json.loads(entry.metadata()["image_size"])
                return PatchGrid(entry.get_tensor("features"), (height, width))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def keep(self, image: Path, grid: PatchGrid) -> PatchGrid:
        """Write the image's patch grid, whole or not at all; give it back as `find` would.

        Raises:
            ValueError: features beyond the range of half precision.
        """
        half = grid.features.cpu().half()
        if not torch.isfinite(half).all():
            raise ValueError(f"{image}: patch features are not finite in half precision")
        entry, size = self._entry(image), grid.image_size
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=entry.parent, suffix=".part")
        os.close(handle)
        try:
            save_file({"features": half.contiguous()}, name, {"image_size": json.dumps(size)})
            os.replace(name, entry)
        finally:
            Path(name).unlink(missing_ok=True)
        return PatchGrid(half, size)

    def _entry(self, image: Path) -> Path:
        state = Path(image).stat()
        digest = self._digest(image, state.st_size, state.st_mtime_ns)
        return self.folder / digest[:2] / f"{digest}.safetensors"


def through_cache(
    cache: FeatureCache,
    dataset: Any,
    paths: Sequence[Path],
    extract: Callable[[Iterable], Iterator[PatchGrids]],
) -> Iterator[PatchGrid]:
    """Patch grids of a dataset's images in order; what the cache lacks is extracted and kept.

    Args:
        cache: where to look, and to write.
        dataset: its items by index.
        paths: each item's image file.
        extract: gives the patch grids of some items, in order, by the batch.
    """
    found = [cache.has(path) for path in paths]
    lacking = _Items(dataset, [i for i, hit in enumerate(found) if not hit])
    missing = (grid for grids in extract(lacking) for grid in grids)
    for i, (path, hit) in enumerate(zip(paths, found, strict=True)):
        grid = cache.find(path) if hit else cache.keep(path, next(missing))
        if grid is None:  # damaged
            grid = cache.keep(path, next(iter(next(extract(_Items(dataset, [i]))))))
        yield grid


class _Items:
    """Some items of a dataset, by index."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> object:
        return self.dataset[self.indices[i]]

    def __iter__(self) -> Iterator[object]:
        return (self.dataset[i] for i in self.indices)


def _digest(image: Path, size: int, changed: int) -> str:
    # size and time of change are there to tell a file from the one it was rewritten to
    return hashlib.sha256(Path(image).read_bytes()).hexdigest()
