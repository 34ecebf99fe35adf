"""How rows are encoded for the wire and decoded before the merge.

float32, float16, or int8 codes with a step and an offset for each dimension. The covering radii
include what encoding does to a row: `reconstruction_error` measures it.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from src.federated.types import BankRefused

Encoding = Literal["float32", "float16", "int8"]
CODES, OFFSET, STEP = "banks", "offset", "step"
LEVELS = 255  # steps between the smallest and the largest value of a dimension in int8

Parts = dict[str, np.ndarray]


def is_lossy(encoding: Encoding) -> bool:
    """Whether half-precision rows change when they are encoded."""
    return encoding == "int8"


@np.errstate(over="ignore", invalid="ignore")  # values that do not fit are refused below
def encode(rows: np.ndarray, encoding: Encoding) -> Parts:
    """Encode rows [n, D].

    Returns:
        CODES: [n, D] in the encoding's dtype; for int8 also OFFSET and STEP, [D] float16.

    Raises:
        ValueError: values that do not fit half precision.
    """
    values: np.ndarray = rows.astype(np.float32)
    parts = _to_int8(values) if encoding == "int8" else {CODES: values.astype(encoding)}
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise ValueError(f"features do not fit {encoding}: set merge.encoding to float32")
    return parts


def decode(parts: Mapping[str, np.ndarray], encoding: Encoding, dim: int) -> np.ndarray:
    """Decode what `encode` returned: rows [n, dim], float32 for float32 and float16 otherwise.

    Raises:
        BankRefused: parts of another encoding or dimension, or parts that do not agree.
    """
    _check(parts, encoding, dim)
    if encoding != "int8":
        return parts[CODES]
    step, offset = parts[STEP].astype(np.float32), parts[OFFSET].astype(np.float32)
    values = (parts[CODES].astype(np.float32) + 128) * step + offset
    with np.errstate(over="ignore"):  # a row with an infinite value is refused later
        return values.astype(np.float16)


def reconstruction_error(rows: np.ndarray, decoded: np.ndarray) -> float:
    """Largest Euclidean distance between a row [n, D] and its decoded form."""
    gaps = rows.astype(np.float32) - decoded.astype(np.float32)
    return float(np.sqrt(np.einsum("ij,ij->i", gaps, gaps).max(initial=0)))


def _to_int8(values: np.ndarray) -> Parts:
    """Codes -128 to 127 in equal steps from the smallest to the largest value of a dimension."""
    if not len(values):
        values = np.zeros((1, values.shape[1]), np.float32)
        return {**_to_int8(values), CODES: np.empty((0, values.shape[1]), np.int8)}
    least, largest = values.min(0), values.max(0)
    offset = least.astype(np.float16)
    # rounded up, so that the largest value stays within reach
    step = np.nextafter(((largest - offset) / LEVELS).astype(np.float16), np.float16(np.inf))
    codes = np.rint((values - offset.astype(np.float32)) / step.astype(np.float32)) - 128
    return {CODES: codes.clip(-128, 127).astype(np.int8), OFFSET: offset, STEP: step}


def _check(parts: Mapping[str, np.ndarray], encoding: Encoding, dim: int) -> None:
    expected = {CODES: np.dtype(encoding)}
    if encoding == "int8":
        expected |= dict.fromkeys((OFFSET, STEP), np.dtype(np.float16))
    dtypes = {name: part.dtype for name, part in parts.items()}
    if dtypes != expected:
        listed = ", ".join(f"{name} of {dtype}" for name, dtype in dtypes.items())
        raise BankRefused(f"its bank holds {listed or 'nothing'}, not {encoding}")
    codes = parts[CODES]
    if codes.ndim != 2:
        raise BankRefused(f"its bank has shape {codes.shape}, not [rows, {dim}]")
    if codes.shape[1] != dim:
        raise BankRefused(f"its bank has {codes.shape[1]} dimensions, not {dim}")
    for name in parts.keys() - {CODES}:
        if parts[name].shape != (dim,):
            raise BankRefused(f"its bank's {name} has shape {parts[name].shape}, not [{dim}]")
