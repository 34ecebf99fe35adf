"""A run's figures in TensorBoard or MLflow as well, where the setting `track` says so.

Neither is imported otherwise. TensorBoard's files lie in the run directory. MLflow writes where
MLFLOW_TRACKING_URI says, else into an mlflow.db beside the run directory.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fl.config import ConfigError
from src.reporting.flat import flatten

EXPERIMENT = "fedpatchcore"
FOLDER = "tensorboard"
DATABASE = "mlflow.db"


def check_tracker(track: str) -> None:
    """Refuse a tracker that is not installed, before a run has cost anything.

    Raises:
        ConfigError: it is not.
    """
    if track and importlib.util.find_spec(track) is None:
        raise ConfigError(
            f"track = {track}: it is not installed; pip install 'fedpatchcore[{track}]'"
        )


def track_run(track: str, out: Path, metrics: Mapping[str, Any]) -> None:
    """Hand what metrics.json holds to a tracker: all settings, and all figures by dotted name."""
    if track:
        _WRITE[track](out, metrics["config"], flatten(metrics))


def _to_tensorboard(out: Path, config: Mapping[str, object], figures: Mapping[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / FOLDER)) as writer:
        rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
        for name, value in figures.items():
            writer.add_scalar(name, value)


def _to_mlflow(out: Path, config: Mapping[str, object], figures: Mapping[str, float]) -> None:
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{out.parent / DATABASE}")
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name=out.name):
        mlflow.log_params(dict(config))
        mlflow.log_metrics(dict(figures))


_WRITE: dict[str, Callable[[Path, Mapping[str, object], Mapping[str, float]], None]] = {
    "tensorboard": _to_tensorboard,
    "mlflow": _to_mlflow,
}
