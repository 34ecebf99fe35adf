"""The inline engine treats both apps as the real engines do."""

import re
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fl.engines.inline import InlineGrid, run_inline


def nodes(n: int) -> list[dict]:
    return [{"partition-id": i, "num-partitions": n} for i in range(n)]


def ask(grid: Grid, *, key: str = "x") -> list[Message]:
    """One train message to every node."""
    content = RecordDict({"request": ConfigRecord({"key": key})})
    messages = [Message(content, node_id, "train") for node_id in grid.get_node_ids()]
    return list(grid.send_and_receive(messages, timeout=5))


def serve(
    round_: Callable[[Grid, Context], None],
    client_app: ClientApp,
    n: int,
    *,
    run_config=None,
    seed=None,
) -> None:
    server_app = ServerApp()
    server_app.main()(round_)
    run_inline(server_app, client_app, run_config or {}, nodes(n), seed=seed)


@pytest.fixture
def counting_client() -> ClientApp:
    """Reports its partition and its number of calls; fails if the run config says so."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        calls = context.state["calls"]["n"] + 1 if "calls" in context.state else 1
        context.state["calls"] = MetricRecord({"n": calls})
        partition = context.node_config["partition-id"]
        if partition == context.run_config.get("broken"):
            raise ValueError(f"client {partition}: no image under 'train'")
        metrics = MetricRecord({"partition": partition, "calls": calls})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def test_every_client_answers_once_with_its_own_node_config(counting_client):
    seen = []

    def main(grid: Grid, context: Context) -> None:
        seen.extend(reply.content["metrics"]["partition"] for reply in ask(grid))

    serve(main, counting_client, 3)
    assert seen == [0, 1, 2]


def test_state_of_a_client_lasts_over_the_rounds(counting_client):
    rounds = []

    def main(grid: Grid, context: Context) -> None:
        for _ in range(3):
            rounds.append([reply.content["metrics"]["calls"] for reply in ask(grid)])

    serve(main, counting_client, 2)
    assert rounds == [[1, 1], [2, 2], [3, 3]]


def test_reply_names_the_message_and_the_node_it_comes_from(counting_client):
    def main(grid: Grid, context: Context) -> None:
        [node_id] = grid.get_node_ids()
        message = Message(RecordDict(), node_id, "train")
        [reply] = grid.send_and_receive([message])
        assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
        assert reply.metadata.src_node_id == node_id

    serve(main, counting_client, 1)


def test_exception_of_a_client_is_an_error_reply_with_its_text(counting_client):
    replies = []

    def main(grid: Grid, context: Context) -> None:
        replies.extend(ask(grid))

    serve(main, counting_client, 3, run_config={"broken": 1})
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "client 1: no image under 'train'" in replies[1].error.reason
    assert "ValueError" in replies[1].error.reason


def test_failed_call_leaves_the_state_of_the_client_alone(counting_client):
    calls = []

    def main(grid: Grid, context: Context) -> None:
        ask(grid)
        client_contexts = grid._contexts.values()
        calls.extend("calls" in client.state for client in client_contexts)

    serve(main, counting_client, 2, run_config={"broken": 1})
    assert calls == [True, False]


def test_exception_of_the_server_app_reaches_the_caller(counting_client):
    def main(grid: Grid, context: Context) -> None:
        raise RuntimeError("only 1 of 4 clients came")

    with pytest.raises(RuntimeError, match="only 1 of 4 clients came"):
        serve(main, counting_client, 1)


def test_seed_shuffles_the_replies_without_losing_any(counting_client):
    def order(seed: int) -> list[int]:
        seen = []

        def main(grid: Grid, context: Context) -> None:
            seen.extend(reply.content["metrics"]["partition"] for reply in ask(grid))

        serve(main, counting_client, 8, seed=seed)
        return seen

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(8))


def test_neither_side_can_change_what_the_other_holds():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        message.content["request"]["key"] = "changed by the client"
        if "kept" not in context.state:
            context.state["kept"] = ArrayRecord({"bank": Array(np.zeros(2, np.float32))})
        return Message(RecordDict({"bank": context.state["kept"]}), reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        request = RecordDict({"request": ConfigRecord({"key": "x"})})
        [node_id] = grid.get_node_ids()
        [reply] = grid.send_and_receive([Message(request, node_id, "train")])
        assert request["request"]["key"] == "x"
        reply.content["bank"]["bank"] = Array(np.ones(2, np.float32))
        [reply] = ask(grid)
        assert reply.content["bank"]["bank"].numpy().tolist() == [0, 0]

    serve(main, app, 1)


def test_message_to_an_unknown_node_is_refused(counting_client):
    def main(grid: Grid, context: Context) -> None:
        grid.send_and_receive([Message(RecordDict(), 7, "train")])

    with pytest.raises(ValueError, match=re.escape("node 7, which is not in this federation")):
        serve(main, counting_client, 2)


def test_reply_can_be_pulled_once_and_only_by_its_id(counting_client):
    def main(grid: Grid, context: Context) -> None:
        ids = grid.push_messages(Message(RecordDict(), i, "train") for i in grid.get_node_ids())
        assert len(grid.pull_messages(ids[:1])) == 1
        assert len(grid.pull_messages(ids)) == 1
        assert grid.pull_messages(ids) == []

    serve(main, counting_client, 2)


def test_identity_of_the_process_is_restored_also_after_an_error(counting_client, monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 77)

    def main(grid: Grid, context: Context) -> None:
        assert TaskIdentity.run_id == context.run_id != 77
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        serve(main, counting_client, 1)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (77, 77, 77)


def test_federation_without_nodes_has_no_node_ids(counting_client):
    assert InlineGrid(counting_client, {}, []).get_node_ids() == []
