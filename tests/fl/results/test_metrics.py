"""metrics.json has the documented keys, and its numbers follow from the run."""

import json

import numpy as np
import pytest

METRICS = {
    *("image_auroc", "image_ap", "image_f1_max"),
    *("pixel_auroc", "aupro", "aupro_0.05", "au_spro"),
}


def test_metrics_have_the_documented_keys(clean) -> None:
    metrics = clean.metrics
    assert set(metrics) == {
        *("config", "dataset", "centralized", "federated", "local", "objects"),
        *("bank", "traffic", "seconds", "threshold", "refused", "privacy", "versions", "seed"),
        *("work", "fairness", "heterogeneity"),
    }
    assert set(metrics["dataset"]) == {"name", "objects", "train_images", "test_images"}
    assert set(metrics["bank"]) == {"size", "dim", "dtype", "bytes", "radius_bound", "radius"}
    assert set(metrics["traffic"]) == {"upload_bytes", "broadcast_bytes", "stages"}
    stages = {"features", "coreset", "merge", "evaluate", "local", "centralized"}
    assert set(metrics["work"]) == stages
    assert set(metrics["seconds"]) == stages | {"total"}
    assert set(metrics["local"]) == {"mean", "worst", "clients", "test_images"}
    counts = {"client", "images", "patches", "bank", "sent", "radius"}
    for client in metrics["local"]["clients"]:
        assert set(client) == counts | METRICS
    assert metrics["centralized"].pop("radius") > 0
    for side in (metrics["federated"], metrics["centralized"], metrics["local"]["mean"]):
        assert set(side) == METRICS
        assert set(side["au_spro"]) == {"0.01", "0.05", "0.1", "0.3", "1.0"}
    assert set(metrics["objects"]["bracket"]) == {"centralized", "federated", "local", "bank"}


def test_metrics_describe_the_dataset(clean) -> None:
    dataset = clean.metrics["dataset"]
    assert (dataset["objects"], dataset["train_images"], dataset["test_images"]) == (
        ["bracket"],
        6,
        6,
    )
    assert clean.metrics["local"]["test_images"] == "all 6 test images"


def test_metrics_are_strict_json(clean) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((clean.out / "metrics.json").read_text(), parse_constant=refuse)


def test_local_mean_and_worst_are_over_the_clients(clean) -> None:
    local = clean.metrics["local"]
    aurocs = [client["image_auroc"] for client in local["clients"]]
    assert local["mean"]["image_auroc"] == pytest.approx(np.mean(aurocs))
    assert local["worst"]["image_auroc"] == min(aurocs)
    assert local["worst"]["client"] == aurocs.index(min(aurocs))


def test_bank_and_traffic_count_rows_and_bytes(clean) -> None:
    bank, traffic = clean.metrics["bank"], clean.metrics["traffic"]
    features = clean.model.banks["bracket"]
    assert (bank["size"], bank["dim"], bank["dtype"]) == (*features.shape, str(features.dtype))
    assert bank["bytes"] == features.nbytes
    sent = [client["sent"] * bank["dim"] * 2 for client in clean.metrics["local"]["clients"]]
    np.testing.assert_allclose(traffic["upload_bytes"], sent, atol=500)  # and counts
    assert traffic["broadcast_bytes"] == pytest.approx(features.nbytes, abs=500)
    up = [stage["up"] for stage in traffic["stages"] if stage["stage"] == "train"]
    assert sum(up) == sum(traffic["upload_bytes"])
    assert sum(stage["down"] for stage in traffic["stages"]) == traffic["broadcast_bytes"]
