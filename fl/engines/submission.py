"""Submit a Flower app to a SuperLink, follow its log, and report how it ended.

Everything that was started ends with the run, also after an error, a timeout, Ctrl-C or SIGTERM.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.config import get_fused_config_from_dir
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab

from fl.engines.control import SuperLinkAddress, control_client
from fl.engines.processes import POLL, EngineError, private_home, sigterm_exits
from src.errors import UserError

Scalar = str | int | float | bool
Serving = Callable[[Path, float], AbstractContextManager[SuperLinkAddress]]

ABSENCE_LIMIT = 90.0  # seconds that a SuperLink may be away, as for a restart

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Flower's own words, spelling included
FAILED = "failed with exception: "
ENGINE_FAILED = "An error was encountered. Ending simulation."
FIRST_CAUSE = re.compile(r"An exception occured!! (.+)")
DIED = "No heartbeat received from the task"


class RunFailed(UserError):
    """A run that failed; the message is the app's own, and names the log."""


def submit(
    app_dir: Path,
    run_config: Mapping[str, Scalar],
    serving: Serving,
    *,
    simulation: SimulationConfig | None = None,
    log: Path,
    timeout: float,
) -> None:
    """Run the Flower app of a folder on the SuperLink that `serving` starts, and wait for its end.

    The app runs from a copy in another folder, so the paths in `run_config` must be absolute.

    Args:
        serving: called with a private home and the time.monotonic() by which all must be over;
            provides a SuperLink while its block lasts.
        simulation: Flower's settings for a simulation.
        log: a file for what the apps print; after a failure, also for the SuperLink's log.
        timeout: seconds, including the start.

    Raises:
        ValueError: the folder holds no app.
        RunFailed: the run failed, or did not start.
    """
    if not (app_dir / "pyproject.toml").is_file():
        raise ValueError(f"{app_dir} holds no Flower app: it has no pyproject.toml")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    deadline = time.monotonic() + timeout
    with sigterm_exits(), private_home() as home:
        try:
            request = _start_request(app_dir, run_config, simulation)
            with serving(home, deadline) as superlink, control_client(superlink) as client:
                run_id = client.StartRun(request).run_id
                try:
                    status = _follow(client, run_id, log, deadline)
                except BaseException:
                    with suppress(httpx.HTTPError):
                        client.StopRun(StopRunRequest(run_id=run_id))
                    raise
        except EngineError as error:
            cause = str(error)
        else:
            if status.sub_status == SubStatus.COMPLETED:
                return
            cause = _cause(status, log)
        _append_logs(home, log)
        raise RunFailed(f"{cause}\n(log: {log})")


def _start_request(
    app_dir: Path, run_config: Mapping[str, Scalar], simulation: SimulationConfig | None
) -> StartRunRequest:
    """The request that submits an app; it bundles only pyproject.toml and the packages beside it.

    Raises:
        EngineError: Flower cannot bundle the app, or the app has no such setting.
    """
    packages = [init.parent for init in app_dir.glob("*/__init__.py")]
    sources = [path for package in packages for path in package.rglob("*") if path.is_file()]
    paths = [app_dir / "pyproject.toml", *sources]
    try:
        get_fused_config_from_dir(app_dir, dict(run_config))  # refuses keys that the app lacks
        bundle, _ = build_fab_from_files({p.relative_to(app_dir).as_posix(): p for p in paths})
    except ValueError as error:
        raise EngineError(f"Flower refuses the app in {app_dir}: {error}") from error
    return StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})),
        override_config=user_config_to_proto(dict(run_config)),
        override_federation_config=simulation,
    )


# --- during the run ---


def _follow(client: ControlHttpClient, run_id: int, log: Path, deadline: float) -> RunStatus:
    """Copy what a run prints into the log until it has finished; returns its final status.

    A SuperLink that restarts ends the stream, not the run: the stream is resumed where it broke.

    Raises:
        EngineError: the deadline passes, or the SuperLink stays away.
    """
    copy = _LogCopy(run_id, log)
    last_answer = time.monotonic()
    while True:
        status = _status(client, run_id)  # before the copy: the log of a finished run is complete
        finished = copy.advance(client, deadline)
        if status and status.status == Status.FINISHED and finished:
            copy.close()
            return status
        now = time.monotonic()
        last_answer = now if status else last_answer
        if now > deadline:
            raise EngineError("the run took longer than its deadline")
        if now > last_answer + ABSENCE_LIMIT:
            raise EngineError("Flower's SuperLink went away during the run and did not come back")
        time.sleep(POLL)


def _status(client: ControlHttpClient, run_id: int) -> RunStatus | None:
    """The status of a run; None if the SuperLink does not answer."""
    try:
        return client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
    except httpx.HTTPError:
        return None


class _LogCopy:
    """Copies the log of a run to a file, whole lines at a time."""

    def __init__(self, run_id: int, target: Path) -> None:
        self._run_id = run_id
        self._target = target
        self._latest = 0.0  # the SuperLink's timestamp of the last part
        self._rest = ""  # the start of a line

    def advance(self, client: ControlHttpClient, deadline: float) -> bool:
        """Copy what is new, until the stream ends, falls silent or breaks; returns if it ended."""
        request = StreamLogsRequest(run_id=self._run_id, after_timestamp=self._latest)
        try:
            for part in client.StreamLogs(request):
                *lines, self._rest = (self._rest + part.log_output).split("\n")
                self._latest = part.latest_timestamp
                _append(self._target, "".join(f"{_plain(line)}\n" for line in lines))
                if time.monotonic() > deadline:
                    return False
        except (httpx.HTTPError, ValueError):  # ValueError: the stream broke within a part
            return False
        return True

    def close(self) -> None:
        """Write the last line, if it did not end."""
        if self._rest:
            _append(self._target, _plain(self._rest) + "\n")


def _plain(line: str) -> str:
    return COLOUR.sub("", line).rstrip("\r")


# --- after a failure ---


def _cause(status: RunStatus, log: Path) -> str:
    """The first cause of a failure that Flower reports."""
    if status.details == DIED:
        return (
            "the ServerApp's process died without a message; the system may have killed it because "
            "the machine ran out of memory"
        )
    cause = status.details.partition(FAILED)[2] or status.details
    if cause == ENGINE_FAILED:
        causes = FIRST_CAUSE.findall(_read(log))
        cause = causes[0].strip() if causes else cause
    return cause or f"Flower ended the run as {status.status}:{status.sub_status}"


def _append_logs(home: Path, log: Path) -> None:
    """Append the logs of the SuperLink and of the SuperNodes, if there are any."""
    for path in sorted(home.glob("super*.log")):
        _append(log, f"\n--- {path.stem} ---\n{COLOUR.sub('', _read(path))}")


def _append(log: Path, text: str) -> None:
    """Write to the log if it has room; the ServerApp reports a full disk."""
    with suppress(OSError), log.open("a", encoding="utf-8") as target:
        target.write(text)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
