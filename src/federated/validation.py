"""Checks of what a client sends, before it is merged."""

import numpy as np
import torch

from src.federated.types import BankRefused, ClientBank, ClientStats, RadiusCurve
from src.models.search.distances import count_nonfinite_rows


def check_bank(bank: ClientBank, dim: int) -> None:
    """Refuse a bank with the wrong shape, dtype, dimension, values, counts or radii.

    Raises:
        BankRefused: the first thing that is wrong.
    """
    rows, stats = bank.features, bank.stats
    if rows.ndim != 2:
        raise BankRefused(f"its bank has shape {rows.shape}, not [rows, {dim}]")
    if rows.dtype not in (np.float16, np.float32):
        raise BankRefused(f"its bank holds {rows.dtype}, not float16 or float32")
    if rows.shape[1] != dim:
        raise BankRefused(f"its bank has {rows.shape[1]} dimensions, not {dim}")
    bad = count_nonfinite_rows(torch.from_numpy(np.require(rows, None, "W")))
    if bad:
        raise BankRefused(f"{bad} of its {len(rows)} rows hold NaN or infinite values")
    check_stats(stats)
    if len(rows) > stats.patches:
        raise BankRefused(f"its counts do not agree: rows {len(rows)}, patches {stats.patches}")
    if not (np.isfinite(bank.radius) and bank.radius >= 0):
        raise BankRefused(f"its covering radius is {bank.radius}")
    if not (np.isfinite(bank.share_radius) and bank.share_radius >= 0):
        raise BankRefused(f"its share's covering radius is {bank.share_radius}")


def check_stats(stats: ClientStats) -> None:
    """Refuse counts that contradict each other.

    Raises:
        BankRefused: no image, no patch, or a share that is not between 1 and the patches.
    """
    if not (stats.images >= 1 and 1 <= stats.share <= stats.patches):
        raise BankRefused(
            f"its counts do not agree: {stats.images} images, share {stats.share}, "
            f"patches {stats.patches}"
        )


def check_curve(curve: RadiusCurve) -> None:
    """Refuse a radius curve that no client can have.

    Raises:
        BankRefused: counts that do not rise, radii that rise, or values out of range.
    """
    check_stats(curve.stats)
    counts, radii = curve.counts, curve.radii
    if len(counts) != len(radii) or not len(counts):
        raise BankRefused(f"its radius curve has {len(counts)} counts and {len(radii)} radii")
    if counts[0] not in (0, 1) or (np.diff(counts) <= 0).any():
        raise BankRefused("the counts of its radius curve do not rise from 0 or 1")
    if counts[-1] > curve.stats.patches:
        raise BankRefused(
            f"its radius curve goes to {counts[-1]} rows of {curve.stats.patches} patches"
        )
    if not (np.isfinite(radii).all() and radii[-1] >= 0 and (np.diff(radii) <= 0).all()):
        raise BankRefused("the radii of its radius curve are not finite and falling")
