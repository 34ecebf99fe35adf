"""Atomic writes: a file is complete or absent."""

import os
import threading
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that no reader ever sees part of it, even if the disk fills up.

    Threads and processes may write the same file at once; the last one wins.

    Args:
        path: the file; missing folders are created.
        content: bytes, or text to be encoded as UTF-8.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
