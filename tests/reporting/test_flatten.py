"""metrics.json as a row: dotted names, and only numbers."""

from src.reporting.flatten import flatten_metrics
from tests.reporting.runs import CLIENT, metrics_of

METRICS = metrics_of(
    config={"seed": 3},
    federated={"image_auroc": 0.9, "au_spro": {"0.05": 0.4}},
    local={
        "clients": [{"client": 0, **CLIENT}, {"client": 1, **CLIENT}],
        "mean": {"image_auroc": 0.8, "image_ap": 0.7},
        "worst": {"client": 1, "image_auroc": 0.6},
    },
    bank={"size": 10, "dim": 2, "bytes": 40, "dtype": "float16"},
    traffic={
        "upload_bytes": [5, 7],
        "broadcast_bytes": 3,
        "stages": [{"round": 1, "stage": "banks", "up": 12, "down": 1}],
    },
    threshold={"mtd": 31.5},
    objects={"mtd": {"federated": {"image_auroc": 0.9}}},
    refused=[{"client": 2, "reason": "it holds no training images"}],
    seed=3,
)


def test_numbers_have_dotted_names_and_clients_are_counted() -> None:
    flat = flatten_metrics(METRICS)
    assert {k: v for k, v in flat.items() if not k.startswith(("seconds.", "work."))} == {
        "federated.image_auroc": 0.9,
        "federated.au_spro.0.05": 0.4,
        "bank.size": 10,
        "bank.dim": 2,
        "bank.bytes": 40,
        "threshold.mtd": 31.5,
        "local.mean": 0.8,
        "local.mean.image_auroc": 0.8,
        "local.mean.image_ap": 0.7,
        "local.worst": 0.6,
        "local.worst.client": 1,
        "local.worst.image_auroc": 0.6,
        "traffic.upload_bytes": 12,
        "traffic.broadcast_bytes": 3,
        "clients": 2,
        "refused": 1,
    }
    assert flat["seconds.features"] == 0.0


def test_a_shared_bank_has_one_threshold_and_absent_metrics_have_no_entry() -> None:
    flat = flatten_metrics(metrics_of(threshold=2.5))
    assert flat["threshold"] == 2.5
    assert not any(name.startswith(("federated", "local", "privacy")) for name in flat)
