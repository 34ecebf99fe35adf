"""A bank or a radius curve that no honest client sends is refused, and the reason is named."""

import re
from dataclasses import replace

import numpy as np
import pytest

from src.federated.types import BankRefused, ClientBank, ClientStats, RadiusCurve
from src.federated.validation import check_bank, check_curve

DIM = 3
STATS = ClientStats(images=1, patches=5, share=2)
BANK = ClientBank(np.eye(DIM, dtype=np.float32), 1.0, 1.5, STATS)
CURVE = RadiusCurve(STATS, np.array([0, 1, 3, 5]), np.array([4.0, 3.0, 3.0, 0.0]))


def rows(*values: object, dtype: str = "float32") -> dict:
    return {"features": np.array(values, dtype)}


def stats(**changes: int) -> dict:
    return {"stats": replace(STATS, **changes)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_sound_bank_passes(dtype: str) -> None:
    check_bank(replace(BANK, features=BANK.features.astype(dtype)), DIM)


def test_a_bank_without_rows_passes() -> None:
    check_bank(replace(BANK, features=np.empty((0, DIM), np.float32)), DIM)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (rows(1, 2, 3), "its bank has shape (3,), not [rows, 3]"),
        ({"features": np.eye(4, dtype=np.float32)}, "its bank has 4 dimensions, not 3"),
        ({"features": np.eye(DIM)}, "its bank holds float64, not float16 or float32"),
        ({"features": np.eye(DIM, dtype=np.int8)}, "its bank holds int8"),
        (rows([1, 2, 3], [1, np.nan, 3], [np.inf, 2, 3]), "2 of its 3 rows hold NaN"),
        (stats(share=0), "its counts do not agree: 1 images, share 0, patches 5"),
        (stats(share=6), "its counts do not agree: 1 images, share 6, patches 5"),
        (stats(patches=2), "its counts do not agree: rows 3, patches 2"),
        ({"radius": np.nan}, "its covering radius is nan"),
        ({"radius": np.inf}, "its covering radius is inf"),
        ({"radius": -0.5}, "its covering radius is -0.5"),
        ({"share_radius": np.nan}, "its share's covering radius is nan"),
        (stats(images=0), "its counts do not agree: 0 images"),
    ],
)
def test_an_unsound_bank_is_refused(change: dict, reason: str) -> None:
    with pytest.raises(BankRefused, match=re.escape(reason)):
        check_bank(replace(BANK, **change), DIM)


@pytest.mark.parametrize("first", [0, 1])
def test_a_sound_curve_passes(first: int) -> None:
    check_curve(replace(CURVE, counts=CURVE.counts[first:], radii=CURVE.radii[first:]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (stats(share=6), "its counts do not agree"),
        ({"counts": np.array([0, 1, 3])}, "has 3 counts and 4 radii"),
        ({"counts": np.empty(0, int), "radii": np.empty(0)}, "has 0 counts and 0 radii"),
        ({"counts": np.array([0, 1, 1, 5])}, "do not rise"),
        ({"counts": np.array([2, 3, 4, 5])}, "do not rise from 0 or 1"),
        ({"counts": np.array([0, 1, 3, 6])}, "goes to 6 rows of 5 patches"),
        ({"radii": np.array([4.0, 3.0, 3.1, 0.0])}, "not finite and falling"),
        ({"radii": np.array([np.inf, 3.0, 3.0, 0.0])}, "not finite and falling"),
        ({"radii": np.array([4.0, 3.0, 3.0, -1.0])}, "not finite and falling"),
    ],
)
def test_an_unsound_curve_is_refused(change: dict, reason: str) -> None:
    with pytest.raises(BankRefused, match=re.escape(reason)):
        check_curve(replace(CURVE, **change))
