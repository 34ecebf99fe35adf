"""Processes of a run report progress in the run directory, in few lines."""

import json
from pathlib import Path

from fl.workspace.progress import FOLDER, Clock, reporter


def test_the_end_of_a_stage_is_always_written_and_little_else(tmp_path: Path) -> None:
    report = reporter(tmp_path, "client 0")("scoring")
    for done in range(1, 1001):
        report(done, 1000)
    lines = (tmp_path / FOLDER / "client 0.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["done"] == 1000
    assert len(lines) < 20


def test_without_a_shared_run_directory_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    reporter(None, "client 0")("features")(1, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_adds_up_the_laps_of_a_stage(monkeypatch) -> None:
    times = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    clock = Clock()
    for stage in ("features", "coreset", "features"):
        clock.lap(stage)
    assert clock.laps == {"features": 5.0, "coreset": 2.0}
