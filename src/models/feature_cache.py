"""Patch features on disk, so that each image passes through the backbone once.

The key of an entry combines the content of the image file with everything that affects its
features. It does not depend on the file's path, on the client, or on the experiment.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import Subset

from src.models.extraction import PatchGrid, PatchGrids, group_runs
from src.storage.atomic import write_whole


class FeatureCache:
    """A folder of patch grids in half precision, one safetensors file per image.

    Args:
        root: the folder, created with the first entry. Several processes may share it.
        signature: what the features depend on besides the image (backbone, weights, size, ...).
    """

    def __init__(self, root: str | Path, signature: Mapping[str, object]) -> None:
        text = json.dumps(dict(signature), sort_keys=True)
        self.folder = Path(root) / "features" / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._digest = functools.cache(_digest)

    def has(self, image: Path) -> bool:
        """Whether the image has an entry, which may be damaged."""
        return self._entry(image).is_file()

    def load(self, image: Path) -> PatchGrid | None:
        """The image's patch grid (float16, on the CPU); None if it is absent or damaged."""
        try:
            with safe_open(self._entry(image), framework="pt") as entry:
                height, width = json.loads(entry.metadata()["image_size"])
                return PatchGrid(entry.get_tensor("features"), (height, width))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def store(self, image: Path, grid: PatchGrid) -> PatchGrid:
        """Write the image's patch grid, and return it as `load` would.

        Raises:
            ValueError: features exceed the range of half precision.
        """
        half = grid.features.cpu().half().contiguous()
        if not torch.isfinite(half).all():
            raise ValueError(f"{image}: patch features are not finite in half precision")
        header = {"image_size": json.dumps(grid.image_size)}
        write_whole(self._entry(image), save({"features": half}, header))
        return PatchGrid(half, grid.image_size)

    def _entry(self, image: Path) -> Path:
        status = image.stat()
        digest = self._digest(image, status.st_size, status.st_mtime_ns)
        return self.folder / digest[:2] / f"{digest}.safetensors"


def cached_grids(
    cache: FeatureCache,
    dataset: Any,
    paths: Sequence[Path],
    extract: Callable[[Any], Iterator[PatchGrids]],
    batch_size: int,
) -> Iterator[PatchGrids]:
    """Patch grids of a dataset's images, whose files are `paths`, in order.

    `extract` maps a dataset to the grids of its images: here, of those that the cache lacks.
    """

    def grids() -> Iterator[PatchGrid]:
        hits = [cache.has(path) for path in paths]
        missing = Subset(dataset, [i for i, hit in enumerate(hits) if not hit])
        extracted = (grid for batch in extract(missing) for grid in batch)
        for i, (path, hit) in enumerate(zip(paths, hits, strict=True)):
            grid = cache.load(path) if hit else cache.store(path, next(extracted))
            if grid is None:  # damaged
                grid = cache.store(path, next(iter(next(extract(Subset(dataset, [i]))))))
            yield grid

    for run in group_runs(grids(), lambda grid: grid.features.shape, batch_size):
        features = torch.stack([grid.features for grid in run])
        yield PatchGrids(features, [grid.image_size for grid in run])


def _digest(image: Path, size: int, mtime_ns: int) -> str:
    # size and mtime are arguments so that functools.cache hashes a rewritten file again
    return hashlib.sha256(image.read_bytes()).hexdigest()
