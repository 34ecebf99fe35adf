"""Test images are scored object by object, each with the bank of its object."""

import numpy as np
import pytest

from src.data import open_dataset, write_synthetic
from src.federated.bank_set import SHARED, BankSet, split_by_object
from src.federated.scoring import install, metrics_by_object, score, score_test_set
from src.federated.types import Bank
from tests.federated.plain import patches_of


@pytest.fixture(scope="module")
def test_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts") / "set"
    write_synthetic(root, train=2, good=2, defects=2, size=(64, 64))
    return open_dataset("synthetic", root, "all", "test")


@pytest.fixture
def bank(model, images) -> Bank:
    return Bank(patches_of(model, images(2))[::3])


def scores_of(score_set) -> list[float]:
    return [prediction.score for prediction in score_set.predictions]


def test_scores_belong_to_the_images_and_the_installed_bank(model, bank, test_images) -> None:
    connectors = split_by_object(test_images)["connector"]
    install(model, bank)
    scores = score(model, connectors)
    assert scores.keys == tuple(sample.key for sample in connectors.samples)
    one = score(model, connectors.select([2]))
    assert one.predictions[0].score == scores.by_key()[connectors.samples[2].key].score


def test_each_object_is_scored_with_its_own_bank(model, images, bank, test_images) -> None:
    banks = BankSet({"connector": bank, "bracket": Bank(patches_of(model, images(1, seed=5)))})
    scores = score_test_set(model, banks, test_images)
    assert list(scores) == ["bracket", "connector"]
    for name, of_object in split_by_object(test_images).items():
        install(model, banks[name])
        assert scores_of(scores[name]) == scores_of(score(model, of_object))


def test_an_object_without_a_bank_has_no_scores_and_no_metrics(model, bank, test_images) -> None:
    scores = score_test_set(model, BankSet({"connector": bank}), test_images)
    assert list(scores) == ["connector"]
    metrics = metrics_by_object(model, test_images, scores)
    assert list(metrics) == ["connector"]
    assert 0 <= metrics["connector"]["image_auroc"] <= 1


def test_a_shared_bank_scores_every_object(model, bank, test_images) -> None:
    together = score_test_set(model, BankSet({SHARED: bank}), test_images)
    apart = score_test_set(model, BankSet({"bracket": bank, "connector": bank}), test_images)
    for name in ("bracket", "connector"):
        np.testing.assert_array_equal(scores_of(together[name]), scores_of(apart[name]))
