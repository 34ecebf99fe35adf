"""Processes of Flower's that we start: kept private and quiet, and ended with their offspring."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from src.errors import UserError

POLL = 0.2  # seconds between two looks at a process
ANSWER_LIMIT = 60.0  # seconds that a command of `flwr` may take; 1 to 2 on two idle cores
END_LIMIT = 10.0  # seconds that the killed may take to be gone
LONGEST_TEMP = 30  # characters: a Unix socket's path holds 107, and Ray's own part takes about 75


class EngineError(UserError):
    """A run that cannot reach an end of its own; `status` says how far it came."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status = status


@contextmanager
def private_home() -> Iterator[Path]:
    """A folder for this run only, deleted afterwards; its path leaves room for Ray's sockets."""
    temp = tempfile.gettempdir()
    parent = temp if len(temp) <= LONGEST_TEMP else "/tmp"  # noqa: S108 - mkdtemp keeps it private
    home = Path(tempfile.mkdtemp(prefix="fpc-", dir=parent))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def start(
    command: list[str], home: Path, output: Path, extra: Mapping[str, str] = {}
) -> subprocess.Popen[bytes]:
    """Start a command of Flower, in a session of its own so that Ctrl-C reaches only us.

    It runs in the home: Ray's workers import from their working directory before anything else, and
    there it holds nothing that could hide the app's own packages.

    Args:
        command: a program of our environment, and its arguments.
        home: what Flower keeps goes there.
        output: gets what it prints.
        extra: environment variables of its own.
    """
    env = _environment(home) | dict(extra)
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        raise EngineError(
            "not started", f"{command[0]} is not installed; pip install 'flwr[simulation]'"
        )
    with output.open("wb") as out:
        return subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=home,
            start_new_session=True,
        )


def ask(command: list[str], home: Path, limit: float = ANSWER_LIMIT) -> tuple[int | None, str]:
    """Exit code and output of a command; the code is None where it took longer than `limit`."""
    output = home / "answer.log"
    process = start(command, home, output)
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit)
    code = process.poll()
    end(process)
    return code, output.read_text(encoding="utf-8", errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started and all that descends from it."""
    end_family(process.pid)
    process.wait()


def end_family(pid: int, grace: float = 0.0) -> None:
    """End a process that `start` started, and all that descends from it, orphans too.

    Parents go first, so that none has the time to start another. Asking politely is not enough: a
    SuperLink waits for its readers, and a simulation for its ServerApp, however long that computes.

    Args:
        grace: seconds for the process to sign off by itself first, as a SuperNode does.
    """
    family = _family(pid)
    if grace and family:
        with suppress(psutil.NoSuchProcess):
            family[0].terminate()
        psutil.wait_procs(family[:1], grace)
    for member in [*family, *_family(pid)]:  # what it started in the meantime, too
        with suppress(psutil.NoSuchProcess):
            member.kill()
    ends = time.monotonic() + END_LIMIT
    while any(map(alive, family)) and time.monotonic() < ends:
        time.sleep(POLL)


def _family(pid: int) -> list[psutil.Process]:
    """A process, its children and theirs, then who is left of its group where it is gone."""
    found: dict[int, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        found = {member.pid: member for member in [root, *root.children(recursive=True)]}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == pid:
                found.setdefault(process.pid, process)
    return list(found.values())


def alive(process: psutil.Process) -> bool:
    """A zombie is dead; in a container it may stay listed for want of an init to bury it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM (a scheduler, `docker stop`) unwind us as Ctrl-C does, so that we clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set a handler
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _environment(home: Path) -> dict[str, str]:
    """What the processes see: our environment, with Flower and Ray kept private and quiet."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    for name in ("NO_PROXY", "no_proxy"):  # a company's proxy does not know our SuperLink
        env[name] = ",".join(filter(None, [env.get(name), "127.0.0.1", "localhost"]))
    return env | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",  # two clients that print the same line are two lines
        "RAY_COLOR_PREFIX": "0",
        "COLUMNS": "200",  # the CLI draws its errors in a box as wide as the terminal
        "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
    }
