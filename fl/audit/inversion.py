"""What a bank shows: its rows decoded to pixels, beside the patches that they were made from."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fl.audit.subject import Subject
from src.data import InspectionDataset
from src.federated.candidates import Stage
from src.models import PatchCore
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import Progress
from src.privacy.attacks.inversion import (
    SIDE,
    Decoder,
    correlations,
    paint_patches,
    patch_pixels,
)
from src.privacy.clipping import normalize_patches
from src.privacy.records import read_patches
from src.reporting.audit.page import Shown

MAX_ROWS = 1000  # of a bank that are decoded
MAX_KNOWN = 40_000  # patches that the attacker learns from
SHOWN = 24  # patches in the picture


def invert_bank(
    subject: Subject,
    distances: list[np.ndarray],
    random: np.random.Generator,
    stage: Stage,
) -> tuple[dict, Shown]:
    """Decode a bank's rows with a decoder learnt from the attacker's images.

    The original of a row is the nearest training patch, which may be the row itself.
    `distances` are those [h, w] of each training image's patches to the bank.
    """
    model, (rows, transform) = subject.model, subject.bank
    vectors, pixels = _known_patches(model, subject.own, transform is not None, random)
    decoder = Decoder.fit(vectors, pixels)
    chosen = rows[np.sort(random.permutation(len(rows))[:MAX_ROWS])].astype(np.float32)
    originals = _originals(subject, distances, chosen, stage("nearest"))
    decoded = decoder.decode(_as_features(chosen, transform))
    metrics: dict[str, Any] = {
        "median_correlation": None,
        "shuffled": None,
        "rows": len(chosen),
        "learnt_from": "public images" if subject.own_public else "half of the normal test images",
        "learnt_images": len(subject.own),
        "learnt_patches": len(vectors),
        "verbatim_images": 0,
        "verbatim_patches": 0,
    }
    if len(chosen) > 1:  # a single row shows nothing of any image
        shuffled = originals[random.permutation(len(chosen))]
        metrics["median_correlation"] = float(np.median(correlations(decoded, originals)))
        metrics["shuffled"] = float(np.median(correlations(decoded, shuffled)))
    picked = random.permutation(len(chosen))[:SHOWN]
    shown = Shown(originals[picked], decoded[picked])
    verbatim = np.array([int((grid == 0).sum()) for grid in distances])
    if transform is not None or not verbatim.any():
        return metrics, shown
    metrics["verbatim_images"] = int((verbatim > 0).sum())
    metrics["verbatim_patches"] = int(verbatim.sum())
    image = int(verbatim.argmax())
    return metrics, _with_image(subject, shown, image, distances[image], decoder)


def _with_image(
    subject: Subject, shown: Shown, index: int, distances: np.ndarray, decoder: Decoder
) -> Shown:
    """Add a training image, and those of its patches that lie in the bank verbatim, decoded."""
    model, grid = subject.model, (distances.shape[0], distances.shape[1])
    places = np.flatnonzero(distances == 0)
    [patches] = read_patches(model, subject.members.select([index]))
    image = _grey(model, subject.members, index)
    paint = paint_patches(image.shape, grid, places, decoder.decode(patches[places]))
    return Shown(shown.originals, shown.made, image, paint, len(places))


def _known_patches(
    model: PatchCore, own: InspectionDataset, unit: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [M, D] and pixels [M, side²] of patches of the attacker's images."""
    per_image = max(1, MAX_KNOWN // len(own))
    vectors, pixels = [], []
    for index, grid in enumerate(_grids(model, own)):
        rows = grid.flatten(0, 1).float().cpu().numpy()
        picked = random.permutation(len(rows))[:per_image]
        vectors.append(normalize_patches(rows[picked]) if unit else rows[picked])
        shape = (grid.shape[0], grid.shape[1])
        pixels.append(patch_pixels(_grey(model, own, index), shape)[picked])
    return np.concatenate(vectors), np.concatenate(pixels)


def _originals(
    subject: Subject, distances: list[np.ndarray], rows: np.ndarray, progress: Progress
) -> np.ndarray:
    """Pixels [K, side²] of the training patch nearest to each row."""
    model, members = subject.model, subject.members
    images, places = _nearest_patches(model, members, rows, subject.bank[1], progress)
    originals = np.zeros((len(rows), SIDE**2))
    for index in np.unique(images):
        height, width = distances[index].shape
        pixels = patch_pixels(_grey(model, members, int(index)), (height, width))
        originals[images == index] = pixels[places[images == index]]
    return originals


def _nearest_patches(
    model: PatchCore,
    images: InspectionDataset,
    rows: np.ndarray,
    transform: FeatureTransform | None,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Image and place [K] of the training patch nearest to each row."""
    queries = torch.from_numpy(rows).to(model.device)
    nearest = torch.full((len(rows),), torch.inf, device=model.device)
    owners, places = (torch.zeros(len(rows), dtype=torch.int64) for _ in range(2))
    for index, grid in enumerate(_grids(model, images, progress)):
        patches = grid.flatten(0, 1).to(model.device).float()
        patches = patches if transform is None else transform.apply(patches)
        affinities = (patches * patches).sum(1)[:, None] - 2 * patches @ queries.T
        smallest, place = affinities.min(0)
        closer = (smallest < nearest).cpu()
        nearest = torch.minimum(nearest, smallest)
        owners[closer], places[closer] = index, place.cpu()[closer]
    return owners.numpy(), places.numpy()


def _grids(
    model: PatchCore, images: InspectionDataset, progress: Progress | None = None
) -> Iterator[torch.Tensor]:
    """Features [h, w, D] of each image."""
    for batch in model.embed(images, progress):
        yield from (grid.features for grid in batch)


def _as_features(rows: np.ndarray, transform: FeatureTransform | None) -> np.ndarray:
    """Rows in the coordinates of the features."""
    if transform is None or transform.basis is None or transform.origin is None:
        return rows
    return transform.origin + rows @ np.linalg.pinv(transform.basis)


def _grey(model: PatchCore, images: InspectionDataset, index: int) -> np.ndarray:
    """An image [H, W] as the network receives it, in grey."""
    return model.preparation(images[index][0]).mean(0).numpy()
