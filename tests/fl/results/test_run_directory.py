"""What a run leaves behind is complete, agrees with itself, and is of this run alone."""

import csv
import json
import re
import shutil
import tomllib

import numpy as np
import pytest
from PIL import Image

from fl.config import check_settings, default_settings
from src.data import open_dataset
from src.data.partition import Partition
from src.evaluation import image_metrics
from src.evaluation.score_set import ScoreSet
from src.models import PatchCore
from src.models.patchcore import Prediction

FIGURES = {
    *("image_auroc", "image_ap", "image_f1_max"),
    *("pixel_auroc", "aupro", "aupro_0.05", "au_spro"),
}


@pytest.fixture(scope="module")
def drawn(run):
    """A run that draws its maps."""
    return run(evaluate__maps=True)


def rows_of(run) -> list[dict[str, str]]:
    with (run.out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_leaves_these_files_and_no_scratch(drawn, clean) -> None:
    files = {"config.toml", "metrics.json", "report.html", "model.safetensors", "partition.json"}
    files |= {"round.json"}
    assert {path.name for path in clean.out.iterdir()} == files | {"scores.csv"}
    assert {path.name for path in drawn.out.iterdir()} == files | {"scores.csv", "maps"}


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
    held = {"client", "images", "patches", "bank", "sent", "radius"}
    for client in metrics["local"]["clients"]:
        assert set(client) == held | FIGURES
    assert metrics["centralized"].pop("radius") > 0
    for side in (metrics["federated"], metrics["centralized"], metrics["local"]["mean"]):
        assert set(side) == FIGURES
        assert set(side["au_spro"]) == {"0.01", "0.05", "0.1", "0.3", "1.0"}
    assert set(metrics["objects"]["bracket"]) == {"centralized", "federated", "local", "bank"}


def test_metrics_say_what_the_data_were(clean) -> None:
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


def test_settings_that_are_kept_give_the_run_again(run, clean) -> None:
    table = tomllib.loads((clean.out / "config.toml").read_text())
    kept = check_settings(table).flat()
    assert kept == clean.metrics["config"]
    assert kept.keys() == default_settings().keys()
    changes = {k.replace(".", "__").replace("-", "_"): v for k, v in kept.items() if k != "out"}
    assert run(**changes).metrics["federated"] == clean.metrics["federated"]


def test_scores_give_the_figures_of_metrics(clean) -> None:
    rows = rows_of(clean)
    labels = [int(row["label"]) for row in rows]
    columns = {"federated": clean.metrics["federated"], "centralized": clean.metrics["centralized"]}
    clients = clean.metrics["local"]["clients"]
    columns |= {f"local_{i}": client for i, client in enumerate(clients)}
    for name, figures in columns.items():
        scores = [float(row[name]) for row in rows]
        for key, value in image_metrics(scores, labels).items():
            assert figures[key] == pytest.approx(value)


def test_scores_name_each_image_and_whose_it_is(clean) -> None:
    partition = Partition.load(clean.out / "partition.json")
    rows = rows_of(clean)
    assert len({row["image"] for row in rows}) == 6
    for row in rows:
        assert row["image"] in partition.clients[int(row["client"])].test
        assert row["image"].split("/")[2] == row["defect"]
        assert row["label"] == str(int(row["defect"] != "good"))


def test_local_mean_and_worst_are_of_the_clients(clean) -> None:
    local = clean.metrics["local"]
    aurocs = [client["image_auroc"] for client in local["clients"]]
    assert local["mean"]["image_auroc"] == pytest.approx(np.mean(aurocs))
    assert local["worst"]["image_auroc"] == min(aurocs)
    assert local["worst"]["client"] == aurocs.index(min(aurocs))


def test_bank_and_traffic_count_what_is_there(clean) -> None:
    bank, traffic = clean.metrics["bank"], clean.metrics["traffic"]
    features = clean.model.banks["bracket"]
    assert (bank["size"], bank["dim"], bank["dtype"]) == (*features.shape, str(features.dtype))
    assert bank["bytes"] == features.nbytes
    sent = [client["sent"] * bank["dim"] * 2 for client in clean.metrics["local"]["clients"]]
    np.testing.assert_allclose(traffic["upload_bytes"], sent, atol=500)  # and what is said of them
    assert traffic["broadcast_bytes"] == pytest.approx(features.nbytes, abs=500)
    up = [stage["up"] for stage in traffic["stages"] if stage["stage"] == "banks"]
    assert sum(up) == sum(traffic["upload_bytes"])
    assert sum(stage["down"] for stage in traffic["stages"]) == traffic["broadcast_bytes"]


def test_model_scores_like_the_run_and_knows_its_threshold(clean, parts) -> None:
    model = PatchCore.load(clean.out / "model.safetensors", device="cpu")
    assert model.threshold == clean.metrics["threshold"]["bracket"]
    test = open_dataset("autovi", parts, "all", "test")
    scores = [prediction.score for prediction in model.score(test)]
    kept = {row["image"]: float(row["federated"]) for row in rows_of(clean)}
    expected = [kept[sample.key] for sample in test.samples]
    np.testing.assert_allclose(scores, expected, rtol=2e-3)  # the run's features were halves


def test_maps_lie_where_the_official_evaluator_looks(drawn, parts) -> None:
    images = {path.relative_to(parts).as_posix() for path in parts.glob("bracket/test/*/*.png")}
    maps = drawn.out / "maps"
    found = {path.relative_to(maps).as_posix() for path in maps.rglob("*.png")}
    assert found == images
    for name in found:
        with Image.open(maps / name) as image:
            assert (image.size, image.mode) == ((64, 64), "I;16")


def test_report_is_one_file_that_fetches_nothing(clean) -> None:
    report = (clean.out / "report.html").read_text()
    assert "<html" in report
    places = re.findall(r"""(?:src|href)=["']?(.{5})|url\((.{5})""", report)
    assert {place for pair in places for place in pair if place} == {"data:"}


def test_what_a_run_that_was_killed_left_is_not_counted(run, clean, tmp_path) -> None:
    """Client 7 of an earlier run in this folder scored all images, and scored them zero."""
    keys = tuple(row["image"] for row in rows_of(clean))
    zero = Prediction(0.0, np.zeros((8, 8), np.float32), (64, 64))
    for side in ("federated", "local"):
        place = tmp_path / "run" / "scores" / side / "bracket" / "7.safetensors"
        ScoreSet(keys, (zero,) * len(keys)).save(place)
    again = run(out=str(tmp_path / "run"))
    assert again.metrics["federated"] == clean.metrics["federated"]
    assert rows_of(again) == rows_of(clean)


def test_a_folder_can_be_used_again(run, clean, tmp_path) -> None:
    out = shutil.copytree(clean.out, tmp_path / "again")
    again = run(out=str(out), seed=43)
    assert again.metrics["seed"] == 43
    model = (clean.out / "model.safetensors").read_bytes()
    assert (again.out / "model.safetensors").read_bytes() != model


def test_where_no_folder_is_named_one_is_made_in_the_cache(run, cache) -> None:
    run(out="")
    assert (cache / "runs" / "1" / "metrics.json").is_file()
