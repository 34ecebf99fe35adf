"""The files of a run are complete and agree with each other."""

import csv
import re

import numpy as np
import pytest
from PIL import Image

from src.data import open_dataset
from src.data.partition import Partition
from src.evaluation import image_metrics
from src.models import PatchCore


@pytest.fixture(scope="module")
def with_maps(run):
    """A run that writes anomaly maps."""
    return run(evaluate__maps=True)


def rows_of(run) -> list[dict[str, str]]:
    with (run.out / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_these_files_and_no_scratch_files(with_maps, clean) -> None:
    files = {"config.toml", "metrics.json", "report.html", "model.safetensors", "partition.json"}
    files |= {"round.json"}
    assert {path.name for path in clean.out.iterdir()} == files | {"scores.csv"}
    assert {path.name for path in with_maps.out.iterdir()} == files | {"scores.csv", "maps"}


def test_scores_give_the_image_metrics(clean) -> None:
    rows = rows_of(clean)
    labels = [int(row["label"]) for row in rows]
    columns = {"federated": clean.metrics["federated"], "centralized": clean.metrics["centralized"]}
    clients = clean.metrics["local"]["clients"]
    columns |= {f"local_{i}": client for i, client in enumerate(clients)}
    for name, metrics in columns.items():
        scores = [float(row[name]) for row in rows]
        for key, value in image_metrics(scores, labels).items():
            assert metrics[key] == pytest.approx(value)


def test_scores_name_each_image_and_its_client(clean) -> None:
    partition = Partition.load(clean.out / "partition.json")
    rows = rows_of(clean)
    assert len({row["image"] for row in rows}) == 6
    for row in rows:
        assert row["image"] in partition.clients[int(row["client"])].test
        assert row["image"].split("/")[2] == row["defect"]
        assert row["label"] == str(int(row["defect"] != "good"))


def test_the_model_file_scores_like_the_run_and_holds_its_threshold(clean, parts) -> None:
    model = PatchCore.load(clean.out / "model.safetensors", device="cpu")
    assert model.threshold == clean.metrics["threshold"]["bracket"]
    test = open_dataset("autovi", parts, "all", "test")
    scores = [prediction.score for prediction in model.score(test)]
    by_image = {row["image"]: float(row["federated"]) for row in rows_of(clean)}
    expected = [by_image[sample.key] for sample in test.samples]
    np.testing.assert_allclose(scores, expected, rtol=2e-3)  # the run's features were halves


def test_maps_lie_where_the_official_evaluator_looks(with_maps, parts) -> None:
    images = {path.relative_to(parts).as_posix() for path in parts.glob("bracket/test/*/*.png")}
    maps = with_maps.out / "maps"
    names = {path.relative_to(maps).as_posix() for path in maps.rglob("*.png")}
    assert names == images
    for name in names:
        with Image.open(maps / name) as image:
            assert (image.size, image.mode) == ((64, 64), "I;16")


def test_the_report_is_one_file_that_fetches_nothing(clean) -> None:
    report = (clean.out / "report.html").read_text()
    assert "<html" in report
    places = re.findall(r"""(?:src|href)=["']?(.{5})|url\((.{5})""", report)
    assert {place for pair in places for place in pair if place} == {"data:"}
