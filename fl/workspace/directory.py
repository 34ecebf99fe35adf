"""The run directory: where it is, who writes into it, and what is in it only during the run."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomli_w

from fl.config import ConfigError, Settings
from fl.workspace.progress import FOLDER as PROGRESS
from src.evaluation.score_set import ScoreSet
from src.storage.atomic import write_whole
from src.storage.run_metrics import FILE_NAME as METRICS

CONFIG, PARTITION = "config.toml", "partition.json"
SCORES = "scores"  # scores that clients of a simulation leave for the server


def run_folder(settings: Settings, run_id: int) -> Path:
    """Make the run directory: `out`, or one in the cache named after the run."""
    folder = Path(settings.out) if settings.out else settings.cache / "runs" / str(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs of this machine out of a run directory.

    Raises:
        ConfigError: another run writes there.
    """
    lock = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        yield
    except BlockingIOError as error:
        raise ConfigError(f"out = {out}: another run is writing there") from error
    finally:
        os.close(lock)


def begin_run(out: Path, settings: Settings) -> None:
    """Write the settings, and delete metrics and scratch files of an earlier run.

    `resume` is not written: whoever runs the file again begins anew.
    """
    clear_scratch(out)
    (out / METRICS).unlink(missing_ok=True)
    write_whole(out / CONFIG, tomli_w.dumps(settings.flat() | {"resume": False}))


def clear_scratch(out: Path) -> None:
    """Delete what is there only during a run, so that no later run takes it for its own."""
    for scratch in (SCORES, PROGRESS):
        shutil.rmtree(out / scratch, ignore_errors=True)


def save_scores(out: Path, side: str, name: str, client: int, scores: ScoreSet) -> None:
    """Leave a client's scores of an object for the server.

    Args:
        out: the run directory.
        side: "federated" or "local", after the banks that gave the scores.
        name: the object.
        client: its number.
        scores: of its test images.
    """
    scores.save(out / SCORES / side / name / f"{client}.safetensors")


def load_scores(out: Path, side: str, name: str = "*", client: int | str = "*") -> ScoreSet:
    """Scores that clients have left: of one object or all, of one client or all."""
    paths = sorted((out / SCORES / side).glob(f"{name}/{client}.safetensors"))
    return ScoreSet.join(ScoreSet.load(path) for path in paths)
