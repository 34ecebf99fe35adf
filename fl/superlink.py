"""A SuperLink of our own for one run: started, waited for, and ended with its offspring.

`flwr run` would start one that stays behind, with the environment of whoever ran first. This one is
a child of our process, with a home, a port and a Ray folder that no other run sees.
"""

import http.client
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil
import tomli_w

from fl.roles import superlink_command

CONNECTION = "ours"  # the name of our SuperLink in the home's config.toml
LOG = "superlink.log"  # in the home
POLL = 0.2  # seconds between two looks at a process
START_LIMIT = 60.0  # seconds that the SuperLink may take to answer; 3 to 4 on two idle cores
END_LIMIT = 10.0  # seconds that the killed may take to be gone
LONGEST_TEMP = 30  # characters: a Unix socket's path holds 107, and Ray's own part takes about 75


class EngineError(Exception):
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


@contextmanager
def superlink(home: Path, ends: float) -> Iterator[None]:
    """A SuperLink for simulations, answering on this machine until the block is left.

    `ends` is a time of time.monotonic. Raises EngineError when it does not start.
    """
    port = free_port()
    connect(home, port)
    process = serve(home, port, ends, "--simulation")
    try:
        yield
    finally:
        end(process)


def connect(home: Path, port: int) -> None:
    """Let `flwr` find the SuperLink on this port of our machine, by the name CONNECTION."""
    connections = {"superlink": {CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
    (home / "config.toml").write_text(tomli_w.dumps(connections), encoding="utf-8")


def serve(home: Path, port: int, ends: float, *options: str) -> subprocess.Popen[bytes]:
    """Start a SuperLink for this machine, and wait until it answers.

    Raises:
        EngineError: it does not start.
    """
    process = start([*superlink_command("127.0.0.1", port), *options], home, home / LOG)
    try:
        _wait_until_healthy(process, port, min(ends, time.monotonic() + START_LIMIT))
    except BaseException:
        end(process)
        raise
    return process


def start(command: list[str], home: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start a command of Flower, in a session of its own so that Ctrl-C reaches only us.

    It runs in the home: Ray's workers import from their working directory before anything else, and
    there it holds nothing that could hide the app's own packages.
    """
    env = _environment(home)
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


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started and all that descends from it.

    Parents go first, so that none has the time to start another. Asking politely would not do: a
    SuperLink waits for its readers, and a simulation for its ServerApp, however long that computes.
    """
    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    ends = time.monotonic() + END_LIMIT
    while any(map(_alive, family)) and time.monotonic() < ends:
        time.sleep(POLL)


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


def _environment(home: Path) -> dict[str, str]:
    """What the processes of the run see: ours, with Flower and Ray kept private and quiet."""
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


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, ends: float) -> None:
    while not _healthy(port):
        if process.poll() is not None:
            raise EngineError(
                "not started", f"Flower's SuperLink ended at once, with code {process.returncode}"
            )
        if time.monotonic() > ends:
            raise EngineError("not started", "Flower's SuperLink did not answer in time")
        time.sleep(POLL)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _alive(process: psutil.Process) -> bool:
    """A zombie is dead; in a container it may stay listed for want of an init to bury it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
