"""metrics.json as a row: dotted names, and what is not a figure left out."""

from src.reporting.flat import flatten

METRICS = {
    "config": {"seed": 3},
    "federated": {"image_auroc": 0.9, "au_spro": {"0.05": 0.4}},
    "local": {
        "clients": [{"client": 0}, {"client": 1}],
        "mean": {"image_auroc": 0.8, "image_ap": 0.7},
        "worst": {"client": 1, "image_auroc": 0.6},
    },
    "bank": {"size": 10, "dtype": "float16", "radius": None},
    "traffic": {"upload_bytes": [5, 7], "broadcast_bytes": 3, "stages": [{"up": 12}]},
    "threshold": {"mtd": 31.5},
    "objects": {"mtd": {"federated": {"image_auroc": 0.9}}},
    "refused": [{"client": 2, "reason": "it holds no training images"}],
    "seed": 3,
}


def test_figures_have_dotted_names_and_clients_are_counted() -> None:
    assert flatten(METRICS) == {
        "federated.image_auroc": 0.9,
        "federated.au_spro.0.05": 0.4,
        "bank.size": 10,
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


def test_a_run_without_baselines_has_fewer_figures() -> None:
    bare = {"federated": {"image_auroc": 0.9}, "threshold": 2.5}
    assert flatten(bare) == {"federated.image_auroc": 0.9, "threshold": 2.5, "refused": 0}
