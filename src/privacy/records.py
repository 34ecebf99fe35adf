"""From a client's images to the records that a mechanism protects, and their sums."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from src.data import InspectionDataset
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import PatchCore, Progress
from src.privacy.clipping import normalize_patches
from src.privacy.ledger import Unit
from src.privacy.queries import Record, ScoreQuery, SumQuery, sum_records
from src.privacy.runner import Sums


def client_sums(
    model: PatchCore,
    images: InspectionDataset,
    query: SumQuery,
    unit: Unit,
    group: str = "",
    progress: Progress | None = None,
) -> Sums:
    """A client's reply to a query: the sums over its records; arguments as `read_records`."""
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for record in read_records(model, images, query, unit, group, progress):
            count += 1
            yield record

    return Sums(sum_records(query, counted()), count)


def read_records(
    model: PatchCore,
    images: InspectionDataset,
    query: SumQuery,
    unit: Unit,
    group: str = "",
    progress: Progress | None = None,
) -> Iterator[Record]:
    """What a query reads of each record: patches [P, D] or a score [1] of each of its images.

    Args:
        model: extracts patches. For scores, the query's bank is installed in it.
        images: all of one bank; at least one.
        query: what is asked.
        unit: whether one image, a group of images or all images are a record.
        group: the metadata column whose values make groups.
        progress: called with (images done, images).
    """
    if unit == "image":
        yield from _read_images(model, images, query, progress)
        return
    members = group_images(images, group) if unit == "group" else [range(len(images))]
    for indices in members:
        yield _read_images(model, images.select(list(indices)), query, progress)


def group_images(images: InspectionDataset, column: str) -> list[Sequence[int]]:
    """Indices of the images of each group, in the order in which groups first appear.

    Raises:
        ValueError: an image has no value in the column.
    """
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(images.samples):
        if not sample.metadata.get(column):
            raise ValueError(
                f"privacy.group = {column}: {sample.key} has no such value in its metadata"
            )
        groups.setdefault(sample.metadata[column], []).append(index)
    return list(groups.values())


def read_patches(
    model: PatchCore, images: InspectionDataset, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """The patches [P, D] of each image, float32, at the length that the model gives them."""
    for batch in model.embed(images, progress):
        for grid in batch.features:
            yield grid.flatten(0, 1).float().cpu().numpy()


def sample_patches(
    model: PatchCore, images: InspectionDataset, limit: int, random: np.random.Generator
) -> np.ndarray:
    """Up to `limit` patches [n, D] of unit length, float64, evenly from all images."""
    per_image = -(-limit // len(images))
    parts = [
        rows[random.permutation(len(rows))[:per_image]] for rows in read_patches(model, images)
    ]
    return normalize_patches(np.concatenate(parts))[:limit]


def _read_images(
    model: PatchCore, images: InspectionDataset, query: SumQuery, progress: Progress | None
) -> Iterable[np.ndarray]:
    if not isinstance(query, ScoreQuery):
        yield from read_patches(model, images, progress)
        return
    model.set_memory_bank(
        query.rows.astype(np.float32), FeatureTransform(query.origin, query.basis)
    )
    for prediction in model.score(images, progress=progress):
        yield np.array([prediction.score])
