"""Trackers get what metrics.json holds; nobody who did not ask for one loads it."""

import importlib.util
import subprocess
import sys

import pytest

from fl.config import ConfigError
from src.reporting.flatten import flatten_metrics
from src.storage.run_metrics import RunMetrics


def test_tensorboard_gets_settings_and_figures(run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = run(track="tensorboard")
    events = EventAccumulator(str(found.out / "tensorboard")).Reload()
    figures = flatten_metrics(RunMetrics.model_validate(found.metrics))
    assert set(events.Tags()["scalars"]) == set(figures)
    for name, value in figures.items():
        assert events.Scalars(name)[0].value == pytest.approx(value, rel=1e-6)
    (text,) = (events.Tensors(tag)[0] for tag in events.Tags()["tensors"])
    assert b"| merge.oversample | 2.0 |" in text.tensor_proto.string_val[0]


def test_mlflow_gets_settings_and_figures(run, monkeypatch, tmp_path) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = run(track="mlflow", out=str(tmp_path / "runs" / "first"))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'fedpatchcore'")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_name == "first"
    flat = flatten_metrics(RunMetrics.model_validate(found.metrics))
    assert tracked.data.metrics == pytest.approx(flat)
    assert tracked.data.params["merge.oversample"] == "2.0"


def test_one_that_is_not_installed_is_refused_before_anything_is_done(
    run, monkeypatch, tmp_path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == "mlflow" else real(n))
    with pytest.raises(ConfigError, match=r"pip install 'fedpatchcore\[mlflow\]'"):
        run(track="mlflow", out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_is_loaded_unasked() -> None:
    code = "import sys, fl.server_app; print({'tensorboard', 'mlflow'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
