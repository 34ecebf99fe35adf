"""A valid metrics.json to build the tests' runs from."""

from typing import Any

from fl.config import affects
from src.storage.run_metrics import RunMetrics

STAGES = {"features": 0.0, "coreset": 0.0, "merge": 0.0, "evaluate": 0.0, "local": 0.0}
BARE: dict[str, Any] = {
    "config": {},
    "local": {},
    "bank": {"size": 0, "dim": 1, "dtype": "float32", "bytes": 0, "radius": None},
    "fairness": {},
    "traffic": {"upload_bytes": [], "broadcast_bytes": 0, "stages": []},
    "seconds": STAGES,
    "work": STAGES,
    "threshold": {},
    "refused": [],
    "privacy": {"mechanism": "none", "guarantee": ""},
    "versions": {},
    "seed": 0,
}
CLIENT = {"images": 0, "patches": 0, "bank": 0, "sent": 0}
DATASET = {"name": "mtd", "objects": ["mtd"], "train_images": 0, "test_images": 0}


def content_of(**changes: Any) -> dict[str, Any]:
    """The content of a metrics.json with some keys replaced; parts are merged key by key."""
    changed = {
        key: {**BARE[key], **value} if isinstance(value, dict) and key in BARE else value
        for key, value in changes.items()
    }
    return {**BARE, **changed}


def metrics_of(**changes: Any) -> RunMetrics:
    """The same, through the schema."""
    return RunMetrics.model_validate(content_of(**changes))


def sets_apart(key: str) -> bool:
    """What `fedpatchcore report` groups runs by."""
    return affects(key) == "result"
