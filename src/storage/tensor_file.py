"""Safetensors files of arrays, with a JSON header that describes them.

The header is a single metadata entry, because safetensors does not keep the order of several. The
same content always gives the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from src.errors import UserError
from src.storage.atomic import write_whole

HEADER = "fedpatchcore"


class FileError(UserError, ValueError):
    """A file that cannot be used; the message names the file and the problem."""


def write_tensors(
    path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write arrays with a header that names the kind of file; missing folders are created."""
    text = json.dumps({"format": kind, **header}, sort_keys=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_whole(path, save(arrays, {HEADER: text}))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the header and the arrays of a file of this kind.

    Raises:
        FileNotFoundError: the file does not exist.
        FileError: the file is truncated, not safetensors, or of another kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise FileError(f"{path} is truncated or not a safetensors file: {error}") from error
    actual = header.get("format")
    if actual != kind:
        raise FileError(f"{path} has format {actual or 'unknown'}; this version reads {kind}")
    return header, tensors
