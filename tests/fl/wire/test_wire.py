"""Messages of a round carry banks and counts, and nothing of images or their places."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.setup.data import open_split
from fl.setup.model import build_model
from fl.wire.arrays import unpack_banks
from src.data.partition import Partition


def recording(exchanged: list[tuple[str, Message, Message]]) -> ClientApp:
    """The ClientApp, which also records every request and reply."""
    app = ClientApp()

    def record(kind: str, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        exchanged.append((kind, message, reply))
        return reply

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return record("train", message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return record("evaluate", message, context)

    return app


@pytest.fixture(scope="module")
def exchanged(run) -> list[tuple[str, Message, Message]]:
    """(kind, request, reply) of all messages of a round."""
    messages: list[tuple[str, Message, Message]] = []
    run(client_app=recording(messages))
    return messages


def texts(content: RecordDict) -> Iterator[str]:
    """Every string in a message, JSON and the names of records and fields included."""
    for name, record in content.items():
        yield name
        for key, value in record.items():
            yield key
            if isinstance(record, ConfigRecord):
                values = value if isinstance(value, list) else [value]
                yield from (str(v) for v in values)


def test_a_reply_holds_banks_and_named_fields_and_nothing_else(exchanged) -> None:
    sender = {"client", "fingerprint", "version", "seconds"}
    assert [kind for kind, _, _ in exchanged] == ["train"] * 3 + ["evaluate"] * 3
    for kind, _, reply in exchanged:
        content = reply.content
        if kind == "train":
            assert set(content) == {"banks", "about", "ticket"}
            assert set(content["banks"]) == {"bracket"}
            counts = {"share", "images", "patches", "radius", "share_radius"}
            assert set(content["about"]) == sender | counts | {"banks"}
        else:
            assert set(content) == {"about", "ticket"}
            assert set(content["about"]) == sender | {"results"}
            results = json.loads(content["about"]["results"])
            assert set(results) == {"federated", "calibration", "local", "local_images"}
        assert not any(isinstance(record, MetricRecord) for record in content.values())


def test_no_reply_holds_a_path_or_the_name_of_a_file(exchanged, parts) -> None:
    names = {part for path in parts.rglob("*") for part in path.relative_to(parts).parts}
    assert {"train", "good", "scratch", "0000", "0000.png", "metadata.csv"} <= names
    numbers = {name for name in names if name.isdigit()}  # which may be part of a value
    forbidden = {"/", "\\", parts.parent.name} | names - numbers - {"bracket"}
    for _, _, reply in exchanged:
        for text in texts(reply.content):
            assert not [word for word in forbidden if word in text], text
            assert text not in numbers


def test_the_only_array_of_a_reply_is_a_coreset(exchanged) -> None:
    for kind, _, reply in exchanged:
        arrays = [r for r in reply.content.values() if isinstance(r, ArrayRecord)]
        assert len(arrays) == (kind == "train")
        for record in arrays:
            [rows] = unpack_banks(record).values()
            assert (rows.shape, rows.dtype) == ((26, 152), np.float16)  # a fifth of 128 patches


def test_every_client_gets_the_merged_bank_and_scores_with_it(exchanged, clean, settings) -> None:
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
            results = json.loads(reply.content["about"]["results"])
            assert results["calibration"]["bracket"]["radius"] == pytest.approx(farthest)


def test_half_precision_halves_the_upload(run, clean) -> None:
    whole = run(merge__encoding="float32").metrics["traffic"]
    half = clean.metrics["traffic"]
    for key in ("upload_bytes", "broadcast_bytes"):
        ratio = np.divide(whole[key], half[key])
        np.testing.assert_allclose(ratio, 2, atol=0.07)  # banks of eight kilobytes have headers


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
    results = [json.loads(r.content["about"]["results"]) for k, _, r in messages if k == "evaluate"]
    mean = np.mean([each["federated"]["mean"]["image_auroc"] for each in results])
    assert metrics["federated"]["image_auroc"] == pytest.approx(mean)
    written = {path.name for path in done.out.iterdir()}
    assert written == {
        "config.toml",
        "metrics.json",
        "model.safetensors",
        "report.html",
        "round.json",
    }
    for _, request, reply in messages:
        assert request.content["config"]["workspace"] == ""
        for content in (request.content, reply.content):
            assert not [text for text in texts(content) if "plant" in text]


def test_local_banks_are_scored_on_own_images_if_others_cannot_be_seen(run, plants) -> None:
    nodes = [{"partition-id": i, "data-root": str(root)} for i, root in enumerate(plants)]
    done = run(nodes=nodes, clients=2, data__shared=False, data__root="")
    assert all("image_auroc" in client for client in done.metrics["local"]["clients"])


@pytest.mark.parametrize("phase", ["train", "test"])
def test_an_image_that_cannot_be_read_is_named_only_in_the_node_s_own_log(
    run, plants, tmp_path, caplog, phase: str
) -> None:
    root = shutil.copytree(plants[1], tmp_path / "secret plant")
    [broken, *_] = (root / "bracket" / phase / "good").glob("*.png")
    broken.write_bytes(b"no image")
    roots = [plants[0], root]
    nodes = [{"partition-id": i, "data-root": str(root)} for i, root in enumerate(roots)]
    messages: list[tuple[str, Message, Message]] = []
    app = recording(messages)
    done = run(
        client_app=app, nodes=nodes, clients=2, min_clients=1, data__shared=False, data__root=""
    )
    [refused] = done.metrics["refused"]
    assert refused["reason"].endswith("DataError (the node's own log says more)")
    for _, _, reply in messages:
        assert not [t for t in texts(reply.content) if "secret" in t or ".png" in t]
    assert str(broken) in caplog.text


def test_a_node_without_data_is_asked_for_its_data_root(run) -> None:
    with pytest.raises(RoundFailed, match=r"client 1: .*data-root"):
        run(
            nodes=[{"partition-id": 1}],
            clients=1,
            data__kind="folder",
            data__root="",
            data__shared=False,
        )


@pytest.mark.parametrize("unscored", [[0], [0, 1]], ids=["one", "all"])
def test_a_run_ends_well_although_nodes_have_no_metrics(
    run, plants, misbehave, rewrite, unscored: list[int]
) -> None:
    def without_metrics(content: RecordDict) -> None:
        results = json.loads(content["about"]["results"])
        none = {"mean": {}, "objects": {}}
        content["about"]["results"] = json.dumps({**results, "federated": none, "local": none})

    nodes = [{"partition-id": i, "data-root": str(root)} for i, root in enumerate(plants)]
    app = misbehave({}, dict.fromkeys(unscored, rewrite(without_metrics)))
    done = run(client_app=app, nodes=nodes, clients=2, data__shared=False, data__root="")
    assert done.metrics["refused"] == []
    assert ("image_auroc" in done.metrics["federated"]) == (len(unscored) == 1)
    assert (done.out / "report.html").is_file()
