"""A simulated run says truthfully how it ended, and leaves nothing behind."""

import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.engines import submission
from fl.engines.processes import EngineError, end, start
from fl.engines.ray import available_cpus, run_simulation

LeftOver = Callable[[], list[str]]

PROGRAM = """
import sys
from pathlib import Path
from fl.engines.ray import run_simulation

run_simulation(Path(sys.argv[1]), {"then": "hang"}, supernodes=2, cpus=1, gpus=0,
               log=Path(sys.argv[2]), deadline=300)
"""


@pytest.mark.slow
def test_good_run_is_ok_and_hears_every_client(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    shown: list[str] = []
    result = run_simulation(
        app_dir,
        {"data.root": '/a b/"ü"'},
        supernodes=2,
        cpus=1,
        gpus=0,
        log=tmp_path / "logs" / "run.log",
        deadline=300,
        show=shown.append,
    )
    assert (result.ok, result.status, result.error) == (True, "finished:completed", "")
    assert {f'greetings from client {i} /a b/"ü"' for i in range(2)} <= set(shown)
    assert result.log.read_text(encoding="utf-8").splitlines() == shown
    assert left_over() == []
    [home] = re.findall(r"installed tiny to (.*)/apps/", "\n".join(shown))
    assert not Path(home).exists()


@pytest.mark.slow
def test_exception_of_the_server_app_is_the_error_of_the_run(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    result = run_simulation(
        app_dir,
        {"then": "raise"},
        supernodes=2,
        cpus=1,
        gpus=0,
        log=tmp_path / "run.log",
        deadline=300,
    )
    assert (result.ok, result.status) == (False, "finished:failed")
    assert result.error == "the merge got no bank:\nno client answered"
    assert "Traceback" in result.log.read_text()
    assert left_over() == []


@pytest.mark.slow
def test_sigterm_in_the_middle_of_a_run_ends_all_of_it(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    log = tmp_path / "run.log"
    program = [sys.executable, "-c", PROGRAM, str(app_dir), str(log)]
    checkout = Path(__file__).parents[3]
    with subprocess.Popen(program, cwd=checkout) as process:
        waits_until = time.monotonic() + 120
        while not (log.exists() and "the ServerApp is here" in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < waits_until
            time.sleep(0.2)
        assert "flwr-simulation" in left_over()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert left_over() == []


@pytest.mark.slow
def test_setting_that_the_app_does_not_have_is_named(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    result = run_simulation(
        app_dir, {"sed": 7}, supernodes=2, cpus=1, gpus=0, log=tmp_path / "run.log", deadline=300
    )
    assert (result.ok, result.status) == (False, "not started")
    assert "'sed'" in result.error
    assert left_over() == []


def test_run_longer_than_its_deadline_is_stopped(tmp_path: Path, left_over: LeftOver) -> None:
    with pytest.raises(EngineError, match="longer than its deadline") as caught:
        submission._copy_lines(
            ["sh", "-c", "echo started; sleep 60 & sleep 60"],
            tmp_path,
            tmp_path / "out.log",
            time.monotonic() + 0.5,
            None,
            0,
        )
    assert caught.value.status == "timed out"
    assert (tmp_path / "out.log").read_text() == "started\n"
    assert left_over() == []


def test_a_stream_taken_up_again_repeats_nothing(tmp_path: Path) -> None:
    log, seen = tmp_path / "out.log", 0
    for printed in ("one\ntwo\n╭─ Error ─╮\n│ gone │\n╰─╯", "one\ntwo\nthree\n"):
        stream = ["printf", printed.replace("\n", "\\n")]
        seen = submission._copy_lines(stream, tmp_path, log, time.monotonic() + 30, None, seen)
    assert log.read_text() == "one\ntwo\nthree\n"


def test_refused_run_gives_flower_s_words_without_the_box(tmp_path: Path) -> None:
    box = "Using SuperLink: x\n╭─ Error ──╮\n│ No such connection. │\n╰─╯"
    with pytest.raises(EngineError, match=r"^No such connection\.$") as caught:
        submission._start_run(["printf", box], tmp_path, time.monotonic() + 30)
    assert caught.value.status == "not started"


def test_end_reaches_the_grandchildren(tmp_path: Path, left_over: LeftOver) -> None:
    process = start(["sh", "-c", "sh -c 'sleep 60 & wait' & wait"], tmp_path, tmp_path / "out")
    while left_over().count("sleep") == 0:
        time.sleep(0.05)
    end(process)
    assert left_over() == []


def test_command_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=re.escape("pip install 'flwr[simulation]'")):
        start(["flower-no-such-command"], tmp_path, tmp_path / "out")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.lists(st.integers(0, 9)))
def test_lines_of_a_growing_log_come_out_whole_and_once(text: str, cuts: list[int]) -> None:
    lines = [text[i : i + 3] for i in range(0, len(text), 3)] + ["end"]
    data = "\n".join(lines).encode()
    seen: list[str] = []
    log, start_ = io.BytesIO(), 0
    for cut in [*cuts, len(data)]:
        read_to = log.tell()
        log.seek(0, io.SEEK_END)
        log.write(data[start_ : start_ + cut])
        log.seek(read_to)
        start_ += cut
        seen += submission._new_lines(log, over=False)
    seen += submission._new_lines(log, over=True)
    assert seen == lines


@pytest.mark.parametrize(
    ("details", "log", "error"),
    [
        ("Simulation failed with exception: no bank", "", "no bank"),
        (
            "Simulation failed with exception: An error was encountered. Ending simulation.",
            "ERROR : An exception occured!! ActorPool is empty.\nmore",
            "ActorPool is empty.",
        ),
        (
            "Simulation failed with exception: no bank",
            "An exception occured!! of another kind",
            "no bank",
        ),
    ],
)
def test_error_is_the_first_cause(details: str, log: str, error: str) -> None:
    assert submission._explain(details, log) == error


def test_silent_death_is_explained() -> None:
    assert "out of memory" in submission._explain("No heartbeat received from the task", "")


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", None), ("150000 100000", 1), ("20000 100000", 1)]
)
def test_quota_of_a_container_limits_the_cpus(quota: str, cpus: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    without = available_cpus(tmp_path / "absent")
    assert available_cpus(tmp_path / "cpu.max") == (cpus or without)


@pytest.mark.parametrize("wrong", [{"supernodes": 0}, {"cpus": 0}, {"gpus": -0.5}])
def test_senseless_resources_are_refused_before_anything_starts(
    wrong: dict, app_dir: Path, tmp_path: Path
) -> None:
    resources = {"supernodes": 2, "cpus": 1, "gpus": 0} | wrong
    with pytest.raises(ValueError, match="at least one client"):
        run_simulation(app_dir, {}, **resources, log=tmp_path / "log", deadline=9)


def test_folder_without_an_app_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no Flower app")):
        run_simulation(tmp_path, {}, supernodes=1, cpus=1, gpus=0, log=tmp_path / "log", deadline=9)


def test_only_the_packages_of_the_app_are_copied(app_dir: Path, tmp_path: Path) -> None:
    for other in (".venv", "data"):
        (app_dir / other).mkdir()
        (app_dir / other / "big.py").write_text("")
    app = submission._stage(app_dir, tmp_path)
    assert {path.name for path in app.iterdir()} == {"pyproject.toml", "tiny"}
