"""How a bank's rows are coded for the wire, and decoded before the merge.

half and single precision; int8 codes with a step and an offset for each dimension; and before
either, the rows' principal components (PCA), so that fewer values are sent for each row. Whatever
coding and decoding does to a row is part of the covering radii: `slip` measures it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from src.federated.types import BankRefused

Encoding = Literal["float32", "float16", "int8"]
CODES, OFFSET, STEP, MEAN, BASIS = "banks", "offset", "step", "mean", "basis"
LEVELS = 255  # steps between the least and the largest of int8's codes
FIT_ROWS = 20_000  # from which principal components are taken

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Coding:
    """How rows are sent.

    Attributes:
        encoding: of each value sent.
        components: principal components a row is sent by; 0 sends its D values.
    """

    encoding: Encoding = "float16"
    components: int = 0

    @property
    def lossy(self) -> bool:
        """Whether half-precision rows come out otherwise than they went in."""
        return self.encoding == "int8" or self.components > 0

    @property
    def decoded(self) -> np.dtype:
        """The precision in which rows come out of the decoder."""
        return np.dtype(np.float32 if self.encoding == "float32" else np.float16)


@np.errstate(over="ignore", invalid="ignore")  # what does not fit is refused below
def encode(rows: np.ndarray, coding: Coding) -> Parts:
    """Code rows [n, D].

    Returns:
        CODES: [n, D] or [n, components] in the coding's encoding;
        with int8 OFFSET and STEP: [D or components] float16;
        with components MEAN [D] and BASIS [components, D], float16.

    Raises:
        ValueError: rows whose values do not fit half precision.
    """
    values: np.ndarray = rows.astype(np.float32)
    parts: Parts = {}
    if coding.components:
        mean, basis = _principal(values, min(coding.components, *values.shape))
        parts = {MEAN: mean, BASIS: basis}
        values = (values - mean.astype(np.float32)) @ basis.astype(np.float32).T
    parts |= (
        _in_int8(values) if coding.encoding == "int8" else {CODES: values.astype(coding.encoding)}
    )
    if not all(np.isfinite(part).all() for part in parts.values()):
        raise ValueError(f"features do not fit {coding.encoding}: set merge.encoding to float32")
    return parts


def decode(parts: Mapping[str, np.ndarray], coding: Coding, dim: int) -> np.ndarray:
    """Rows [n, dim] of what `encode` made, in the coding's decoded precision.

    Raises:
        BankRefused: parts that are not those of this coding and dimension, or do not agree.
    """
    _check(parts, coding, dim)
    if set(parts) == {CODES}:
        return parts[CODES]
    values = parts[CODES].astype(np.float32)
    if coding.encoding == "int8":
        values = (values + 128) * parts[STEP].astype(np.float32) + parts[OFFSET].astype(np.float32)
    if coding.components:
        values = values @ parts[BASIS].astype(np.float32) + parts[MEAN].astype(np.float32)
    with np.errstate(over="ignore"):  # an infinite value is refused with the row it stands in
        return values.astype(coding.decoded)


def slip(rows: np.ndarray, decoded: np.ndarray) -> float:
    """The largest distance between a row [n, D] and what came of it."""
    gaps = rows.astype(np.float32) - decoded.astype(np.float32)
    return float(np.sqrt(np.einsum("ij,ij->i", gaps, gaps).max(initial=0)))


def _in_int8(values: np.ndarray) -> Parts:
    """Codes -128 to 127 of equal steps between each dimension's least and largest value."""
    if not len(values):
        values = np.zeros((1, values.shape[1]), np.float32)
        return {**_in_int8(values), CODES: np.empty((0, values.shape[1]), np.int8)}
    least, largest = values.min(0), values.max(0)
    offset = least.astype(np.float16)
    # rounded up, so that the largest value is still within reach
    step = np.nextafter(((largest - offset) / LEVELS).astype(np.float16), np.float16(np.inf))
    codes = np.rint((values - offset.astype(np.float32)) / step.astype(np.float32)) - 128
    return {CODES: codes.clip(-128, 127).astype(np.int8), OFFSET: offset, STEP: step}


def _principal(values: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and leading principal directions [components, D] of rows, in half precision."""
    some = values[:FIT_ROWS].astype(np.float64)  # of rows in the order picked: the most different
    mean = some.sum(0) / max(1, len(some))
    _, directions = np.linalg.eigh((some - mean).T @ (some - mean))
    basis = directions[:, ::-1][:, :components].T
    return mean.astype(np.float16), basis.astype(np.float16)


def _check(parts: Mapping[str, np.ndarray], coding: Coding, dim: int) -> None:
    half = np.dtype(np.float16)
    expected = {CODES: np.dtype(coding.encoding)}
    if coding.encoding == "int8":
        expected |= {OFFSET: half, STEP: half}
    if coding.components:
        expected |= {MEAN: half, BASIS: half}
    found = {name: part.dtype for name, part in parts.items()}
    if found != expected:
        said = ", ".join(f"{name} of {dtype}" for name, dtype in found.items())
        raise BankRefused(f"its bank holds {said or 'nothing'}, not {coding.encoding}")
    codes = parts[CODES]
    if codes.ndim != 2:
        raise BankRefused(f"its bank has shape {codes.shape}, not [rows, {dim}]")
    width = codes.shape[1]
    shapes = {OFFSET: (width,), STEP: (width,), MEAN: (dim,), BASIS: (width, dim)}
    if not coding.components and width != dim:
        raise BankRefused(f"its bank has {width} dimensions, not {dim}")
    for name in parts.keys() & shapes.keys():
        if parts[name].shape != shapes[name]:
            raise BankRefused(
                f"its bank's {name} has shape {parts[name].shape}, not {shapes[name]}"
            )
