"""A run that broke off after the merge goes on from it, and ends as it would have."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fl.results.run_directory import held
from flwr.app import Context, Message

from fl.config import ConfigError
from fl.server.federation import RoundFailed
from src.models import PatchCore

SAME = ("model.safetensors", "partition.json", "scores.csv")


def dying(message: Message, context: Context) -> Message:
    raise OSError("the machine is gone")


@pytest.fixture(scope="module")
def broken_off(run, misbehave, tmp_path_factory) -> Path:
    """The run directory of a run whose clients were all lost after the merge."""
    out = tmp_path_factory.mktemp("broken")
    with pytest.raises(RoundFailed, match="only 0 of 3 clients scored"):
        run(client_app=misbehave({}, dict.fromkeys(range(3), dying)), out=str(out))
    return out


def never(message: Message, context: Context) -> Message:
    raise AssertionError("a resumed run asks for no banks")


def test_what_broke_off_is_no_result_but_a_model_that_can_be_used(broken_off, clean) -> None:
    assert {p.name for p in broken_off.iterdir()} >= {"config.toml", "round.json", SAME[0]}
    assert not (broken_off / "metrics.json").exists()
    model = PatchCore.load(broken_off / "model.safetensors")
    np.testing.assert_array_equal(model.get_memory_bank(), clean.model.banks["bracket"])


def test_a_resumed_run_ends_as_one_that_was_not_broken_off(
    run, misbehave, broken_off, clean
) -> None:
    app = misbehave(dict.fromkeys(range(3), never))
    done = run(client_app=app, out=str(broken_off), resume=True)
    for name in SAME:
        assert (done.out / name).read_bytes() == (clean.out / name).read_bytes(), name
    for key in ("local", "federated", "centralized", "bank"):
        assert done.metrics[key] == clean.metrics[key], key
    counts, *_ = [s for s in done.metrics["traffic"]["stages"] if s["stage"] == "counts"]
    assert 0 < counts["up"] < 2000  # it has asked whether there are new images
    assert set(json.loads((done.out / "metrics.json").read_text())) == set(clean.metrics)


def test_client_left_out_of_the_merge_stays_named_until_it_is_back(
    run, misbehave, clean, tmp_path
) -> None:
    app = misbehave({1: dying}, dict.fromkeys(range(3), dying))
    with pytest.raises(RoundFailed):
        run(client_app=app, out=str(tmp_path), min_clients=2)
    gone = misbehave({1: dying}, {1: dying}, {1: dying})
    done = run(client_app=gone, out=str(tmp_path), resume=True, min_clients=2)
    assert [entry["client"] for entry in done.metrics["refused"]] == ["node 1002"]
    assert [c["client"] for c in done.metrics["local"]["clients"]] == [0, 2]
    back = run(out=str(tmp_path), resume=True, min_clients=2)
    assert back.metrics["refused"] == []
    assert [c["client"] for c in back.metrics["local"]["clients"]] == [0, 1, 2]
    assert back.metrics["bank"]["size"] == clean.metrics["bank"]["size"]


def test_without_a_merge_there_is_nothing_to_go_on_from(run, tmp_path) -> None:
    with pytest.raises(ConfigError, match="holds no merged bank to go on from"):
        run(out=str(tmp_path), resume=True)


def test_a_merge_of_another_backbone_is_not_taken_up(run, broken_off) -> None:
    with pytest.raises(ConfigError, match="is of another backbone"):
        run(out=str(broken_off), resume=True, model__weights="random")


def test_a_merge_of_a_later_version_is_not_taken_up(run, misbehave, tmp_path) -> None:
    with pytest.raises(RoundFailed):
        run(client_app=misbehave({}, dict.fromkeys(range(3), dying)), out=str(tmp_path))
    path = tmp_path / "round.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    with pytest.raises(ConfigError, match="is of version 9"):
        run(out=str(tmp_path), resume=True)


def test_resuming_needs_a_run_directory(settings) -> None:
    with pytest.raises(ConfigError, match="resume: name the run directory"):
        settings(resume=True, out="")


def test_a_run_directory_takes_one_run_at_a_time(run, tmp_path) -> None:
    with held(tmp_path), pytest.raises(ConfigError, match="another run is writing there"):
        run(out=str(tmp_path))
    assert run(out=str(tmp_path)).metrics["federated"]


@pytest.mark.parametrize(
    ("full_at", "kept"),
    [("config.toml", "nothing was merged yet"), ("report.html", "its merged bank is kept")],
)
def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(
    run, clean, tmp_path, monkeypatch, full_at: str, kept: str
) -> None:
    replace = Path.replace

    def full(draft: Path, target: Path) -> Path:
        if target.name == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(draft, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(RoundFailed, match=f"No space left on device; {kept}"):
            run(out=str(tmp_path))
    assert not (tmp_path / "metrics.json").exists()
    assert not [p for p in tmp_path.iterdir() if full_at in p.name]
    again = run(out=str(tmp_path), resume=full_at == "report.html")
    assert (again.out / SAME[0]).read_bytes() == (clean.out / SAME[0]).read_bytes()
