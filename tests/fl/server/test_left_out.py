"""A client that misbehaves is left out by name and reason, or stops the run; nothing in between."""

import io
import shutil
from collections.abc import Callable
from copy import deepcopy
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fl.client_app import app as client_app
from fl.server.federation import RoundFailed
from fl.server.retrying_grid import NodeRegistry
from fl.server.strategy import FederatedPatchCore
from fl.setup.inputs import build_model, open_split, partition_data
from fl.wire import arrays
from fl.wire.arrays import pack_banks, unpack_banks
from fl.wire.messages import ABOUT, BANKS, TICKET
from src.data.partition import Partition
from src.federated.types import BankRefused

BAD = 1  # the client that misbehaves, of three


def raising(message: Message, context: Context) -> Message:
    raise OSError("the disk is gone")


def with_rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], None]:
    """Change the rows that are sent."""

    def apply(content: RecordDict) -> None:
        rows = {name: change(rows) for name, rows in unpack_banks(content[BANKS]).items()}
        content[BANKS] = pack_banks(rows)

    return apply


def with_field(name: str, value: object) -> Callable[[RecordDict], None]:
    """Change a field of what is said about the rows."""

    def apply(content: RecordDict) -> None:
        content[ABOUT][name] = value

    return apply


def one_row_nan(rows: np.ndarray) -> np.ndarray:
    spoiled = rows.copy()
    spoiled[3, 5] = np.nan
    return spoiled


def emptied(content: RecordDict) -> None:
    content[BANKS] = ArrayRecord()
    content[ABOUT]["banks"] = []


def misread(content: RecordDict) -> None:
    """Say of the rows that they are a hundred times as many as were sent."""
    array = content[BANKS]["bracket"]
    spoiled = array.data.replace(b"(26, 152)", b"(2600, 152)", 1)
    assert spoiled != array.data
    content[BANKS] = ArrayRecord({"bracket": Array("float16", (2600, 152), array.stype, spoiled)})


def as_objects(content: RecordDict) -> None:
    """Send what only unpickling could read."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"rows": 1}], dtype=object))
    array = Array("object", (1,), "numpy.ndarray", buffer.getvalue())
    content[BANKS] = ArrayRecord({"bracket": array})


CHANGES = {
    "header that promises more": (misread, "bytes, where [2600, 152] of float16 take"),
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
    "no bank": (emptied, "it sent no bank"),
    "unreadable": (with_field("banks", ["connector"]), "its bank holds nothing"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES.keys())
def test_client_with_an_unsound_bank_is_left_out_with_the_reason(
    run, misbehave, rewrite, change, reason: str
) -> None:
    done = run(client_app=misbehave({BAD: rewrite(change)}), min_clients=2)
    [refused] = done.metrics["refused"]
    assert refused["client"] == BAD
    assert reason in refused["reason"]
    assert_is_merge_of_the_others(done)
    report = (done.out / "report.html").read_text()
    assert "1 client left out of the merged bank" in report
    assert "client 1" in report


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
    made: list[int] = []
    read = arrays.read_rows
    monkeypatch.setattr(
        arrays, "read_rows", lambda array: made.append(array.shape[0]) or read(array)
    )
    app = misbehave({BAD: rewrite(with_rows(lambda r: np.tile(r, (100, 1))))})
    done = run(client_app=app, min_clients=2, **limit)
    [refused] = done.metrics["refused"]
    assert refused["client"] == BAD
    assert reason in refused["reason"]
    assert made.count(2600) == 0
    assert_is_merge_of_the_others(done)


def test_an_answer_kept_from_the_train_message_is_no_answer_to_the_evaluate_message(
    run, misbehave
) -> None:
    kept: dict[int, RecordDict] = {}

    def keep(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kept[BAD] = deepcopy(reply.content)
        return reply

    def replay(message: Message, context: Context) -> Message:
        return Message(kept[BAD], reply_to=message)

    done = run(client_app=misbehave({BAD: keep}, {BAD: replay}), min_clients=2)
    [refused] = done.metrics["refused"]
    assert refused["client"] == BAD
    assert "its reply answers another request" in refused["reason"]


@pytest.mark.parametrize(
    ("change", "reason"), [CHANGES["one row of NaN"], CHANGES["other dimension"]]
)
def test_without_enough_clients_the_run_fails_and_says_who_and_why(
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


def test_all_clients_are_needed_where_nothing_else_is_said(run, misbehave) -> None:
    with pytest.raises(RoundFailed, match="only 2 of 3 clients .* 3 are needed"):
        run(client_app=misbehave({BAD: raising}))


def test_client_whose_app_raises_is_left_out_by_its_node(run, misbehave) -> None:
    done = run(client_app=misbehave({BAD: raising}), min_clients=2)
    [refused] = done.metrics["refused"]
    assert refused == {"client": "node 1002", "reason": "the disk is gone"}
    assert_is_merge_of_the_others(done)


def test_client_that_cannot_read_its_images_is_left_out_by_its_number(
    run, tmp_path, parts, cache
) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    changes = {"data__root": str(root), "min_clients": 2, "evaluate__baselines": False}
    partition = Partition.load(run(**changes).out / "partition.json")
    spoiled = root / partition.clients[BAD].train[0]
    spoiled.write_bytes(b"no image")
    done = run(**changes)
    [refused] = done.metrics["refused"]
    assert refused["client"] == BAD
    assert refused["reason"].startswith("DataError: cannot read image")
    assert str(spoiled) in refused["reason"]


def test_client_without_images_is_left_out(run) -> None:
    skewed = {"partition__kind": "dirichlet", "partition__alpha": 0.01, "partition__minimum": 0}
    done = run(**skewed, min_clients=1)
    reasons = {refused["reason"] for refused in done.metrics["refused"]}
    assert reasons == {"it holds no training images"}
    merged = [client["client"] for client in done.metrics["local"]["clients"]]
    refused = [entry["client"] for entry in done.metrics["refused"]]
    assert sorted(merged + refused) == [0, 1, 2]


def test_object_whose_clients_were_all_left_out_has_no_figures_and_the_others_have(
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
    figures = done.metrics["objects"]
    assert "federated" in figures["bracket"]
    assert "federated" not in figures["connector"]
    assert sorted(path.name for path in (done.out / "maps").iterdir() if path.is_dir()) == [
        "bracket"
    ]


@pytest.mark.parametrize("kind", ["raises", "other figures", "no figures"])
def test_client_that_fails_to_score_stays_in_the_bank_and_is_named(
    run, misbehave, rewrite, clean, kind: str
) -> None:
    handlers = {
        "raises": raising,
        "other figures": rewrite(with_field("results", '{"client": 1}')),
        "no figures": rewrite(lambda content: content.pop(ABOUT)),
    }
    done = run(client_app=misbehave({}, {BAD: handlers[kind]}), min_clients=2)
    [refused] = done.metrics["refused"]
    assert refused["client"] == BAD  # known from its first answer
    assert refused["reason"].startswith("its bank is merged, but it gave no figures: ")
    np.testing.assert_array_equal(done.model.banks["bracket"], clean.model.banks["bracket"])
    assert done.metrics["federated"] == clean.metrics["federated"]  # the server scored the rest


def test_client_that_calls_itself_another_s_number_is_left_out_whoever_answers_first(
    run, misbehave, rewrite
) -> None:
    app = misbehave({BAD: rewrite(with_field("client", 0))})
    banks = []
    for shuffle in (None, 1, 2, 3):
        done = run(client_app=app, min_clients=2, shuffle=shuffle)
        [refused] = done.metrics["refused"]
        assert refused["client"] == "node 1002"
        assert refused["reason"] == "it calls itself client 0, as node 1001 does"
        banks.append(done.model.banks["bracket"].tobytes())
    assert len(set(banks)) == 1


def test_a_registered_key_holds_a_node_to_its_number(strategy, replies) -> None:
    strategy.registry.names = {1001: "node-0", 1002: "node-7", 1003: "camera"}
    strategy.aggregate_train(1, replies)
    [refused] = strategy.intake.refused
    assert refused["reason"] == "it calls itself client 1, but its key is node-7's"
    assert sorted(strategy.uploads) == [0, 2]


def test_a_node_that_came_in_another_s_stead_goes_by_its_number(strategy, replies) -> None:
    strategy.aggregate_train(1, replies)
    strategy.registry.nodes[1] = 99
    strategy.intake.claim(99, 1)
    assert strategy.intake.numbers[99] == 1
    with pytest.raises(BankRefused, match="as node 1003 does"):
        strategy.intake.claim(98, 2)


def test_node_without_a_number_is_named_as_a_node(run) -> None:
    nodes = [{"partition-id": 0}, {}, {}]
    done = run(nodes=nodes, min_clients=1)
    assert [refused["client"] for refused in done.metrics["refused"]] == ["node 1002", "node 1003"]
    assert "set it in its --node-config" in done.metrics["refused"][0]["reason"]


@pytest.fixture
def replies(run, misbehave, identity) -> Callable[..., list[Message]]:
    """Train replies of three honest clients, as the strategy gets them."""
    kept: list[Message] = []

    def keep(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kept.append(reply)
        return reply

    run(client_app=misbehave(dict.fromkeys(range(3), keep)), evaluate__baselines=False)
    for reply in kept:
        reply.content[TICKET]["id"] = "now"
    return kept


@pytest.fixture
def strategy(settings) -> FederatedPatchCore:
    """For three nodes, of which two must come through; out of a run."""
    checked = settings(min_clients=2, timeout=5)
    made = FederatedPatchCore(checked, build_model(checked), NodeRegistry([1001, 1002, 1003]))
    made.intake.open(1, "banks")
    made.intake.ticket = "now"
    return made


def test_client_that_gives_no_answer_is_left_out(strategy, replies) -> None:
    strategy.aggregate_train(1, [replies[2], replies[0]])
    assert strategy.intake.refused == [
        {"client": "node 1002", "reason": "it gave no answer within 5 s"}
    ]
    assert sorted(strategy.uploads) == [0, 2]


def test_silence_of_too_many_fails_the_round(strategy, replies) -> None:
    with pytest.raises(RoundFailed) as caught:
        strategy.aggregate_train(1, replies[:1])
    assert "node 1002: it gave no answer within 5 s" in str(caught.value)
    assert "node 1003: it gave no answer within 5 s" in str(caught.value)


def test_client_that_stays_silent_later_is_named_by_its_number(strategy, replies) -> None:
    strategy.aggregate_train(1, replies)
    strategy.intake.open(1, "evaluate")
    with pytest.raises(RoundFailed, match="only 0 of 3 clients scored") as caught:
        strategy.aggregate_evaluate(1, [])
    assert "client 1: its bank is merged, but it gave no figures" in str(caught.value)


def test_first_of_two_answers_counts(strategy, replies) -> None:
    strategy.aggregate_train(1, [*replies, replies[1]])
    [refused] = strategy.intake.refused
    assert refused["client"] == 1
    assert "it answered twice" in refused["reason"]
    assert sorted(strategy.uploads) == [0, 1, 2]


def test_order_of_replies_does_not_change_the_merge(settings, strategy, replies) -> None:
    other = FederatedPatchCore(settings(), strategy.model, NodeRegistry([1001, 1002, 1003]))
    other.intake.open(1, "banks")
    other.intake.ticket = "now"
    one, _ = strategy.aggregate_train(1, replies)
    two, _ = other.aggregate_train(1, replies[::-1])
    assert one["bracket"].data == two["bracket"].data


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("<class 'ValueError'>:<'it holds no images'>", "it holds no images"),
        (
            "\x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1)\nClientAppException: Exception "
            "ValueError occurred. Message: it holds no images",
            "it holds no images",
        ),
        ("", "it gave no reason"),
    ],
)
def test_what_a_client_s_exception_said_is_taken_out_of_flower_s_words(
    strategy, replies, identity, reason: str, said: str
) -> None:
    request = Message(RecordDict({"a": ConfigRecord()}), 1002, "train")
    failed = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=request)
    failed.metadata.__dict__["_src_node_id"] = 1002
    strategy.aggregate_train(1, [replies[0], failed, replies[2]])
    assert strategy.intake.refused == [{"client": "node 1002", "reason": said}]


def test_requests_are_lists_and_carry_the_settings_to_every_node(strategy, identity) -> None:
    for requests in (
        strategy.configure_train(1, ArrayRecord(), ConfigRecord(), None),
        strategy.configure_evaluate(1, ArrayRecord(), ConfigRecord(), None),
    ):
        assert isinstance(requests, list)  # a generator fails in deployment
        assert [request.metadata.dst_node_id for request in requests] == [1001, 1002, 1003]
        config = dict(requests[0].content["config"])
        assert config.pop("workspace") == ""
        assert config == strategy.settings.flat()


def test_an_image_nobody_can_read_costs_its_client_and_the_centralized_baseline(
    run, parts, settings, tmp_path
) -> None:
    root = shutil.copytree(parts, tmp_path / "parts")
    checked = settings(data__root=str(root), clients=2)
    partition = partition_data(checked, open_split(checked), 2)
    (root / partition.clients[1].train[0]).write_bytes(b"no image")
    done = run(clients=2, min_clients=1, data__root=str(root))
    assert [entry["client"] for entry in done.metrics["refused"]] == [1]
    assert "federated" in done.metrics
    assert "centralized" not in done.metrics
