"""Progress bars of a run, over all the processes that report it."""

import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from fl.workspace.progress import FOLDER, INTERVAL, SERVER


class ProgressView:
    """Bars for the stages of a run, one each, over all the processes that write of it."""

    def __init__(self, workspace: Path, clients: int) -> None:
        self.folder = workspace / FOLDER
        self.bars = Bars(
            TextColumn("{task.description:<13} {task.fields[who]:<16}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.clients = clients
        self.pieces: dict[tuple[bool, str], dict[tuple[str, int], tuple[int, int]]] = {}
        self.tasks: dict[tuple[bool, str], TaskID] = {}
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
            # the run deletes its files when it is over, which may be just now
            with suppress(FileNotFoundError), path.open() as file:
                file.seek(self.read.get(path, 0))
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    self.read[path] = self.read.get(path, 0) + len(line)
                    self._show(json.loads(line))

    def _show(self, event: dict) -> None:
        """Add an event to its stage's bar; clients that have not begun count like the others."""
        of_client = event["who"] != SERVER
        pieces = self.pieces.setdefault((of_client, event["stage"]), {})
        pieces[event["who"], event["piece"]] = (event["done"], event["total"])
        begun = len({who for who, _ in pieces})
        bar = self._bar(of_client, event["stage"])
        done, total = (sum(column) for column in zip(*pieces.values(), strict=True))
        expected = max(self.clients, begun) / begun if of_client else 1
        who = f"{begun} of {self.clients} clients" if of_client else SERVER
        self.bars.update(bar, completed=done, total=round(total * expected) or None, who=who)

    def _bar(self, of_client: bool, stage: str) -> TaskID:
        if (of_client, stage) not in self.tasks:
            self.tasks[of_client, stage] = self.bars.add_task(stage, total=None, who="")
        return self.tasks[of_client, stage]
