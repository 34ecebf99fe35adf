"""Slow and obvious versions of what the code does fast, and patches to try both on."""

import numpy as np

from src.models import PatchCore


def patches_of(model: PatchCore, images: list) -> np.ndarray:
    """All patches of some images: [N, D] float32."""
    return np.concatenate([grids.features.flatten(0, 2).numpy() for grids in model.embed(images)])


def distances(patches: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance of each patch to the bank, by differences, in float64: [P]."""
    return np.linalg.norm(patches.astype(float)[:, None] - bank.astype(float), axis=2).min(1)


def covering_radius(patches: np.ndarray, bank: np.ndarray) -> float:
    """Largest distance of a patch to the bank."""
    rows = bank.astype(float)
    return max(np.linalg.norm(rows - patch, axis=1).min() for patch in patches.astype(float))


def farthest_first(patches: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Greedy farthest-first selection in a few lines: rows in the order picked."""
    along = np.random.default_rng(seed).standard_normal(patches.shape[1])
    picks = [int((patches.astype(float) * along).sum(1).argmax())]
    while len(picks) < size:
        picks.append(int(distances(patches, patches[picks]).argmax()))
    return patches[picks]
