"""Processes that we start end with all their descendants."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fl.engines.processes import EngineError, bypass_proxy, end, private_home, start
from fl.engines.ray import available_cpus


def test_end_reaches_the_grandchildren(tmp_path: Path, left_over: Callable) -> None:
    process = start(["sh", "-c", "sh -c 'sleep 60 & wait' & wait"], tmp_path, tmp_path / "out")
    while left_over().count("sleep") == 0:
        time.sleep(0.05)
    end(process)
    assert left_over() == []


def test_orphans_end_with_their_home(left_over: Callable) -> None:
    with private_home() as home:
        process = start(["sh", "-c", "setsid sleep 60 &"], home, home / "out")
        process.wait()
        while left_over().count("sleep") == 0:
            time.sleep(0.05)
    assert left_over() == []


def test_a_program_that_is_not_installed_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=re.escape("pip install 'flwr[simulation]'")):
        start(["flower-no-such-command"], tmp_path, tmp_path / "out")


def test_this_machine_is_exempt_from_the_proxy_once() -> None:
    env = {"NO_PROXY": "plant.example,localhost"}
    bypass_proxy(env)
    bypass_proxy(env)
    assert env["NO_PROXY"] == "plant.example,localhost,127.0.0.1"
    assert env["no_proxy"] == "127.0.0.1,localhost"


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", None), ("150000 100000", 1), ("20000 100000", 1)]
)
def test_quota_of_a_container_limits_the_cpus(quota: str, cpus: int | None, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    without = available_cpus(tmp_path / "absent")
    assert available_cpus(tmp_path / "cpu.max") == (cpus or without)
