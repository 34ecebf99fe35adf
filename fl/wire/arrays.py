"""Banks as arrays on the wire: written as they lie, read as their bytes stand."""

import io
import math
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord

HEADER_BYTES = 4096  # the header of an array of ours takes 128


def pack_banks(banks: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Bank name -> rows [n, D] as a record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(rows)) for name, rows in banks.items()})


def unpack_banks(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The inverse of `pack_banks`; the rows are the record's own bytes, read-only.

    Raises:
        ValueError: an array whose bytes are not what its header says.
    """
    return {name: read_rows(array) for name, array in record.items()}


def read_header(array: Array) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and start of the values of an array, by the npy header of its bytes."""
    if array.stype != "numpy.ndarray":
        raise ValueError(f"an array of kind {array.stype!r}")
    start = io.BytesIO(array.data[:HEADER_BYTES])
    version = np.lib.format.read_magic(start)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, by_columns, dtype = read(start)
    if dtype.hasobject or by_columns or min(shape, default=0) < 0:
        raise ValueError(f"an array of {dtype} that cannot be read")
    return shape, dtype, start.tell()


def read_rows(array: Array) -> np.ndarray:
    """An array as its bytes stand: nothing is copied, and nothing in them is executed."""
    shape, dtype, start = read_header(array)
    expected = math.prod(shape) * dtype.itemsize
    if len(array.data) - start != expected:
        raise ValueError(
            f"{len(array.data) - start} bytes, where {list(shape)} of {dtype} take {expected}"
        )
    return np.frombuffer(array.data, dtype, offset=start).reshape(shape)
