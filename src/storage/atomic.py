"""Files that are whole or not there."""

import os
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader never sees half of it, even if the disk is full half-way.

    Args:
        path: folders are made as needed.
        content: text is written as UTF-8.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
