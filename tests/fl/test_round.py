"""One round: the federation computes what it should, sends no more, and says what it did."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from PIL import Image

from fl.client_app import app as client_app
from fl.messages import unpack_banks
from fl.setup import build_model, open_split
from fl.strategy import RoundFailed
from src.client import SHARED, by_bank
from src.data import write_synthetic
from src.data.partition import Partition
from src.evaluation.scored import Scored, evaluate
from src.models import FeatureExtractor

FRACTION, OVERSAMPLE, SEED = 0.1, 2.0, 42  # as in conftest.py


def plain_selection(rows: np.ndarray, count: int) -> np.ndarray:
    """Farthest-first, slowly: the rows in the order picked."""
    picks = [int(np.random.default_rng(SEED).integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    while len(picks) < count:
        to_last = np.linalg.norm(rows.astype(float) - rows[picks[-1]].astype(float), axis=1)
        nearest = np.minimum(nearest, to_last)
        picks.append(int(nearest.argmax()))
    return rows[picks]


def plain_federation(settings, partition: Partition, bank: str) -> np.ndarray:
    """The round without Flower: select per client, put together, select again."""
    model, data = build_model(settings), open_split(settings)
    sent, budget = [], 0
    for client in range(len(partition.clients)):
        held = by_bank(data.share(partition, client).train, settings.model_scope)
        if bank in held:
            grids = model.embed(held[bank])
            patches = np.concatenate([grid.features.flatten(0, 1).numpy() for grid in grids])
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


def test_each_object_s_bank_is_that_of_the_clients_that_hold_it(run, settings, two_objects) -> None:
    skewed = {"partition__kind": "dirichlet", "partition__alpha": 0.05}
    done, expected = federate(run, settings, data__root=str(two_objects), **skewed)
    held = [
        {key.split("/")[0] for key in share.train}
        for share in Partition.load(done.out / "partition.json").clients
    ]
    assert any(len(objects) == 1 for objects in held)  # a client lacks an object
    assert sorted(expected) == ["bracket", "connector"]
    for name, bank in expected.items():
        np.testing.assert_array_equal(done.model.banks[name], bank)
    figures = done.metrics["objects"]
    assert sorted(figures) == sorted(expected)
    assert "of the objects they hold" in done.metrics["local"]["test_images"]
    means = [figures[name]["federated"]["image_auroc"] for name in expected]
    assert done.metrics["federated"]["image_auroc"] == pytest.approx(np.mean(means))


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


def test_order_of_replies_does_not_change_a_figure(run, clean) -> None:
    shuffled = run(shuffle=3)
    for key in ("federated", "centralized", "local", "bank", "threshold", "traffic"):
        assert shuffled.metrics[key] == clean.metrics[key]
    assert (shuffled.out / "scores.csv").read_text() == (clean.out / "scores.csv").read_text()


def test_another_seed_is_another_bank(run, clean) -> None:
    other = run(seed=43)
    ours, theirs = other.model.banks["bracket"], clean.model.banks["bracket"]
    assert ours.shape == theirs.shape
    assert not np.array_equal(ours, theirs)


def recording(exchanged: list[tuple[str, Message, Message]]) -> ClientApp:
    """The ClientApp, writing down every request and reply."""
    app = ClientApp()

    def note(kind: str, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        exchanged.append((kind, message, reply))
        return reply

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return note("train", message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return note("evaluate", message, context)

    return app


@pytest.fixture(scope="module")
def exchanged(run) -> list[tuple[str, Message, Message]]:
    """(kind, request, reply) of all messages of a round."""
    messages: list[tuple[str, Message, Message]] = []
    run(client_app=recording(messages))
    return messages


def texts(content: RecordDict) -> Iterator[str]:
    """Every string in a message, those within JSON and the names of things included."""
    for name, record in content.items():
        yield name
        for key, value in record.items():
            yield key
            if isinstance(record, ConfigRecord):
                values = value if isinstance(value, list) else [value]
                yield from (str(v) for v in values)


def test_a_reply_holds_banks_and_named_fields_and_nothing_else(exchanged) -> None:
    assert [kind for kind, _, _ in exchanged] == ["train"] * 3 + ["evaluate"] * 3
    for kind, _, reply in exchanged:
        content = reply.content
        if kind == "train":
            assert set(content) == {"banks", "about"}
            assert set(content["banks"]) == {"bracket"}
            fields = {"client", "fingerprint", "version", "banks", "seconds"}
            counts = {"share", "images", "patches", "radius", "share_radius"}
            assert set(content["about"]) == fields | counts
        else:
            assert set(content) == {"about"}
            assert set(content["about"]) == {"client", "results"}
            named = set(json.loads(content["about"]["results"]))
            assert named == {
                *("client", "federated", "calibration", "seconds"),
                *("local", "local_images"),
            }
        assert not any(isinstance(record, MetricRecord) for record in content.values())


def test_no_reply_holds_a_path_or_the_name_of_a_file(exchanged, parts) -> None:
    names = {part for path in parts.rglob("*") for part in path.relative_to(parts).parts}
    assert {"train", "good", "scratch", "0000", "0000.png", "metadata.csv"} <= names
    numbers = {name for name in names if name.isdigit()}  # which figures may hold
    forbidden = {"/", "\\", parts.parent.name} | names - numbers - {"bracket"}
    for _, _, reply in exchanged:
        for text in texts(reply.content):
            assert not [word for word in forbidden if word in text], text
            assert text not in numbers


def test_arrays_of_a_reply_are_a_coreset_and_no_image(exchanged) -> None:
    for kind, _, reply in exchanged:
        arrays = [r for r in reply.content.values() if isinstance(r, ArrayRecord)]
        assert len(arrays) == (kind == "train")
        for record in arrays:
            [rows] = unpack_banks(record).values()
            assert (rows.shape, rows.dtype) == ((26, 152), np.float16)  # a fifth of 128 patches


def test_every_client_is_sent_the_merged_bank_and_scores_with_it(exchanged, clean, settings):
    merged = clean.model.banks["bracket"]
    for kind, request, reply in exchanged:
        if kind == "evaluate":
            np.testing.assert_array_equal(unpack_banks(request.content["banks"])["bracket"], merged)
            number = reply.content["about"]["client"]
            test = open_split(settings()).share(
                Partition.load(clean.out / "partition.json"), number
            )
            model = build_model(settings())
            model.set_memory_bank(merged)
            farthest = max(p.distances.max() for p in model.score(test.train))
            said = json.loads(reply.content["about"]["results"])
            assert said["calibration"]["bracket"]["radius"] == pytest.approx(farthest)


def test_half_precision_halves_the_upload(run, clean) -> None:
    whole = run(merge__encoding="float32").metrics["traffic"]
    half = clean.metrics["traffic"]
    for key in ("upload_bytes", "broadcast_bytes"):
        ratio = np.divide(whole[key], half[key])
        np.testing.assert_allclose(ratio, 2, atol=0.03)  # arrays have headers


def test_federated_figures_are_of_the_whole_test_set(clean, settings) -> None:
    model, test = build_model(settings()), open_split(settings()).test
    model.set_memory_bank(clean.model.banks["bracket"])
    expected = evaluate(model, test, Scored.of(test.samples, model.score(test)))
    assert clean.metrics["federated"] == expected
    assert clean.metrics["dataset"]["test_images"] == len(test) == 6


def test_radii_hold_for_the_merged_bank(clean) -> None:
    bank = clean.metrics["bank"]
    assert 0 < bank["radius"] <= bank["radius_bound"]
    assert bank["size"] == sum(client["bank"] for client in clean.metrics["local"]["clients"])


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """An entry for each call of a backbone: the images it got."""
    calls: list[int] = []
    forward = FeatureExtractor.forward

    def counted(self, images):
        calls.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    return calls


def test_each_image_goes_through_the_backbone_once_in_all_experiments(
    run, passes, tmp_path
) -> None:
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
    with Image.open(done.out / "maps/part/test/dent/0.png") as drawn:
        assert drawn.size == (96, 64)
    sides = [done.metrics[side] for side in ("federated", "centralized")]
    for figures in [*sides, *done.metrics["local"]["clients"]]:  # there are no masks
        assert not {"pixel_auroc", "aupro", "au_spro"} & set(figures)
        assert "image_auroc" in figures


def test_without_baselines_there_is_nothing_to_compare_with(run) -> None:
    done = run(evaluate__baselines=False)
    assert "centralized" not in done.metrics
    assert set(done.metrics["local"]) == {"clients"}
    assert all("image_auroc" not in client for client in done.metrics["local"]["clients"])
    assert "image_auroc" in done.metrics["federated"]
    head = (done.out / "scores.csv").read_text().splitlines()[0]
    assert head == "object,image,label,defect,client,federated,centralized"


def test_partition_of_a_file_is_the_one_used(run, clean) -> None:
    path = clean.out / "partition.json"
    again = run(partition__file=str(path), partition__kind="quantity", seed=42)
    assert json.loads((again.out / "partition.json").read_text()) == json.loads(path.read_text())
    assert again.metrics["local"]["clients"][0]["images"] == 2


@pytest.fixture(scope="module")
def plants(tmp_path_factory) -> list[Path]:
    """Two data roots of two plants, with images of their own."""
    folder = tmp_path_factory.mktemp("plants")
    size = {"good": 2, "defects": 2, "size": (64, 64)}
    return [
        write_synthetic(folder / f"plant {i}", ("bracket",), train=2 + i, seed=i, **size)
        for i in range(2)
    ]


def test_nodes_with_data_of_their_own_need_no_shared_folder(run, plants) -> None:
    nodes = [{"partition-id": i, "data-root": str(root)} for i, root in enumerate(plants)]
    messages: list[tuple[str, Message, Message]] = []
    done = run(
        client_app=recording(messages),
        nodes=nodes,
        clients=0,
        data__shared=False,
        data__root="",
    )
    metrics = done.metrics
    assert [c["images"] for c in metrics["local"]["clients"]] == [2, 3]
    assert metrics["local"]["test_images"] == "their own test images"
    assert {"centralized", "dataset"}.isdisjoint(metrics)
    own = [json.loads(r.content["about"]["results"]) for k, _, r in messages if k == "evaluate"]
    mean = np.mean([results["federated"]["mean"]["image_auroc"] for results in own])
    assert metrics["federated"]["image_auroc"] == pytest.approx(mean)
    written = {path.name for path in done.out.iterdir()}
    assert written == {"config.toml", "metrics.json", "model.safetensors"}
    for _, request, reply in messages:
        assert request.content["config"]["workspace"] == ""
        for content in (request.content, reply.content):
            assert not [text for text in texts(content) if "plant" in text]


def test_local_banks_are_scored_on_own_images_where_others_are_elsewhere(run, plants) -> None:
    nodes = [{"partition-id": i, "data-root": str(root)} for i, root in enumerate(plants)]
    done = run(nodes=nodes, clients=2, data__shared=False, data__root="")
    assert all("image_auroc" in client for client in done.metrics["local"]["clients"])


def test_node_without_data_is_told_to_name_its_data_root(run) -> None:
    with pytest.raises(RoundFailed, match=r"client 1: .*data-root"):
        run(
            nodes=[{"partition-id": 1}],
            clients=1,
            data__kind="folder",
            data__root="",
            data__shared=False,
        )
