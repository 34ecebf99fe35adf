"""Clipping: the one place that bounds how much a record can change a sum.

The guarantee of a private run rests on `clip`: whatever an image holds, its vector is no longer
than the limit that the noise was set for.
"""

import numpy as np

SHRINK = 1 - 2.0**-50  # keeps rounding from lifting a scaled vector above its limit


def clip(vector: np.ndarray, limit: float) -> np.ndarray:
    """A vector as float64, scaled down to an L2 norm of `limit` if it is longer.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    vector = np.asarray(vector, np.float64)
    if not np.isfinite(vector).all():
        raise ValueError("an image's contribution holds NaN or infinite values")
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0:
        return vector
    scaled = vector / largest  # squares of huge values overflow
    norm = float(np.linalg.norm(scaled))
    if largest * norm <= limit * SHRINK:
        return vector
    return scaled / norm * (limit * SHRINK)


def normalize_patches(patches: np.ndarray) -> np.ndarray:
    """Patches [P, D] as float64, each scaled to unit L2 norm; zero patches stay zero.

    Raises:
        ValueError: not [P, D] with at least one patch, or values that are not finite.
    """
    rows = np.asarray(patches, np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"a record's patches must be [P, D], not of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("an image's features hold NaN or infinite values")
    largest = np.abs(rows).max(1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
