"""One round gives the bank that a plain computation gives, and metrics that belong to it."""

import json

import numpy as np
import pytest
from flwr.app import Context, Message
from PIL import Image

from fl.client_app import app as client_app
from fl.config import check_settings
from fl.setup.data import open_split
from fl.setup.model import build_model
from src.data.partition import Partition
from src.evaluation.score_set import ScoreSet, compute_metrics
from src.federated.bank_set import SHARED, split_by_bank
from src.models import FeatureExtractor, PatchCore

FRACTION, OVERSAMPLE, SEED = 0.1, 2.0, 42  # as in conftest.py


def plain_selection(rows: np.ndarray, count: int) -> np.ndarray:
    """Farthest-first, slowly: the rows in the order picked."""
    along = np.random.default_rng(SEED).standard_normal(rows.shape[1])
    picks = [int((rows.astype(float) * along).sum(1).argmax())]
    nearest = np.full(len(rows), np.inf)
    while len(picks) < count:
        to_last = np.linalg.norm(rows.astype(float) - rows[picks[-1]].astype(float), axis=1)
        nearest = np.minimum(nearest, to_last)
        picks.append(int(nearest.argmax()))
    return rows[picks]


def plain_federation(settings, partition: Partition, bank: str) -> np.ndarray:
    """The round without Flower: select per client, concatenate, select again."""
    model, data = build_model(settings), open_split(settings)
    sent, budget = [], 0
    for client in range(len(partition.clients)):
        train = split_by_bank(data.share(partition, client).train, settings.model_scope)
        if bank in train:
            batches = model.embed(train[bank])
            patches = np.concatenate([each.features.flatten(0, 2).numpy() for each in batches])
            sent.append(plain_selection(patches, round(OVERSAMPLE * FRACTION * len(patches))))
            budget += round(FRACTION * len(patches))
    return plain_selection(np.concatenate(sent), budget)


def federate(run, settings, **changes):
    """A run, and each of its banks as the plain federation computes it."""
    done, checked = run(**changes), settings(**changes)
    partition = Partition.load(done.out / "partition.json")
    return done, {name: plain_federation(checked, partition, name) for name in done.model.banks}


def test_merged_bank_is_select_concatenate_select_row_for_row(run, settings) -> None:
    done, expected = federate(run, settings)
    np.testing.assert_array_equal(done.model.banks["bracket"], expected["bracket"])


def test_an_object_s_bank_is_merged_from_the_clients_that_hold_it(
    run, settings, two_objects
) -> None:
    skewed = {"partition__kind": "dirichlet", "partition__alpha": 0.05}
    done, expected = federate(run, settings, data__root=str(two_objects), **skewed)
    objects = [
        {key.split("/")[0] for key in share.train}
        for share in Partition.load(done.out / "partition.json").clients
    ]
    assert any(len(of_client) == 1 for of_client in objects)  # a client lacks an object
    assert sorted(expected) == ["bracket", "connector"]
    for name, bank in expected.items():
        np.testing.assert_array_equal(done.model.banks[name], bank)
    by_object = done.metrics["objects"]
    assert sorted(by_object) == sorted(expected)
    assert "of the objects they hold" in done.metrics["local"]["test_images"]
    aurocs = [by_object[name]["federated"]["image_auroc"] for name in expected]
    assert done.metrics["federated"]["image_auroc"] == pytest.approx(np.mean(aurocs))


def test_shared_scope_merges_one_bank_for_all_objects(run, settings, two_objects) -> None:
    changes = {"data__root": str(two_objects), "model__scope": "shared", "clients": 2}
    done, expected = federate(run, settings, **changes, partition__kind="category")
    assert list(done.model.banks) == [SHARED]
    np.testing.assert_array_equal(done.model.banks[SHARED], expected[SHARED])
    assert sorted(done.metrics["objects"]) == ["bracket", "connector"]
    assert done.metrics["local"]["test_images"] == "all 8 test images"
    assert isinstance(done.metrics["threshold"], float)


def test_order_of_replies_and_repetition_do_not_change_a_byte_of_the_model(run, clean) -> None:
    expected = (clean.out / "model.safetensors").read_bytes()
    for shuffle in (None, 1, 2):
        assert (run(shuffle=shuffle).out / "model.safetensors").read_bytes() == expected


def test_metrics_depend_neither_on_which_node_is_which_client_nor_on_who_answers_first(run) -> None:
    one = run(clients=6)
    for numbers in ((5, 3, 1, 0, 2, 4), (2, 4, 0, 5, 1, 3), (5, 4, 3, 2, 1, 0)):
        other = run(nodes=[{"partition-id": i} for i in numbers], clients=6, shuffle=3)
        for key in one.metrics.keys() - {"seconds", "work", "config"}:
            assert other.metrics[key] == one.metrics[key], key
        assert (other.out / "scores.csv").read_text() == (one.out / "scores.csv").read_text()


def test_another_seed_is_another_bank(run, clean) -> None:
    other = run(seed=43)
    ours, theirs = other.model.banks["bracket"], clean.model.banks["bracket"]
    assert ours.shape == theirs.shape
    assert not np.array_equal(ours, theirs)


def test_federated_metrics_are_of_the_whole_test_set(clean, settings) -> None:
    model, test = build_model(settings()), open_split(settings()).test
    model.set_memory_bank(clean.model.banks["bracket"])
    expected = compute_metrics(model, test, ScoreSet.of(test.samples, model.score(test)))
    assert clean.metrics["federated"] == expected
    assert clean.metrics["dataset"]["test_images"] == len(test) == 6


def test_centralized_metrics_are_of_a_model_fitted_on_all_images(clean, settings) -> None:
    model, data = build_model(settings()), open_split(settings())
    model.fit(data.train)
    scores = ScoreSet.of(data.test.samples, model.score(data.test))
    expected = compute_metrics(model, data.test, scores)
    metrics = dict(clean.metrics["centralized"])
    assert metrics.pop("radius") > 0
    assert metrics == expected


def test_radii_hold_for_the_merged_bank(clean) -> None:
    bank = clean.metrics["bank"]
    assert 0 < bank["radius"] <= bank["radius_bound"]
    assert bank["size"] == sum(client["bank"] for client in clean.metrics["local"]["clients"])


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """The number of images in each call of a backbone."""
    calls: list[int] = []
    forward = FeatureExtractor.forward

    def counted(self, images):
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    return calls


def test_each_image_passes_the_backbone_once_in_all_experiments(run, passes, tmp_path) -> None:
    run(cache__dir=str(tmp_path))
    assert sum(passes) == 12
    run(cache__dir=str(tmp_path), partition__kind="quantity", clients=2, seed=7)
    run(cache__dir=str(tmp_path), model__coreset_percentage=0.3, model__neighbors=1)
    assert sum(passes) == 12


@pytest.mark.parametrize(
    ("changes", "patches"),
    [
        ({"data__image_size": "64x96"}, 8 * 12),
        ({"data__image_size": "64", "data__crop": 48}, 6 * 6),
    ],
)
def test_images_may_be_resized_to_rectangles_and_cropped(run, changes, patches: int) -> None:
    metrics = run(**changes).metrics
    assert [client["patches"] for client in metrics["local"]["clients"]] == [2 * patches] * 3
    assert 0 < metrics["federated"]["pixel_auroc"] < 1


def test_images_of_several_sizes_keep_their_own(run, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for i, size in enumerate([(64, 96), (96, 64), (64, 64), (80, 72)]):
        for kind in ("train/good", "test/good", "test/dent"):
            path = tmp_path / "part" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
    changes = {"data__kind": "folder", "data__root": str(tmp_path), "data__image_size": "own"}
    done = run(clients=2, evaluate__maps=True, **changes)
    assert sum(c["patches"] for c in done.metrics["local"]["clients"]) == 96 + 96 + 64 + 90
    with Image.open(done.out / "maps/part/test/dent/0.png") as anomaly_map:
        assert anomaly_map.size == (96, 64)
    sides = [done.metrics[side] for side in ("federated", "centralized")]
    for metrics in [*sides, *done.metrics["local"]["clients"]]:  # there are no masks
        assert not {"pixel_auroc", "aupro", "au_spro"} & set(metrics)
        assert "image_auroc" in metrics


def test_without_baselines_only_the_federated_side_is_reported(run) -> None:
    done = run(evaluate__baselines=False)
    assert "centralized" not in done.metrics
    assert set(done.metrics["local"]) == {"clients"}
    assert all("image_auroc" not in client for client in done.metrics["local"]["clients"])
    assert "image_auroc" in done.metrics["federated"]
    head = (done.out / "scores.csv").read_text().splitlines()[0]
    assert head == "object,image,label,defect,client,federated,centralized"


def test_a_partition_file_is_used_as_it_is(run, clean) -> None:
    path = clean.out / "partition.json"
    again = run(partition__file=str(path), partition__kind="quantity", seed=42)
    assert json.loads((again.out / "partition.json").read_text()) == json.loads(path.read_text())
    assert again.metrics["local"]["clients"][0]["images"] == 2


def test_evaluation_reads_the_training_features_from_the_cache(
    run, misbehave, tmp_path, parts
) -> None:
    entries: list[dict[str, int]] = []  # path -> time of writing, before each evaluation

    def record(message: Message, context: Context) -> Message:
        paths = (tmp_path / "cache").rglob("*.safetensors")
        entries.append({str(path): path.stat().st_mtime_ns for path in paths})
        return client_app(message, context)

    app = misbehave({}, dict.fromkeys(range(3), record))
    run(client_app=app, cache__dir=str(tmp_path / "cache"), evaluate__baselines=False)
    after_train, *_, last = entries
    assert len(after_train) == 6  # the training images alone
    assert after_train.items() <= last.items()


def test_fewer_training_images_are_drawn_by_the_seed_for_all_sides(run, settings) -> None:
    done = run(data__train_images=4)
    assert done.metrics["dataset"]["train_images"] == 4
    assert sum(c["images"] for c in done.metrics["local"]["clients"]) == 4
    splits = [open_split(settings(data__train_images=4, seed=seed)).train for seed in (42, 42, 1)]
    names = [[sample.key for sample in train.samples] for train in splits]
    assert names[0] == names[1] != names[2]
    fewer = open_split(settings(data__train_images=3)).train
    assert {sample.key for sample in fewer.samples} < set(names[0])


def test_patches_on_the_border_do_not_count_in_image_scores(run, clean) -> None:
    done = run(model__border=2, model__neighbors=1)
    model = PatchCore.load(done.out / "model.safetensors")
    assert model.border == 2
    data = open_split(check_settings(done.metrics["config"])).test
    for prediction in model.score(data):
        middle = prediction.distances[2:-2, 2:-2]
        assert prediction.score == pytest.approx(float(middle.max()), rel=1e-5)
    assert done.metrics["bank"]["size"] == clean.metrics["bank"]["size"]
