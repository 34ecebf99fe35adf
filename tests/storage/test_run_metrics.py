"""metrics.json: what is written is read again, and what does not fit the schema is refused."""

import json

import pytest

from src.storage.run_metrics import RunMetrics
from src.storage.tensor_file import FileError

SECONDS = {"features": 1.0, "coreset": 2.0, "merge": 0.5, "evaluate": 1.5, "local": 1.0}
CONTENT = {
    "config": {"seed": 3, "merge.oversample": 6.0, "resume": False, "track": ""},
    "local": {
        "clients": [
            {"client": 0, "images": 4, "patches": 64, "bank": 6, "sent": 30, "image_auroc": 0.8}
        ]
    },
    "bank": {"size": 6, "dim": 2, "dtype": "float32", "bytes": 48, "radius": None},
    "fairness": {},
    "traffic": {"upload_bytes": [5], "broadcast_bytes": 3, "stages": []},
    "seconds": SECONDS | {"total": 6.0},
    "work": SECONDS,
    "threshold": {"mtd": 31.5},
    "refused": [{"client": "node 7", "reason": "timeout"}],
    "privacy": {"mechanism": "none", "guarantee": "none"},
    "versions": {"torch": "2.9.0"},
    "seed": 3,
    "federated": {"image_auroc": 0.9, "aupro_0.05": 0.5, "au_spro": {"0.05": 0.4}},
}


def test_content_is_written_as_it_was_read(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(CONTENT, indent=2) + "\n")
    text = path.read_text()
    RunMetrics.read(path).write(path)
    assert path.read_text() == text


def test_absent_values_are_none_and_aliased_keys_have_names(tmp_path):
    metrics = RunMetrics.model_validate(CONTENT)
    assert metrics.centralized is None
    assert metrics.federated.image_ap is None
    assert metrics.federated.aupro_005 == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "three"}, r"metrics\.json, seed: .*valid integer"),
        ({"bank": {**CONTENT["bank"], "size": None}}, r"metrics\.json, bank\.size: "),
        ({"bank": {"size": 1}}, r"metrics\.json, bank\.dim: Field required"),
        ({"figures": {}}, r"metrics\.json, figures: Extra inputs"),
    ],
)
def test_wrong_content_is_refused_by_file_and_key(tmp_path, change, message):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(CONTENT | change))
    with pytest.raises(FileError, match=message):
        RunMetrics.read(path)


def test_torn_file_is_refused_by_name(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(CONTENT)[:-9])
    with pytest.raises(FileError, match=r"metrics\.json: Invalid JSON"):
        RunMetrics.read(path)
