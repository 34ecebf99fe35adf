"""A client that misbehaves is left out with a reason, or too many of them stop the run."""

import io
import shutil
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.setup.data import open_split, partition_data
from fl.wire import arrays
from fl.wire.arrays import pack_banks, unpack_banks
from fl.wire.banks import BANKS
from fl.wire.envelope import ABOUT, TICKET
from src.data.partition import Partition

BAD = 1  # the client that misbehaves, of three


def raising(message: Message, context: Context) -> Message:
    raise OSError("the disk is gone")


def with_rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], None]:
    """Change the rows of an upload."""

    def apply(content: RecordDict) -> None:
        rows = {name: change(rows) for name, rows in unpack_banks(content[BANKS]).items()}
        content[BANKS] = pack_banks(rows)

    return apply


def with_field(name: str, value: object) -> Callable[[RecordDict], None]:
    """Change a field of the record `about`."""

    def apply(content: RecordDict) -> None:
        content[ABOUT][name] = value

    return apply


def one_row_nan(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[3, 5] = np.nan
    return changed


def without_banks(content: RecordDict) -> None:
    content[BANKS] = ArrayRecord()
    content[ABOUT]["banks"] = []


def with_wrong_header(content: RecordDict) -> None:
    """Claim in the header a hundred times as many rows as there are."""
    array = content[BANKS]["bracket"]
    data = array.data.replace(b"(26, 152)", b"(2600, 152)", 1)
    assert data != array.data
    content[BANKS] = ArrayRecord({"bracket": Array("float16", (2600, 152), array.stype, data)})


def as_objects(content: RecordDict) -> None:
    """Send an array that only pickle could read."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"rows": 1}], dtype=object))
    array = Array("object", (1,), "numpy.ndarray", buffer.getvalue())
    content[BANKS] = ArrayRecord({"bracket": array})


CHANGES = {
    "header that promises more": (with_wrong_header, "bytes, where [2600, 152] of float16 take"),
    "banks that are no arrays": (
        lambda content: content.__setitem__(BANKS, ConfigRecord({"bracket": 3})),
        "its reply cannot be read (AttributeError",
    ),
    "objects": (as_objects, "an array of object that cannot be read"),
    "another version of the app": (
        with_field("version", "0.0.9"),
        f"its app is fedpatchcore 0.0.9, the federation's is {version('fedpatchcore')}",
    ),
    "a reply from another time": (
        lambda content: content.__setitem__(TICKET, ConfigRecord({"id": "earlier"})),
        "its reply answers another request",
    ),
    "no ticket": (lambda content: content.pop(TICKET), "its reply cannot be read (KeyError"),
    "one row of NaN": (with_rows(one_row_nan), "1 of its 26 rows hold NaN or infinite values"),
    "other dimension": (with_rows(lambda r: r[:, :-1]), "its bank has 151 dimensions, not 152"),
    "doubles": (with_rows(lambda r: r.astype(float)), "holds banks of float64, not float16"),
    "a vector": (with_rows(lambda r: r[0]), "its bank has shape (152,)"),
    "other weights": (with_field("fingerprint", "0123456789abcdef"), "(0123456789abcdef)"),
    "more share than patches": (with_field("share", [129]), "its counts do not agree"),
    "more rows than patches": (with_field("patches", [25]), "its counts do not agree"),
    "no bank": (without_banks, "it sent no bank"),
    "unreadable": (with_field("banks", ["connector"]), "its bank holds nothing"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_a_client_with_an_unsound_bank_is_left_out_with_the_reason(
    run, misbehave, rewrite, change, reason: str
) -> None:
    done = run(client_app=misbehave({BAD: rewrite(change)}), min_clients=2)
    assert_refused(done, BAD, reason)
    assert_is_merge_of_the_others(done)
    report = (done.out / "report.html").read_text()
    assert "1 client left out of the merged bank" in report
    assert "client 1" in report


def assert_refused(done, client: int | str, reason: str) -> None:
    [refusal] = done.metrics["refused"]
    assert refusal["client"] == client
    assert reason in refusal["reason"]


def assert_is_merge_of_the_others(done) -> None:
    metrics = done.metrics
    assert [client["client"] for client in metrics["local"]["clients"]] == [0, 2]
    assert metrics["bank"]["size"] == 2 * 13
    assert len(metrics["traffic"]["upload_bytes"]) == 2
    lines = (done.out / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 6  # all test images are scored, those of client 1 too


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"merge__max_rows": 26}, "it sent 2600 rows, more than merge.max-rows = 26"),
        (
            {"merge__max_mb": 1, "merge__encoding": "float32"},
            "it sent 1.5 MiB, more than merge.max",
        ),
    ],
)
def test_a_client_that_sends_too_much_is_left_out_before_an_array_is_made(
    run, misbehave, rewrite, monkeypatch, limit: dict, reason: str
) -> None:
    lengths: list[int] = []
    read = arrays.read_rows
    monkeypatch.setattr(
        arrays, "read_rows", lambda array: lengths.append(array.shape[0]) or read(array)
    )
    app = misbehave({BAD: rewrite(with_rows(lambda r: np.tile(r, (100, 1))))})
    done = run(client_app=app, min_clients=2, **limit)
    assert_refused(done, BAD, reason)
    assert 2600 not in lengths
    assert_is_merge_of_the_others(done)


def test_a_reply_to_the_train_message_is_no_reply_to_the_evaluate_message(run, misbehave) -> None:
    kept: dict[int, RecordDict] = {}

    def keep(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kept[BAD] = deepcopy(reply.content)
        return reply

    def replay(message: Message, context: Context) -> Message:
        return Message(kept[BAD], reply_to=message)

    done = run(client_app=misbehave({BAD: keep}, {BAD: replay}), min_clients=2)
    assert_refused(done, BAD, "its reply answers another request")


@pytest.mark.parametrize(
    ("change", "reason"), [CHANGES["one row of NaN"], CHANGES["other dimension"]]
)
def test_a_run_without_enough_clients_fails_and_names_each_with_its_reason(
    run, misbehave, rewrite, tmp_path, change, reason: str
) -> None:
    app = misbehave({0: raising, BAD: rewrite(change)})
    with pytest.raises(RoundFailed) as caught:
        run(client_app=app, min_clients=2, out=str(tmp_path))
    first, *others = str(caught.value).splitlines()
    assert first.startswith("only 1 of 3 clients sent a bank that can be merged, 2 are needed")
    assert len(others) == 2
    assert "the disk is gone" in others[0]
    assert others[1] == f"client 1: {reason}"
    assert not (tmp_path / "metrics.json").exists()


def test_all_clients_are_needed_unless_min_clients_says_otherwise(run, misbehave) -> None:
    with pytest.raises(RoundFailed, match="only 2 of 3 clients .* 3 are needed"):
        run(client_app=misbehave({BAD: raising}))


def test_a_client_whose_app_raises_is_left_out_under_its_node_s_name(run, misbehave) -> None:
    done = run(client_app=misbehave({BAD: raising}), min_clients=2)
    assert done.metrics["refused"] == [{"client": "node 1002", "reason": "the disk is gone"}]
    assert_is_merge_of_the_others(done)


def test_a_client_that_cannot_read_its_images_is_left_out_by_its_number(
    run, tmp_path, parts, cache
) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    changes = {"data__root": str(root), "min_clients": 2, "evaluate__baselines": False}
    partition = Partition.load(run(**changes).out / "partition.json")
    image = root / partition.clients[BAD].train[0]
    image.write_bytes(b"no image")
    assert_refused(run(**changes), BAD, f"DataError: cannot read image {image}")


def test_a_client_without_images_is_left_out(run) -> None:
    skewed = {"partition__kind": "dirichlet", "partition__alpha": 0.01, "partition__minimum": 0}
    done = run(**skewed, min_clients=1)
    reasons = {refusal["reason"] for refusal in done.metrics["refused"]}
    assert reasons == {"it holds no training images"}
    merged = [client["client"] for client in done.metrics["local"]["clients"]]
    refused = [refusal["client"] for refusal in done.metrics["refused"]]
    assert sorted(merged + refused) == [0, 1, 2]


def test_an_object_whose_clients_were_all_left_out_has_no_metrics_and_the_others_do(
    run, misbehave, two_objects
) -> None:
    changes = {
        "data__root": str(two_objects),
        "clients": 2,
        "min_clients": 1,
        "evaluate__maps": True,
        "partition__kind": "category",
        "model__scope": "shared",
    }
    apart = run(**changes).out / "partition.json"  # one object a client
    changes |= {"partition__file": str(apart), "partition__kind": "iid", "model__scope": "object"}
    done = run(client_app=misbehave({BAD: raising}), **changes)
    assert list(done.model.banks) == ["bracket"]
    by_object = done.metrics["objects"]
    assert "federated" in by_object["bracket"]
    assert "federated" not in by_object["connector"]
    assert sorted(path.name for path in (done.out / "maps").iterdir() if path.is_dir()) == [
        "bracket"
    ]


@pytest.mark.parametrize("kind", ["raises", "other results", "no results"])
def test_a_client_that_fails_to_score_stays_in_the_bank_and_is_named(
    run, misbehave, rewrite, clean, kind: str
) -> None:
    handlers = {
        "raises": raising,
        "other results": rewrite(with_field("results", '{"client": 1}')),
        "no results": rewrite(lambda content: content.pop(ABOUT)),
    }
    done = run(client_app=misbehave({}, {BAD: handlers[kind]}), min_clients=2)
    # its number is known from its first reply
    assert_refused(done, BAD, "its bank is merged, but it sent no metrics: ")
    np.testing.assert_array_equal(done.model.banks["bracket"], clean.model.banks["bracket"])
    assert done.metrics["federated"] == clean.metrics["federated"]  # the server scored the rest


def test_a_client_that_takes_another_s_number_is_left_out_whoever_replies_first(
    run, misbehave, rewrite
) -> None:
    app = misbehave({BAD: rewrite(with_field("client", 0))})
    banks = []
    for shuffle in (None, 1, 2, 3):
        done = run(client_app=app, min_clients=2, shuffle=shuffle)
        assert_refused(done, "node 1002", "it calls itself client 0, as node 1001 does")
        banks.append(done.model.banks["bracket"].tobytes())
    assert len(set(banks)) == 1


def test_a_node_without_a_number_is_named_as_a_node(run) -> None:
    nodes = [{"partition-id": 0}, {}, {}]
    done = run(nodes=nodes, min_clients=1)
    clients = [refusal["client"] for refusal in done.metrics["refused"]]
    assert clients == ["node 1002", "node 1003"]
    assert "set it in its --node-config" in done.metrics["refused"][0]["reason"]


def test_an_image_nobody_can_read_costs_its_client_and_the_centralized_baseline(
    run, parts, settings, tmp_path
) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    checked = settings(data__root=str(root), clients=2)
    partition = partition_data(checked, open_split(checked), 2)
    (root / partition.clients[1].train[0]).write_bytes(b"no image")
    done = run(clients=2, min_clients=1, data__root=str(root))
    assert [refusal["client"] for refusal in done.metrics["refused"]] == [1]
    assert "federated" in done.metrics
    assert "centralized" not in done.metrics
