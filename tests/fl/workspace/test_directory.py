"""A run directory belongs to one run at a time, and holds nothing of an earlier one."""

import shutil
import tomllib

import numpy as np
import pytest

from fl.config import ConfigError, check_settings, default_settings
from fl.workspace.directory import METRICS, begin_run, load_scores, locked, run_folder, save_scores
from fl.workspace.progress import reporter
from src.evaluation.score_set import ScoreSet
from src.models.patchcore import Prediction


def scores_of(*keys: str, value: float = 0.0) -> ScoreSet:
    prediction = Prediction(value, np.zeros((8, 8), np.float32), (64, 64))
    return ScoreSet(keys, (prediction,) * len(keys))


def test_a_run_directory_takes_one_run_at_a_time(run, tmp_path) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="another run is writing there"):
        run(out=str(tmp_path))
    assert run(out=str(tmp_path)).metrics["federated"]


def test_the_settings_in_a_run_directory_give_the_same_run_again(run, clean) -> None:
    table = tomllib.loads((clean.out / "config.toml").read_text())
    kept = check_settings(table).flat()
    assert kept == clean.metrics["config"]
    assert kept.keys() == default_settings().keys()
    changes = {k.replace(".", "__").replace("-", "_"): v for k, v in kept.items() if k != "out"}
    assert run(**changes).metrics["federated"] == clean.metrics["federated"]


def test_a_run_begins_without_metrics_and_scratch_files_of_an_earlier_one(
    settings, tmp_path
) -> None:
    (tmp_path / METRICS).write_text("{}")
    (tmp_path / "model.safetensors").write_text("a model")
    save_scores(tmp_path, "federated", "bracket", 7, scores_of("a.png"))
    reporter(tmp_path, "client 7")("features")(1, 1)
    begin_run(tmp_path, settings(out=str(tmp_path), resume=True))
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml", "model.safetensors"}
    assert tomllib.loads((tmp_path / "config.toml").read_text())["resume"] is False


def test_scores_of_an_earlier_run_that_was_killed_do_not_count(run, clean, tmp_path) -> None:
    """Client 7 of an earlier run in this folder scored all images, and scored them zero."""
    lines = (clean.out / "scores.csv").read_text().splitlines()[1:]
    keys = [line.split(",")[1] for line in lines]
    for side in ("federated", "local"):
        save_scores(tmp_path / "run", side, "bracket", 7, scores_of(*keys))
    again = run(out=str(tmp_path / "run"))
    assert again.metrics["federated"] == clean.metrics["federated"]
    assert (again.out / "scores.csv").read_text().splitlines()[1:] == lines


def test_a_folder_can_be_used_again(run, clean, tmp_path) -> None:
    out = shutil.copytree(clean.out, tmp_path / "again")
    again = run(out=str(out), seed=43)
    assert again.metrics["seed"] == 43
    model = (clean.out / "model.safetensors").read_bytes()
    assert (again.out / "model.safetensors").read_bytes() != model


def test_without_a_name_the_run_directory_is_made_in_the_cache(settings, tmp_path) -> None:
    out = run_folder(settings(out="", cache__dir=str(tmp_path)), run_id=5)
    assert out == tmp_path / "runs" / "5"
    assert out.is_dir()


def test_scores_can_be_read_by_object_and_by_client(tmp_path) -> None:
    for client, name in ((0, "bracket"), (0, "connector"), (1, "bracket")):
        save_scores(tmp_path, "local", name, client, scores_of(f"{name}/{client}.png"))
    assert set(load_scores(tmp_path, "local", "bracket").keys) == {"bracket/0.png", "bracket/1.png"}
    of_client = load_scores(tmp_path, "local", client=0)
    assert set(of_client.keys) == {"bracket/0.png", "connector/0.png"}
    assert load_scores(tmp_path, "federated").keys == ()
