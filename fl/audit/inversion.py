"""What a bank shows: its rows decoded to pixels, beside what they were made from."""

from typing import Any

import numpy as np
import torch

from fl.audit.bank import Subject
from src.data import InspectionDataset
from src.federated.candidates import Stage
from src.models import PatchCore
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import Progress
from src.privacy.attacks.inversion import invert, painted, patch_pixels
from src.privacy.queries import unit_patches
from src.reporting.audit.page import Shown

MOST_ROWS = 1000  # of a bank that are decoded
MOST_KNOWN = 40_000  # patches that the attacker learns from
SHOWN = 24  # patches in the picture


def invert_bank(
    subject: Subject,
    distances: list[np.ndarray],
    random: np.random.Generator,
    stage: Stage,
) -> tuple[dict, Shown]:
    """Decode a bank's rows by what an attacker learns from own images.

    A row's original is the training patch that it is, or the one nearest to it.

    Args:
        subject: the bank.
        distances: [h, w] of each training image's patches to it.
        random: which patches are learnt from, and shown.
        stage: who to tell how far it is.
    """
    model, (rows, frame) = subject.model, subject.bank
    members = subject.members
    known, known_pixels = _known(model, subject.own, frame is not None, random)
    chosen = rows[np.sort(random.permutation(len(rows))[:MOST_ROWS])].astype(np.float32)
    owners, places = _nearest(model, members, chosen, frame, stage("nearest"))
    pixels = np.zeros((len(chosen), known_pixels.shape[1]))
    for image in np.unique(owners):
        seen = _pixels(model, members, int(image), distances[image].shape)
        pixels[owners == image] = seen[places[owners == image]]
    found = invert(known, known_pixels, _features(chosen, frame), pixels)
    figures: dict[str, Any] = {
        "median_correlation": None,
        "shuffled": None,
        "rows": len(chosen),
        "learnt_from": "public images" if subject.public else "half of the normal test images",
        "learnt_images": len(subject.own),
        "learnt_patches": len(known),
        "verbatim_images": 0,
        "verbatim_patches": 0,
    }
    if len(chosen) > 1:  # one row alone shows nothing of any image
        other = pixels[random.permutation(len(chosen))]
        shuffled = invert(known, known_pixels, _features(chosen, frame), other)
        figures |= {"median_correlation": found.median, "shuffled": shuffled.median}
    picked = random.permutation(len(chosen))[:SHOWN]
    shown = Shown(pixels[picked], found.pixels[picked])
    held = np.array([int((grid == 0).sum()) for grid in distances])
    if frame is not None or not held.any():
        return figures, shown
    figures |= {"verbatim_images": int((held > 0).sum()), "verbatim_patches": int(held.sum())}
    return figures, _with_image(subject, shown, int(held.argmax()), distances, known, known_pixels)


def _with_image(
    subject: Subject,
    shown: Shown,
    most: int,
    distances: list[np.ndarray],
    known: np.ndarray,
    known_pixels: np.ndarray,
) -> Shown:
    """The same with a training image, and those of its patches that lie in the bank, decoded."""
    model, grid = subject.model, distances[most].shape
    places = np.flatnonzero(distances[most] == 0)
    image = subject.members.select([most])
    [features] = [g.features for batch in model.embed(image) for g in batch]
    vectors = features.flatten(0, 1).float().cpu().numpy()[places]
    pixels = _pixels(model, image, 0, grid)
    grey = _grey(model, image, 0)
    made = invert(known, known_pixels, vectors, pixels[places]).pixels
    paint = painted(grey.shape, grid, places, made)
    return Shown(shown.originals, shown.made, grey, paint, len(places))


def _known(
    model: PatchCore, own: InspectionDataset, units: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [M, D] and pixels [M, 256] of patches of the attacker's images."""
    each = max(1, MOST_KNOWN // len(own))
    vectors, pixels = [], []
    grids = (grid.features for batch in model.embed(own) for grid in batch)
    for number, grid in enumerate(grids):
        rows = grid.flatten(0, 1).float().cpu().numpy()
        kept = random.permutation(len(rows))[:each]
        vectors.append(unit_patches(rows[kept]) if units else rows[kept])
        pixels.append(_pixels(model, own, number, (grid.shape[0], grid.shape[1]))[kept])
    return np.concatenate(vectors), np.concatenate(pixels)


def _features(rows: np.ndarray, frame: FeatureTransform | None) -> np.ndarray:
    """Rows as patches in the features' own coordinates."""
    if frame is None or frame.basis is None or frame.origin is None:
        return rows
    return frame.origin + rows @ np.linalg.pinv(frame.basis)


def _nearest(
    model: PatchCore,
    images: InspectionDataset,
    rows: np.ndarray,
    frame: FeatureTransform | None,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Image and place [K] of the training patch nearest to each row."""
    at = torch.from_numpy(rows).to(model.device)
    least = torch.full((len(rows),), torch.inf, device=model.device)
    owners, places = (torch.zeros(len(rows), dtype=torch.int64) for _ in range(2))
    grids = (grid.features for batch in model.embed(images, progress) for grid in batch)
    for number, grid in enumerate(grids):
        patches = grid.flatten(0, 1).to(model.device).float()
        patches = patches if frame is None else frame.apply(patches)
        squares = (patches * patches).sum(1)[:, None] - 2 * patches @ at.T
        found, place = squares.min(0)
        closer = (found < least).cpu()
        least = torch.minimum(least, found)
        owners[closer], places[closer] = number, place.cpu()[closer]
    return owners.numpy(), places.numpy()


def _pixels(
    model: PatchCore, images: InspectionDataset, number: int, grid: tuple[int, ...]
) -> np.ndarray:
    return patch_pixels(_grey(model, images, number), (grid[0], grid[1]))


def _grey(model: PatchCore, images: InspectionDataset, number: int) -> np.ndarray:
    """An image [H, W] as it went through the network, in grey."""
    return model.preparation(images[number][0]).mean(0).numpy()
