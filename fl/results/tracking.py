"""Log a run's metrics to TensorBoard or MLflow, as the setting `track` says.

Each is imported only when used. TensorBoard's files go into the run directory. MLflow writes to
MLFLOW_TRACKING_URI, or to mlflow.db beside the run directory.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fl.config import ConfigError
from src.reporting.flatten import flatten_metrics
from src.storage.run_metrics import RunMetrics

EXPERIMENT = "fedpatchcore"
FOLDER = "tensorboard"
DATABASE = "mlflow.db"


def check_tracker(track: str) -> None:
    """Check before the run that its tracker is installed.

    Raises:
        ConfigError: it is not installed.
    """
    if track and importlib.util.find_spec(track) is None:
        raise ConfigError(f"track = {track}: not installed; pip install 'fedpatchcore[{track}]'")


def track_run(track: str, out: Path, metrics: RunMetrics) -> None:
    """Log all settings, and all numbers of metrics.json by dotted name."""
    if track:
        _WRITE[track](out, metrics.config, flatten_metrics(metrics))


def _to_tensorboard(out: Path, config: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out / FOLDER)) as writer:
        rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")
        for name, value in metrics.items():
            writer.add_scalar(name, value)


def _to_mlflow(out: Path, config: Mapping[str, object], metrics: Mapping[str, float]) -> None:
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{out.parent / DATABASE}")
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name=out.name):
        mlflow.log_params(dict(config))
        mlflow.log_metrics(dict(metrics))


_WRITE: dict[str, Callable[[Path, Mapping[str, object], Mapping[str, float]], None]] = {
    "tensorboard": _to_tensorboard,
    "mlflow": _to_mlflow,
}
