"""The bars of the CLI add up what the processes of a run report."""

import json
import time
from pathlib import Path

import pytest

from fl.cli.progress import ProgressView
from fl.workspace.progress import FOLDER, reporter


def shown(view: ProgressView) -> dict[str, tuple[float, float | None]]:
    """Description -> (done, total) of each bar."""
    return {
        f"{task.description} {task.fields['who']}": (task.completed, task.total)
        for task in view.bars.tasks
    }


@pytest.fixture
def view(tmp_path: Path) -> ProgressView:
    """A view that reads only when it is called."""
    (tmp_path / FOLDER).mkdir()
    return ProgressView(tmp_path, clients=2)


def test_a_stage_has_one_bar_for_all_clients_and_one_for_the_server(view, tmp_path) -> None:
    one, other = reporter(tmp_path, "client 0"), reporter(tmp_path, "client 1")
    server = reporter(tmp_path, "server")
    one("features")(5, 5)
    server("features")(2, 20)
    view._look()
    # client 1 has not begun and counts as much as client 0
    assert shown(view) == {"features 1 of 2 clients": (5, 10), "features server": (2, 20)}
    other("features")(1, 3)
    view._look()
    assert shown(view)["features 2 of 2 clients"] == (6, 8)


def test_pieces_of_a_stage_add_up(view, tmp_path) -> None:
    progress = reporter(tmp_path, "server")
    for rows in (4, 7):  # an object each
        progress("coreset")(rows, rows)
    view._look()
    assert shown(view) == {"coreset server": (11, 11)}


def test_an_unfinished_line_is_read_when_it_is_complete(view: ProgressView, tmp_path: Path) -> None:
    path = tmp_path / FOLDER / "server.jsonl"
    piece = {"who": "server", "stage": "merge", "piece": 0, "total": 3}
    first, second = (json.dumps({**piece, "done": n}) + "\n" for n in (1, 2))
    with path.open("w") as file:
        for text, done in ((first + second[:9], 1), (second[9:-1], 1), ("\n", 2)):
            file.write(text)
            file.flush()
            view._look()
            assert shown(view) == {"merge server": (done, 3)}


def test_names_in_any_script_are_shown(view: ProgressView, tmp_path: Path) -> None:
    report = reporter(tmp_path, "Werk Köln")("Merkmale ≥ 1")
    for done in (3, 3, 3):
        report(done, 3)
        view._look()
    assert shown(view) == {"Merkmale ≥ 1 1 of 2 clients": (3, 6)}


def test_a_view_follows_by_itself_and_ends_when_all_lines_are_read(tmp_path: Path) -> None:
    with ProgressView(tmp_path, clients=1) as view:
        report = reporter(tmp_path, "client 0")("features")
        report(1, 2)
        ends = time.monotonic() + 10
        while shown(view) != {"features 1 of 1 clients": (1, 2)}:
            assert time.monotonic() < ends
            time.sleep(0.02)
        report(2, 2)
    assert shown(view) == {"features 1 of 1 clients": (2, 2)}


def test_progress_of_an_earlier_run_in_the_same_folder_is_not_shown(tmp_path: Path) -> None:
    reporter(tmp_path, "client 7")("features")(1, 2)
    with ProgressView(tmp_path, clients=1) as view:
        pass
    assert shown(view) == {}


def test_a_file_that_the_run_deletes_meanwhile_is_skipped(view, tmp_path) -> None:
    (tmp_path / FOLDER / "client 0.jsonl").symlink_to(tmp_path / "gone")
    reporter(tmp_path, "client 1")("features")(2, 2)
    view._look()
    assert shown(view) == {"features 1 of 2 clients": (2, 4)}
