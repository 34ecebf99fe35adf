"""Our safetensors files: arrays, and one JSON header that says what they are.

The header is one metadata entry because safetensors writes several in no particular order: the
same content is always the same bytes.
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
    """A file that is not what it should be; the message names it and says what is wrong."""


def write_tensors(
    path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write arrays under a header that names the kind of file; folders are made as needed."""
    text = json.dumps({"format": kind, **header}, sort_keys=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_whole(path, save(arrays, {HEADER: text}))  # save_file: for the owner alone


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file of that kind.

    Raises:
        FileNotFoundError: no such file.
        FileError: truncated, not safetensors, or of another kind or version.
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
    if header.get("format") != kind:
        found = header.get("format", "of no format of ours")
        raise FileError(f"{path} is {found}; this version reads {kind}")
    return header, tensors
