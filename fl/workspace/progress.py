"""Progress of a run across its processes: each reports what it does, the CLI shows it.

Clients may run in processes of Ray's. In a simulation all share the run directory: each process
appends lines to a file of its own there, and a thread of the CLI reads them.
"""

import itertools
import json
import time
from contextlib import suppress
from pathlib import Path

from src.federated.candidates import Stage, silent
from src.models.coreset.types import Progress

FOLDER = "progress"
SERVER = "server"
INTERVAL = 0.25  # seconds between two lines of one stage


class Clock:
    """Seconds of the stages of a job."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for a stage."""
        now = time.monotonic()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self.last
        self.last = now


def reporter(workspace: Path | None, who: str) -> Stage:
    """Progress callbacks by stage that write for `who`; silent without a workspace."""
    if workspace is None:
        return silent
    folder = workspace / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pieces = itertools.count()  # a stage can come in several pieces, one an object
    path = folder / f"{who}.jsonl"
    return lambda stage: _writer(path, {"who": who, "stage": stage, "piece": next(pieces)})


def _writer(path: Path, piece: dict) -> Progress:
    last = 0.0

    def write(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL or done == total:
            last = now
            # a full disk stops only the bar here; the writer of the results reports it
            with suppress(OSError), path.open("a") as file:
                file.write(json.dumps({**piece, "done": done, "total": total}) + "\n")

    return write
