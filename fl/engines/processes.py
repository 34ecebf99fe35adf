"""Start Flower's processes, private and quiet, and end them with all their descendants."""

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
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from src.errors import UserError

POLL = 0.2  # seconds between two looks at a process
END_LIMIT = 10.0  # seconds to wait for killed processes to disappear
LONGEST_TEMP = 30  # characters: a Unix socket's path holds 107, and Ray's own part takes about 75


class EngineError(UserError):
    """Flower's processes did not start or do not answer, or the run took too long."""


@contextmanager
def private_home() -> Iterator[Path]:
    """Make a temporary folder whose path leaves room for Ray's sockets; delete it afterwards.

    Processes that still have it as their FLWR_HOME are killed first: Ray leaves orphans that take
    seconds to notice that their parent is gone, and that no process tree leads to.
    """
    temp = tempfile.gettempdir()
    parent = temp if len(temp) <= LONGEST_TEMP else "/tmp"  # noqa: S108 - mkdtemp keeps it private
    home = Path(tempfile.mkdtemp(prefix="fpc-", dir=parent))
    try:
        yield home
    finally:
        _kill_users_of(home)
        shutil.rmtree(home, ignore_errors=True)


def start(
    command: list[str], home: Path, output: Path, extra: Mapping[str, str] = {}
) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs in a session of its own, so that Ctrl-C reaches only us.

    The working directory is `home`: Ray's workers import from there first, and it contains no
    module that could hide the app's packages.

    Args:
        command: a program of this environment and its arguments.
        home: the folder for Flower's state.
        output: the file for stdout and stderr.
        extra: more environment variables.

    Raises:
        EngineError: the program is not installed.
    """
    env = _environment(home) | dict(extra)
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        raise EngineError(f"{command[0]} is not installed; pip install 'flwr[simulation]'")
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


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process from `start` and all its descendants."""
    end_tree(process.pid)
    process.wait()


def end_tree(pid: int, grace: float = 0.0) -> None:
    """Kill a process from `start` and all its descendants, orphans included.

    Parents die first, so that they start no more children. SIGTERM would not do: a SuperLink waits
    for its clients, and a simulation for its ServerApp, however long that computes.

    Args:
        grace: seconds that the process gets after SIGTERM; a SuperNode signs off in that time.
    """
    tree = _tree(pid)
    if grace and tree:
        with suppress(psutil.NoSuchProcess):
            tree[0].terminate()
        psutil.wait_procs(tree[:1], grace)
    for process in [*tree, *_tree(pid)]:  # once more, for children started in the meantime
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + END_LIMIT
    while any(map(alive, tree)) and time.monotonic() < deadline:
        time.sleep(POLL)


def _kill_users_of(home: Path) -> None:
    users = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.environ().get("FLWR_HOME", "/")).is_relative_to(home):
                process.kill()
                users.append(process)
    psutil.wait_procs(users, END_LIMIT)


def _tree(pid: int) -> list[psutil.Process]:
    """A process, its descendants, and the other members of its process group."""
    tree: dict[int, psutil.Process] = {}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        tree = {process.pid: process for process in [root, *root.children(recursive=True)]}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == pid:
                tree.setdefault(process.pid, process)
    return list(tree.values())


def alive(process: psutil.Process) -> bool:
    """Whether a process runs. A container without an init may list dead ones as zombies."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM (from a scheduler or `docker stop`) into SystemExit, so that cleanup runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set a handler
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def free_port() -> int:
    """A port of this machine that is free right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def bypass_proxy(env: MutableMapping[str, str] = os.environ) -> None:
    """Exempt this machine from the proxy settings: a company's proxy cannot reach our SuperLink."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [*env.get(name, "").split(","), "127.0.0.1", "localhost"]
        env[name] = ",".join(filter(None, dict.fromkeys(hosts)))


def _environment(home: Path) -> dict[str, str]:
    """Our environment, with settings that keep Flower and Ray private and quiet."""
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    bypass_proxy(env)
    return env | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",  # keep equal lines of different clients
        "RAY_COLOR_PREFIX": "0",
        "PYTHONUNBUFFERED": "1",  # show lines as soon as they are printed
    }
