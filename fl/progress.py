"""Progress of a run, across its processes: each writes what it does, the CLI shows it.

Clients may run in processes of Ray's. In a simulation all share the run directory, so each
process appends lines to a file of its own there, and one thread of the CLI reads them.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from src.client import Stage, silent

FOLDER = "progress"
INTERVAL = 0.25  # seconds between two lines of one stage


def reporter(workspace: Path | None, who: str) -> Stage:
    """Progress callbacks by stage that write for `who`; silent where there is no workspace."""
    if workspace is None:
        return silent
    folder = workspace / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return lambda stage: _writer(folder / f"{who}.jsonl", stage, who)


def _writer(path: Path, stage: str, who: str) -> Callable[[int, int], None]:
    last = 0.0

    def write(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL or done == total:
            last = now
            with path.open("a") as file:
                file.write(
                    json.dumps({"who": who, "stage": stage, "done": done, "total": total}) + "\n"
                )

    return write


class ProgressView:
    """Bars for the stages of a run, one for each stage and process, from what these write."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / FOLDER
        self.bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self.read: dict[Path, int] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProgressView":
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that did not end
        self.bars.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(timeout=5)
        self.bars.stop()

    def _watch(self) -> None:
        while not self.over.wait(INTERVAL):
            self._look()
        self._look()

    def _look(self) -> None:
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []:
            with path.open() as file:
                file.seek(self.read.get(path, 0))
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    self.read[path] = self.read.get(path, 0) + len(line)
                    self._show(json.loads(line))

    def _show(self, event: dict) -> None:
        key = (event["who"], event["stage"])
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(f"{event['who']} {event['stage']}", total=None)
        self.bars.update(self.tasks[key], completed=event["done"], total=event["total"] or None)
