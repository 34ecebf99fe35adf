"""A simulated run reports truthfully how it ended, and leaves nothing behind."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.engines.ray import simulation_config, simulation_superlink
from fl.engines.submission import RunFailed, submit

pytestmark = pytest.mark.slow

LeftOver = Callable[[], list[str]]

PROGRAM = """
import sys
from pathlib import Path
from tests.fl.engines.test_simulation import simulate

simulate(Path(sys.argv[1]), Path(sys.argv[2]), then="hang")
"""


def simulate(app_dir: Path, log: Path, **config: object) -> None:
    """Run the tiny app with two clients."""
    submit(
        app_dir,
        {key.replace("__", "."): value for key, value in config.items()},
        simulation_superlink,
        simulation=simulation_config(2, 1, 0),
        log=log,
        timeout=300,
    )


def test_a_good_run_hears_every_client(app_dir: Path, tmp_path: Path, left_over: LeftOver) -> None:
    log = tmp_path / "logs" / "run.log"
    simulate(app_dir, log, data__root='/a b/"ü"')
    text = log.read_text(encoding="utf-8")
    assert {f'greetings from client {i} /a b/"ü"' for i in range(2)} <= set(text.splitlines())
    assert left_over() == []
    [home] = re.findall(r"installed tiny to (.*)/apps/", text)
    assert not Path(home).exists()


def test_an_exception_of_the_server_app_is_the_error_of_the_run(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    log = tmp_path / "run.log"
    message = f"the merge got no bank:\nno client answered\n(log: {log})"
    with pytest.raises(RunFailed, match=f"^{re.escape(message)}$"):
        simulate(app_dir, log, then="raise")
    assert "Traceback" in log.read_text()
    assert left_over() == []


def test_sigterm_in_the_middle_of_a_run_ends_all_of_it(
    app_dir: Path, tmp_path: Path, left_over: LeftOver
) -> None:
    log = tmp_path / "run.log"
    program = [sys.executable, "-c", PROGRAM, str(app_dir), str(log)]
    checkout = Path(__file__).parents[3]
    with subprocess.Popen(program, cwd=checkout) as process:
        deadline = time.monotonic() + 120
        while not (log.exists() and "the ServerApp is here" in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "flwr-simulation" in left_over()
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert left_over() == []
