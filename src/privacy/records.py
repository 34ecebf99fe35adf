"""From a client's images to the records that a mechanism protects."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from src.data import InspectionDataset
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import PatchCore, Progress
from src.privacy.ledger import Unit
from src.privacy.queries import Ask, Record, Scores, summed, unit_patches
from src.privacy.runner import Sums


def records_of(
    model: PatchCore,
    images: InspectionDataset,
    ask: Ask,
    unit: Unit,
    group: str = "",
    progress: Progress | None = None,
) -> Iterator[Record]:
    """What an ask reads of each record of some images: patches [P, D], or scores [1].

    Args:
        model: features, and scores of a private bank, which is then installed.
        images: of one bank, not none.
        ask: what is asked.
        unit: whether an image, a group or all of them are a record.
        group: the metadata column whose values make groups.
        progress: called with (images done, images).
    """
    if unit == "image":
        yield from _read(model, images, ask, progress)
        return
    members = groups_of(images, group) if unit == "group" else [range(len(images))]
    for member in members:
        yield _read(model, images.select(list(member)), ask, progress)


def groups_of(images: InspectionDataset, column: str) -> list[Sequence[int]]:
    """Places of the images of each group, in the order in which groups begin.

    Raises:
        ValueError: an image has no value in that column.
    """
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(images.samples):
        if not sample.metadata.get(column):
            raise ValueError(
                f"privacy.group = {column}: {sample.key} has no such value in its metadata"
            )
        groups.setdefault(sample.metadata[column], []).append(place)
    return list(groups.values())


def _read(
    model: PatchCore, images: InspectionDataset, ask: Ask, progress: Progress | None
) -> Iterable[np.ndarray]:
    if isinstance(ask, Scores):
        model.set_memory_bank(ask.rows.astype(np.float32), FeatureTransform(ask.origin, ask.basis))
        for prediction in model.score(images, progress=progress):
            yield np.array([prediction.score])
        return
    yield from patches_of(model, images, progress)


def patches_of(
    model: PatchCore, images: InspectionDataset, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """The patches [P, D] of each image, float32, as the model makes them."""
    for batch in model.embed(images, progress):
        for grid in batch.features:
            yield grid.flatten(0, 1).float().cpu().numpy()


def sampled_patches(
    model: PatchCore, images: InspectionDataset, most: int, random: np.random.Generator
) -> np.ndarray:
    """Patches [n, D] of unit length, float64, as many from each image; about `most` of all."""
    each = -(-most // len(images))
    taken = [rows[random.permutation(len(rows))[:each]] for rows in patches_of(model, images)]
    return unit_patches(np.concatenate(taken))[:most]


def sums_of(
    model: PatchCore,
    images: InspectionDataset,
    ask: Ask,
    unit: Unit,
    group: str = "",
    progress: Progress | None = None,
) -> Sums:
    """A client's answer to an ask, as `records_of` reads its images: the sums over its records."""
    count = 0

    def counted() -> Iterator[Record]:
        nonlocal count
        for record in records_of(model, images, ask, unit, group, progress):
            count += 1
            yield record

    return Sums(summed(ask, counted()), count)
