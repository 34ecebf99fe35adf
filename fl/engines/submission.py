"""Submit the Flower app to a SuperLink of our own, follow it, and say how it ended.

`flwr run` submits it. Its exit code says nothing about the run: the status is asked of the
SuperLink. Everything that was started ends with the run, also after an error, a timeout, Ctrl-C or
SIGTERM.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import tomli_w

from fl.engines.processes import POLL, EngineError, ask, end, private_home, sigterm_exits, start
from fl.engines.superlink import CONNECTION

Scalar = str | int | float | bool
Show = Callable[[str], None]
Serving = Callable[[Path, float], AbstractContextManager[None]]  # a home, and a monotonic time

LOOKS = 20  # times that we ask a SuperLink that does not answer; a minute, or two

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Flower's own words, spelling included: where it says what went wrong
FAILED = re.compile(r"^(Simulation|ServerApp) failed with exception: ")
ENGINE_FAILED = "An error was encountered. Ending simulation."
FIRST_CAUSE = re.compile(r"An exception occured!! (.+)")
BAD_CONFIG = "[code: 15] Invalid run configuration."
REFUSED = re.compile(r"Could not start run: (.+)")
STARTED = re.compile(r"Successfully started run (\d+)")
DIED = "No heartbeat received from the task"


@dataclass(frozen=True)
class RunEnd:
    """How a run ended."""

    ok: bool
    status: str  # Flower's "finished:completed", "finished:failed", "finished:stopped"; or
    #              "not started", "timed out", "unknown"
    error: str  # what went wrong, for a person; "" when ok
    log: Path  # what the apps printed; after a failure also the SuperLink's log


def submit(
    app_dir: Path,
    run_config: Mapping[str, Scalar],
    serving: Serving,
    *,
    federation: str = "",
    log: Path,
    deadline: float,
    show: Show | None = None,
) -> RunEnd:
    """Run the Flower app of a folder on what `serving` starts, and wait for its end.

    The app runs from a copy, in a folder that is deleted: paths in `run_config` must be absolute.

    Args:
        serving: starts a SuperLink that has the connection CONNECTION in the home's config.toml.
        federation: Flower's settings of a simulation, as `flwr run` takes them.
        deadline: seconds, start included.
        show: gets each line of the log as it comes.

    Raises:
        ValueError: the folder holds no app. Whatever happens to the run itself is in the result.
    """
    if not (app_dir / "pyproject.toml").is_file():
        raise ValueError(f"{app_dir} holds no Flower app: it has no pyproject.toml")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    ends = time.monotonic() + deadline
    with sigterm_exits(), private_home() as home:
        command = ["flwr", "run", str(_stage(app_dir, home)), CONNECTION]
        command += ["--run-config", str(_write_config(run_config, home))]
        command += ["--federation-config", federation] if federation else []
        try:
            with serving(home, ends):
                run_id = _start_run(command, home, ends)
                try:
                    status, details = _follow(run_id, home, log, ends, show)
                except BaseException:
                    ask(["flwr", "stop", run_id, CONNECTION], home)
                    raise
        except EngineError as failure:
            status, details = failure.status, str(failure)
        if status == "finished:completed":
            return RunEnd(True, status, "", log)
        _append_logs(home, log)
        return RunEnd(False, status, _explain(details, _read(log)), log)


# --- before the run ---


def _stage(app_dir: Path, home: Path) -> Path:
    """Copy what the app consists of: its pyproject.toml and its packages.

    `flwr run` looks at every file below the folder, in .venv and in data too, before it decides.
    """
    app = home / "app"
    app.mkdir()
    shutil.copy(app_dir / "pyproject.toml", app)
    for package in app_dir.glob("*/__init__.py"):
        shutil.copytree(package.parent, app / package.parent.name)
    return app


def _write_config(run_config: Mapping[str, Scalar], home: Path) -> Path:
    path = home / "run.toml"
    path.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    return path


# --- during the run ---


def _start_run(command: list[str], home: Path, ends: float) -> str:
    """The id of the run that was submitted.

    Raises:
        EngineError: Flower refuses it, in its words.
    """
    code, said = ask(command, home, max(1.0, ends - time.monotonic()))
    started = STARTED.search(said)
    if not started:
        raise EngineError("not started", _boxed(said) or f"`flwr run` ended with code {code}")
    return started[1]


def _follow(run_id: str, home: Path, log: Path, ends: float, show: Show | None) -> tuple[str, str]:
    """Copy what a run prints until it has finished; returns Flower's status, and its details.

    A SuperLink that restarts ends the stream, not the run: we connect again, and skip what we have.

    Raises:
        EngineError: the deadline passes, or the SuperLink stays away.
    """
    stream = ["flwr", "log", run_id, CONNECTION, "--stream"]
    seen, away = 0, 0
    while True:
        seen = _copy_lines(stream, home, log, ends, show, seen)
        run = _look_up(run_id, home)
        if run and run["status"].startswith("finished"):
            return run["status"], run["status-details"]
        away = 0 if run else away + 1
        if away >= LOOKS:
            raise EngineError(
                "unknown",
                "the run's log ended, but Flower's SuperLink does not say how the run did",
            )
        _check_time(ends)
        time.sleep(10 * POLL)


def _copy_lines(
    stream: list[str], home: Path, log: Path, ends: float, show: Show | None, seen: int
) -> int:
    """Copy what a command prints after its first `seen` lines; returns how many it printed."""
    output = home / "run.log"
    process = start(stream, home, output)
    count = 0
    try:
        with output.open("rb") as source:
            over = False
            while not over:
                over = process.poll() is not None
                for line in _new_lines(source, over):
                    if line.startswith(("╭", "│", "╰")):  # Flower's own: the stream broke off
                        continue
                    count += 1
                    if count > seen:
                        _append(log, line + "\n")
                        if show:
                            show(line)
                if not over:
                    _check_time(ends)
                    time.sleep(POLL)
    finally:
        end(process)
    return max(seen, count)


def _new_lines(source: BinaryIO, over: bool) -> Iterator[str]:
    """What was added to a log since the last look, as whole lines; at the end also the rest."""
    while True:
        before = source.tell()
        line = source.readline()
        if not line.endswith(b"\n") and not (over and line):
            source.seek(before)
            return
        yield COLOUR.sub("", line.decode(errors="replace")).rstrip("\r\n")


def _check_time(ends: float) -> None:
    if time.monotonic() > ends:
        raise EngineError("timed out", "the run took longer than its deadline")


def _look_up(run_id: str, home: Path) -> dict[str, str] | None:
    """What the SuperLink says of a run; None where it says nothing."""
    _, said = ask(["flwr", "ls", CONNECTION, "--run-id", run_id, "--format", "json"], home)
    try:
        run: dict[str, str] = json.loads(said)["runs"][0]
        return run
    except (ValueError, LookupError):
        return None


# --- after a failure ---


def _explain(details: str, text: str) -> str:
    """The first cause that Flower knows of, in the words of whoever raised it."""
    if details == DIED:
        return (
            "the process of the ServerApp died without a word; when the system kills it, the "
            "machine has most often run out of memory"
        )
    error = FAILED.sub("", details)
    vague = {ENGINE_FAILED: FIRST_CAUSE, BAD_CONFIG: REFUSED}
    causes = vague[error].findall(text) if error in vague else []
    return causes[0].strip() if causes else error


def _boxed(text: str) -> str:
    """The error of `flwr run`, out of the box that it draws around it; else its last lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join([line.strip("│ ") for line in lines if line.startswith("│")] or lines[-5:])


def _append_logs(home: Path, log: Path) -> None:
    """What the SuperLink printed, and SuperNodes where there were any."""
    for path in sorted(home.glob("super*.log")):
        _append(log, f"\n--- {path.stem} ---\n{COLOUR.sub('', _read(path))}")


def _append(log: Path, text: str) -> None:
    """Write to the log what it can hold: a full disk is the ServerApp's to report."""
    with suppress(OSError), log.open("a", encoding="utf-8") as target:
        target.write(text)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
