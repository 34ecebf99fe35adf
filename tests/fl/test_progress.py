"""Bars show what the processes of a run write, however far each line has come."""

import json
import time
from pathlib import Path

import pytest

from fl.progress import FOLDER, ProgressView, reporter


def shown(view: ProgressView) -> dict[str, tuple[float, float | None]]:
    """Description -> (done, total) of each bar."""
    return {task.description: (task.completed, task.total) for task in view.bars.tasks}


@pytest.fixture
def view(tmp_path: Path) -> ProgressView:
    """A view that looks when told to."""
    (tmp_path / FOLDER).mkdir()
    return ProgressView(tmp_path)


def test_several_writers_have_bars_of_their_own(view: ProgressView, tmp_path: Path) -> None:
    one, other = reporter(tmp_path, "client 0"), reporter(tmp_path, "client 1")
    one("features")(5, 5)
    one("coreset")(2, 8)
    other("features")(1, 4)
    view._look()
    assert shown(view) == {
        "client 0 features": (5, 5),
        "client 0 coreset": (2, 8),
        "client 1 features": (1, 4),
    }
    other("features")(4, 4)
    view._look()
    assert shown(view)["client 1 features"] == (4, 4)


def test_half_a_line_is_read_when_it_is_whole(view: ProgressView, tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "client 0.jsonl"
    lines = [{"who": "c", "stage": "features", "done": n, "total": 3} for n in (1, 2)]
    first, second = (json.dumps(line) + "\n" for line in lines)
    with path.open("w") as file:
        for text, done in ((first + second[:9], 1), (second[9:-1], 1), ("\n", 2)):
            file.write(text)
            file.flush()
            view._look()
            assert shown(view) == {"c features": (done, 3)}


def test_names_in_any_script_are_read(view: ProgressView, tmp_path: Path) -> None:
    report = reporter(tmp_path, "Werk Köln")("Merkmale ≥ 1")
    for done in (3, 3, 3):
        report(done, 3)
        view._look()
    assert shown(view) == {"Werk Köln Merkmale ≥ 1": (3, 3)}


def test_the_end_of_a_stage_is_always_written_and_little_else(tmp_path: Path) -> None:
    report = reporter(tmp_path, "client 0")("scoring")
    for done in range(1, 1001):
        report(done, 1000)
    lines = (tmp_path / FOLDER / "client 0.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["done"] == 1000
    assert len(lines) < 20


def test_where_no_folder_is_shared_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    reporter(None, "client 0")("features")(1, 2)
    assert list(tmp_path.iterdir()) == []


def test_view_follows_by_itself_and_ends_with_the_last_line_read(tmp_path: Path) -> None:
    with ProgressView(tmp_path) as view:
        report = reporter(tmp_path, "client 0")("features")
        report(1, 2)
        ends = time.monotonic() + 10
        while shown(view) != {"client 0 features": (1, 2)}:
            assert time.monotonic() < ends
            time.sleep(0.02)
        report(2, 2)
    assert shown(view) == {"client 0 features": (2, 2)}


def test_bars_of_an_earlier_run_in_the_same_folder_are_not_shown(tmp_path: Path) -> None:
    reporter(tmp_path, "client 7")("features")(1, 2)
    with ProgressView(tmp_path) as view:
        pass
    assert shown(view) == {}
