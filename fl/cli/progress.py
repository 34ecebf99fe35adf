"""Progress bars of a run, over all the processes that report it."""

import json
import shutil
import threading
from collections import defaultdict
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
        self.pieces: dict[TaskID, dict[tuple[str, int], tuple[int, int]]] = defaultdict(dict)
        self.tasks: dict[tuple[bool, str], TaskID] = {}
        self.offsets: dict[Path, int] = defaultdict(int)
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
        for path in sorted(self.folder.glob("*.jsonl")):
            # the run deletes its files when it is over, which may be just now
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(self.offsets[path])
                for line in file:
                    if line.endswith(b"\n"):
                        self.offsets[path] += len(line)
                        self._show(json.loads(line))

    def _show(self, event: dict) -> None:
        """Add an event to its stage's bar; clients that have not begun count like the others."""
        of_client = event["who"] != SERVER
        stage = of_client, event["stage"]
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(event["stage"], total=None, who="")
        pieces = self.pieces[self.tasks[stage]]
        pieces[event["who"], event["piece"]] = (event["done"], event["total"])
        begun = len({who for who, _ in pieces})
        done, total = (sum(column) for column in zip(*pieces.values(), strict=True))
        expected = max(self.clients, begun) / begun if of_client else 1
        who = f"{begun} of {self.clients} clients" if of_client else SERVER
        total = round(total * expected) or None
        self.bars.update(self.tasks[stage], completed=done, total=total, who=who)
