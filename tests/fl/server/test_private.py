"""Private runs: the mechanism's bank, within its budget, and nothing else about the images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fl.client_app import app as client_app
from fl.config import ConfigError, check_settings
from fl.server.federation import RoundFailed
from fl.setup.data import open_split
from fl.setup.model import build_model
from fl.setup.public import public_images, public_patches
from fl.wire.arrays import pack_banks
from src.models import PatchCore
from src.privacy.ledger import read_ledger
from src.privacy.noise import seeded_noise
from src.privacy.queries import MomentQuery, sum_records
from src.privacy.records import client_sums, read_records
from src.privacy.runner import run_mechanisms

LEDGER, ANSWERS = "privacy_ledger.json", "private.safetensors"


@pytest.fixture(scope="session")
def private(run):
    """private(**changes): a run of three clients with six images, by default dp_gaussian."""

    def make(**changes):
        small = {
            "privacy__mechanism": "dp_gaussian",
            "privacy__epsilon": 50.0,
            "privacy__delta": 0.01,
            "privacy__noise": "seed",
            "evaluate__baselines": False,
        }
        return run(**(small | changes))

    return make


@pytest.mark.parametrize("public", [False, True])
def test_the_bank_is_the_mechanism_s_on_all_images_whoever_holds_them(
    private, parts, public, tmp_path
) -> None:
    folder = str(parts / "bracket" / "test") if public else ""
    done = private(out=str(tmp_path / "run"), shuffle=3, privacy__public_dir=folder)
    checked = check_settings({**done.metrics["config"]})
    model, data = build_model(checked), open_split(checked)
    mechanism = checked.mechanism
    banks = run_mechanisms(
        {"bracket": mechanism.start(152, public_patches(checked, model, "bracket"))},
        lambda queries: {"bracket": client_sums(model, data.train, queries["bracket"], "image")},
        mechanism.params(mechanism.budget(6).mu, 1),
        seeded_noise(checked.seed),
        list,
    )
    bank = banks["bracket"]
    rows, frame = done.model.banks["bracket"], done.model.transforms["bracket"]
    np.testing.assert_allclose(rows, bank.rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.abs(frame.basis), np.abs(bank.basis), rtol=1e-3, atol=1e-4)
    mean, deviation = bank.log_scores
    limit = np.exp(mean + 2.3263 * deviation)
    assert done.metrics["threshold"]["bracket"] == pytest.approx(limit, rel=1e-3)


def test_the_ledger_holds_every_release_and_adds_up_to_the_budget(private) -> None:
    done = private(privacy__noise="system")
    ledger = read_ledger(done.out / LEDGER)
    assert ledger.epsilon == pytest.approx(50, rel=1e-6)
    names = [release.name for release in ledger.releases]
    assert names == [
        "centre: mean",
        "moments: mean",
        "moments: square",
        "threshold: scores",
    ]
    report = done.metrics["privacy"]
    assert (report["unit"], report["adjacency"], report["delta"]) == ("image", "null", 0.01)
    assert report["epsilon"] == pytest.approx(50)
    assert "one of 6 training images had been left out" in report["guarantee"]
    assert "sees the clients' sums" in report["trust"]
    assert done.metrics["bank"]["radius"] is None
    assert "radius_bound" not in done.metrics["bank"]


def test_noise_from_a_seed_guarantees_nothing(private) -> None:
    report = private().metrics["privacy"]
    assert report["guarantee"].startswith("Guarantee: none, since the noise can be drawn again")
    assert "for simulations only" in report["noise"]


def test_noise_from_the_system_is_never_the_same(private) -> None:
    one, two = (
        private(privacy__noise="system").model.transforms["bracket"].basis for _ in range(2)
    )
    assert not np.allclose(one, two)


def test_the_model_file_of_a_private_run_scores_as_the_run_did(private, parts) -> None:
    done = private()
    model = PatchCore.load(done.out / "model.safetensors", cache=None)
    data = open_split(check_settings(done.metrics["config"])).test
    scores = [prediction.score for prediction in model.score(data)]
    with (done.out / "scores.csv").open() as file:
        expected = {row["image"]: float(row["federated"]) for row in csv.DictReader(file)}
    by_image = dict(zip([s.key for s in data.samples], scores, strict=True))
    assert by_image == pytest.approx(expected, rel=2e-2)  # the run's features were halves
    assert model.threshold == pytest.approx(done.metrics["threshold"]["bracket"])
    again = done.out / "again.safetensors"
    model.save(again)
    np.testing.assert_array_equal(PatchCore.load(again).transform.basis, model.transform.basis)


def test_a_second_run_on_one_ledger_is_refused_before_it_asks(private, misbehave, tmp_path) -> None:
    private(out=str(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    requests = []

    def record(message: Message, context: Context) -> Message:
        requests.append(message)
        return client_app(message, context)

    app = misbehave({}, {}, dict.fromkeys(range(3), record))
    with pytest.raises(
        ConfigError, match=r"4 releases in .* have spent ε = 50 .* the budget is 50"
    ):
        private(out=str(tmp_path), client_app=app)
    assert not requests
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    private(out=str(tmp_path), privacy__epsilon=120.0)  # spends the rest of that budget
    ledger = read_ledger(tmp_path / LEDGER)
    assert len(ledger.releases) == 8
    assert ledger.epsilon == pytest.approx(120)


def test_an_ordinary_run_beside_a_ledger_is_refused(private, run, tmp_path) -> None:
    private(out=str(tmp_path))
    before = (tmp_path / "metrics.json").read_text()
    with pytest.raises(ConfigError, match="would release what it protects"):
        run(out=str(tmp_path))
    assert (tmp_path / "metrics.json").read_text() == before


def test_a_ledger_that_cannot_be_read_is_refused(private, tmp_path) -> None:
    (tmp_path / LEDGER).write_text("{}")
    with pytest.raises(ConfigError, match="is not a valid privacy ledger"):
        private(out=str(tmp_path))


def test_runs_that_share_a_ledger_share_its_budget(private, tmp_path) -> None:
    ledger = tmp_path / "shared" / "ledger.json"
    private(privacy__ledger=str(ledger))
    assert len(read_ledger(ledger).releases) == 4
    with pytest.raises(ConfigError, match="4 releases in .* have spent ε = 50"):
        private(privacy__ledger=str(ledger))


def test_a_resumed_private_run_scores_again_and_releases_nothing(private, tmp_path) -> None:
    first = private(out=str(tmp_path))
    bank, ledger = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / LEDGER).read_text()
    again = private(out=str(tmp_path), resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == bank
    assert (tmp_path / LEDGER).read_text() == ledger
    assert again.metrics["threshold"] == first.metrics["threshold"]
    assert again.metrics["federated"] == first.metrics["federated"]


def test_an_interrupted_private_run_goes_on_from_the_answers_it_has(
    private, misbehave, tmp_path
) -> None:
    queries = []

    def answer_once(message: Message, context: Context) -> Message:
        if "ask" in message.content:
            queries.append(context.node_config["partition-id"])
            if len(queries) > 3:
                raise OSError("the machine is gone")
        return client_app(message, context)

    app = misbehave({}, {}, dict.fromkeys(range(3), answer_once))
    with pytest.raises(RoundFailed, match="only 0 of 3 clients sent sums"):
        private(out=str(tmp_path), client_app=app)
    assert len(read_ledger(tmp_path / LEDGER).releases) == 1
    done, uninterrupted = private(out=str(tmp_path), resume=True), private()
    for name in ("model.safetensors", LEDGER, ANSWERS):
        assert (done.out / name).read_bytes() == (uninterrupted.out / name).read_bytes(), name
    ledger = read_ledger(done.out / LEDGER)
    assert [r.name for r in ledger.releases][:2] == ["centre: mean", "moments: mean"]
    assert ledger.epsilon == pytest.approx(50)


def test_a_run_goes_on_only_with_the_ledger_it_began_with(private, tmp_path) -> None:
    private(out=str(tmp_path / "run"))
    (tmp_path / "run" / "round.json").unlink()  # as if it had been interrupted
    other = str(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="lacks what the run in .* has released"):
        private(out=str(tmp_path / "run"), resume=True, privacy__ledger=other)


def test_a_run_does_not_go_on_from_answers_to_other_settings(private, tmp_path) -> None:
    private(out=str(tmp_path))
    (tmp_path / "round.json").unlink()  # as if it had been interrupted
    with pytest.raises(ConfigError, match="with other privacy settings"):
        private(out=str(tmp_path), resume=True, privacy__epsilon=60.0)


def test_a_client_lost_between_queries_is_left_out_by_its_number(private, misbehave) -> None:
    queries = []

    def die(message: Message, context: Context) -> Message:
        queries.append("ask" in message.content)
        if sum(queries) > 1:
            raise OSError("the machine is gone")
        return client_app(message, context)

    app = misbehave({}, {1: die}, {1: die})
    done = private(client_app=app, min_clients=2)
    assert [entry["client"] for entry in done.metrics["refused"]] == [1]
    assert done.metrics["traffic"]["stages"][-1]["stage"] == "evaluate"


def larger(content: RecordDict) -> None:
    arrays = content["sums-0"]
    rows = np.full(152, 10.0)
    content["sums-0"] = pack_banks(dict.fromkeys(arrays, rows))


def not_finite(content: RecordDict) -> None:
    content["sums-0"] = pack_banks({"bracket": np.full(152, np.nan)})


def shorter(content: RecordDict) -> None:
    content["sums-0"] = pack_banks({"bracket": np.zeros(3)})


def halves(content: RecordDict) -> None:
    content["sums-0"] = pack_banks({"bracket": np.zeros(152, np.float16)})


def more_records(content: RecordDict) -> None:
    content["about"]["records"] = json.dumps({"bracket": 600})


def another_bank(content: RecordDict) -> None:
    content["about"]["records"] = json.dumps({"other": 2})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (larger, "longer than 2 records can make it"),
        (not_finite, "NaN or infinite"),
        (shorter, r"not \[152\] float64"),
        (halves, r"not \[152\] float64"),
        (more_records, "600 records; it said that it holds 2 images"),
        (another_bank, "cannot be read"),
    ],
)
def test_sums_that_no_honest_client_sends_are_refused(
    private, misbehave, change, reason: str
) -> None:
    def lie(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if "ask" in message.content:
            change(reply.content)
        return reply

    with pytest.raises(RoundFailed, match=reason):
        private(client_app=misbehave({}, {}, {1: lie}))


def test_a_private_client_sends_nothing_of_its_training_images_but_counts_and_sums(
    private, plants, misbehave
) -> None:
    """With data of its own: no radius curve, no calibration, no metrics of a local bank."""
    replies: list[RecordDict] = []

    def record(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        replies.append(reply.content)
        return reply

    every = dict.fromkeys(range(2), record)
    done = private(
        client_app=misbehave(every, every, every),
        nodes=[{"partition-id": i, "data-root": str(root)} for i, root in enumerate(plants)],
        clients=2,
        data__shared=False,
        data__root="",
        evaluate__baselines=True,
        privacy__noise="system",
    )
    sums = [r for r in replies if "sums-0" in r]
    assert len(sums) == 2 * 3  # of the centre, the moments and the scores
    for content in replies:
        about = content["about"]
        assert not {"banks", "offset", "step"} & set(content)
        assert {"holdings", "records", "results"} & set(about)
        assert not {"curves", "radius", "share_radius"} & set(about)
        if "results" in about:
            results = json.loads(about["results"])
            assert results["calibration"] == {}
            assert "local" not in results
    assert 0 <= done.metrics["federated"]["image_auroc"] <= 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"privacy__delta": 0.5}, r"privacy.delta is 0.5: with 6 images it must be .* below 0.17"),
        ({"privacy__ledger": "/", "privacy__epsilon": 0.0}, "privacy.epsilon"),
        (
            {"privacy__public_dir": "/no/such/folder"},
            "privacy.public-dir = /no/such/folder: there is no such folder",
        ),
        (
            {"privacy__mechanism": "dp_codebook"},
            "were removed.*set privacy.mechanism",
        ),
        ({"privacy__mechanism": "legacy_embedding_noise"}, "audit RUN_DIR --embedding-noise"),
        ({"privacy__cells": 8}, "privacy.cells: .* were removed.*set privacy.mechanism"),
        ({"num_server_rounds": 2}, "runs in a single round"),
        ({"privacy__unit": "group"}, "name the metadata column"),
        ({"privacy__group": "line"}, "name the metadata column"),
        ({"privacy__near_limit": 0.5}, "privacy.near-limit: .* are fields of GaussianSettings"),
        ({"data__shared": False}, "can remove the noise"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(private, changes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        private(**changes)


def test_a_folder_without_images_is_refused(private, tmp_path) -> None:
    with pytest.raises(ConfigError, match="it holds no images"):
        private(privacy__public_dir=str(tmp_path))


def test_a_run_that_protects_few_clients_warns(private, caplog) -> None:
    done = private(privacy__unit="client")
    assert "there are 3" in done.metrics["privacy"]["caution"]
    assert "it takes 100 clients at least" in caplog.text
    assert all(r.unit == "client" for r in read_ledger(done.out / LEDGER).releases)


def test_with_several_objects_an_image_pays_for_one_bank_and_a_client_for_all(
    private, two_objects
) -> None:
    two = {"data__root": str(two_objects), "clients": 2}
    done = private(**two)
    ledger = read_ledger(done.out / LEDGER)
    assert {r.bank for r in ledger.releases} == set(done.model.banks)
    assert len(ledger.releases) == 8
    assert ledger.epsilon == pytest.approx(50)
    stages = [s["stage"] for s in done.metrics["traffic"]["stages"]]
    assert stages == ["holdings", "sums", "sums", "sums", "evaluate"]
    of_clients = read_ledger(private(**two, privacy__unit="client").out / LEDGER)
    assert of_clients.epsilon == pytest.approx(50)
    assert of_clients.releases[0].sigma == pytest.approx(2**0.5 * ledger.releases[0].sigma)


@pytest.fixture
def lots(parts, tmp_path) -> Path:
    """The parts, whose images come in lots of two."""
    root = shutil.copytree(parts, tmp_path / "lots")
    [path] = root.rglob("metadata.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "lot"])
        writer.writeheader()
        writer.writerows(row | {"lot": f"lot {i // 2}"} for i, row in enumerate(rows))
    return root


def test_a_group_is_one_record_and_must_lie_with_one_client(private, lots) -> None:
    grouped = {"privacy__unit": "group", "privacy__group": "lot", "data__root": str(lots)}
    by_lot = {"partition__kind": "attribute", "partition__column": "lot"}
    done = private(**grouped, **by_lot)
    assert "one whole group of the 6 training images" in done.metrics["privacy"]["guarantee"]
    with pytest.raises(ConfigError, match="partition by that column"):
        private(**grouped, partition__kind="iid", seed=1)


def test_a_group_counts_like_one_image_with_all_its_patches(settings, lots) -> None:
    checked = settings(data__root=str(lots), privacy__mechanism="dp_gaussian")
    model, train = build_model(checked), open_split(checked).train
    query = MomentQuery(np.zeros(152), 0.5, 0.1)
    groups = client_sums(model, train, query, "group", "lot")
    assert groups.records == len({s.metadata["lot"] for s in train.samples})
    images = list(read_records(model, train, query, "image"))
    lots_of = [s.metadata["lot"] for s in train.samples]
    joined = [
        np.concatenate([i for i, of in zip(images, lots_of, strict=True) if of == lot])
        for lot in dict.fromkeys(lots_of)
    ]
    for vector, expected in zip(groups.vectors, sum_records(query, joined), strict=True):
        np.testing.assert_allclose(vector, expected, atol=1e-12)
    one = client_sums(model, train, query, "client")
    assert one.records == 1
    for vector, expected in zip(
        one.vectors, sum_records(query, [np.concatenate(images)]), strict=True
    ):
        np.testing.assert_allclose(vector, expected, atol=1e-12)


def test_without_a_mechanism_the_run_guarantees_nothing(clean) -> None:
    assert clean.metrics["privacy"]["guarantee"].startswith("Guarantee: none. The bank holds")
    assert not (clean.out / LEDGER).exists()


def test_a_private_bank_is_compared_with_public_images_alone_and_k_means(private, parts) -> None:
    holdout = {"data__train_images": 4, "data__public_holdout": 2, "evaluate__baselines": True}
    done = private(**holdout)
    metrics = done.metrics
    names = {"k-means without noise", "public images alone", "Gaussian of public images"}
    assert set(metrics["comparators"]) == names
    for comparator in metrics["comparators"].values():
        assert 0 <= comparator["image_auroc"] <= 1
    assert metrics["dataset"]["train_images"] == 4
    page = (done.out / "report.html").read_text()
    assert "public images alone" in page
    assert "What was released" in page
    alone = private(**holdout | {"data__public_holdout": 0})
    assert set(alone.metrics["comparators"]) == {"k-means without noise"}


def test_public_holdout_is_disjoint_from_the_private_images(settings) -> None:
    changes = {"data__public_holdout": 2, "privacy__mechanism": "dp_gaussian"}
    checked = settings(**changes, data__train_images=4)
    public = {s.key for s in public_images(checked, "bracket").samples}
    assert len(public) == 2
    assert not public & {s.key for s in open_split(checked).train.samples}
    with pytest.raises(ConfigError, match="data.train-images = 5 leaves fewer"):
        public_images(settings(**changes, data__train_images=5), "bracket")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data__train_images": 0}, "needs a simulation that sets data.train-images"),
        ({"privacy__public_dir": "/somewhere"}, "set one of them, not both"),
    ],
)
def test_impossible_public_holdout_is_refused(private, changes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        private(**{"data__public_holdout": 2, "data__train_images": 4, **changes})
