"""A submitted run is followed to its end, over broken streams, and its failure has a cause."""
# ruff: noqa: N802 - these methods are named as those of Flower's client

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from flwr.common.constant import Status, SubStatus
from flwr.proto.control_pb2 import StartRunRequest, StreamLogsRequest, StreamLogsResponse
from hypothesis import given
from hypothesis import strategies as st

from fl.engines import submission
from fl.engines.control import SuperLinkAddress
from fl.engines.submission import RunFailed, submit

BROKEN = httpx.RemoteProtocolError("the SuperLink restarts")


@dataclass
class FakeSuperLink:
    """A control API whose run prints `parts` and ends; an exception among them breaks the stream.

    Its answers advance the clock of the submission.
    """

    parts: list[str | Exception] = field(default_factory=list)
    outcome: str = SubStatus.COMPLETED
    details: str = ""
    ends: bool = True
    now: float = 0.0
    request: StartRunRequest | None = None
    stopped: bool = False

    def StartRun(self, request: StartRunRequest) -> SimpleNamespace:
        self.request = request
        return SimpleNamespace(run_id=7)

    def StreamLogs(self, request: StreamLogsRequest) -> Iterator[StreamLogsResponse]:
        for timestamp, part in enumerate(self.parts, start=1):
            if timestamp <= request.after_timestamp:
                continue
            if isinstance(part, Exception):
                self.parts[timestamp - 1] = ""
                raise part
            yield StreamLogsResponse(log_output=part, latest_timestamp=timestamp)
        if not self.ends:
            raise httpx.ReadTimeout("silence")

    def ListRuns(self, request: object) -> SimpleNamespace:
        done = self.ends and not any(isinstance(part, Exception) for part in self.parts)
        status = SimpleNamespace(
            status=Status.FINISHED if done else Status.RUNNING,
            sub_status=self.outcome,
            details=self.details,
        )
        return SimpleNamespace(run_dict={7: SimpleNamespace(status=status)})

    def StopRun(self, request: object) -> None:
        self.stopped = True

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def run_on(superlink: FakeSuperLink, app_dir: Path, log: Path, **config: object) -> list[str]:
    """Submit the app to the fake; returns the lines of the log."""

    @contextmanager
    def client(address: SuperLinkAddress) -> Iterator[FakeSuperLink]:
        yield superlink

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(submission, "control_client", client)
        patch.setattr(submission, "time", superlink)
        address = nullcontext(SuperLinkAddress("127.0.0.1:1"))
        submit(app_dir, config, lambda home, deadline: address, log=log, timeout=60)
    return log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def submitted(app_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """submitted(superlink, **config): run the tiny app on the fake."""
    return lambda superlink, **config: run_on(superlink, app_dir, tmp_path / "out.log", **config)


def test_a_run_that_exceeds_its_timeout_is_stopped(submitted) -> None:
    superlink = FakeSuperLink(["started\n"], ends=False)
    with pytest.raises(RunFailed, match="longer than its deadline"):
        submitted(superlink)
    assert superlink.stopped


def test_a_superlink_that_stays_away_fails_the_run(submitted, monkeypatch) -> None:
    superlink = FakeSuperLink(["one\n"], ends=False)
    monkeypatch.setattr(submission, "ABSENCE_LIMIT", 5.0)

    def away(request: object) -> None:
        raise BROKEN

    monkeypatch.setattr(superlink, "ListRuns", away)
    with pytest.raises(RunFailed, match="went away during the run"):
        submitted(superlink)


def test_a_broken_stream_is_resumed_without_repetition(submitted) -> None:
    parts = ["one\ntw", BROKEN, "o\n", ValueError("truncated"), "\x1b[32mthree\x1b[0m\r\nrest"]
    assert submitted(FakeSuperLink(parts)) == ["one", "two", "three", "rest"]


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.lists(st.integers(1, 9)))
def test_lines_that_arrive_in_parts_are_written_whole_and_once(
    tmp_path_factory, text: str, cuts: list[int]
) -> None:
    lines = [text[i : i + 3] for i in range(0, len(text), 3)] + ["end"]
    whole, parts = "\n".join(lines), []
    for cut in [*cuts, len(whole)]:
        parts.append(whole[:cut])
        whole = whole[cut:]
    target = tmp_path_factory.mktemp("log") / "run.log"
    copy = submission._LogCopy(7, target)
    assert copy.advance(FakeSuperLink(parts), deadline=float("inf"))
    copy.close()
    assert target.read_text(encoding="utf-8").split("\n") == [*lines, ""]


@pytest.mark.parametrize(
    ("details", "log", "cause"),
    [
        ("Simulation failed with exception: no bank", "", "no bank"),
        (
            "Simulation failed with exception: An error was encountered. Ending simulation.",
            "ERROR : An exception occured!! ActorPool is empty.\nmore\n",
            "ActorPool is empty.",
        ),
        (
            "Simulation failed with exception: no bank",
            "An exception occured!! of another kind\n",
            "no bank",
        ),
        ("No heartbeat received from the task", "", "the ServerApp's process died without"),
        ("", "", "Flower ended the run as finished:failed"),
    ],
)
def test_a_failure_has_its_first_cause(submitted, details: str, log: str, cause: str) -> None:
    superlink = FakeSuperLink([log], SubStatus.FAILED, details)
    with pytest.raises(RunFailed, match=f"^{re.escape(cause)}"):
        submitted(superlink)


def test_a_setting_that_the_app_does_not_have_is_named(submitted) -> None:
    superlink = FakeSuperLink()
    with pytest.raises(RunFailed, match="'sed'"):
        submitted(superlink, sed=7)
    assert superlink.request is None


def test_the_bundle_holds_the_packages_of_the_app_alone(app_dir: Path, submitted) -> None:
    for other in (".venv", "data"):
        (app_dir / other).mkdir()
        (app_dir / other / "big.py").write_text("")
    superlink = FakeSuperLink()
    submitted(superlink, then="return")
    assert superlink.request is not None
    content = superlink.request.fab.content
    assert b"tiny/client_app.py" in content
    assert b"big.py" not in content
    assert superlink.request.override_config["then"].string == "return"


def test_a_folder_without_an_app_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no Flower app")):
        submit(tmp_path, {}, nullcontext, log=tmp_path / "log", timeout=9)
