"""Federation.ask: one reply a client, of this exchange, by the right sender, or a named refusal."""

from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl.engines.inline import InlineGrid
from fl.server.exchanges import ask_holdings, ask_rows, evaluate
from fl.server.federation import Federation, RoundFailed
from fl.server.retrying_grid import NodeRegistry
from fl.server.state import ServerState
from fl.setup.model import build_model
from fl.wire.banks import BANKS, pack_upload
from fl.wire.envelope import ABOUT, CONFIG, TICKET, Sender, pack_ticket, wire_bytes
from fl.wire.surveys import pack_holdings
from src.federated.bank_set import BankSet
from src.federated.candidates import EncodedBank
from src.federated.codec import CODES
from src.federated.types import BankRefused, ClientBank, ClientStats, MergedBank

NODES = [1001, 1002, 1003]
STATS = ClientStats(images=2, patches=128, share=13)
ROWS = np.eye(3, 152, dtype=np.float16)
UPLOAD = EncodedBank({CODES: ROWS}, ClientBank(ROWS, 1.0, 1.5, STATS))
Replies = list[Message]


class ScriptedGrid(InlineGrid):
    """An in-process grid that keeps the requests and lets a test change the replies.

    Attributes:
        requests: of the last exchange.
        change: from the replies of an exchange to those that arrive.
    """

    requests: Iterable[Message] = ()

    @staticmethod
    def change(replies: Replies) -> Iterable[Message]:
        return replies

    def rename(self, node: int, new: int) -> None:
        """Give a node another id, as if it had been replaced."""
        self._contexts[new] = self._contexts.pop(node)

    def send_and_receive(self, messages, *, timeout=None):
        self.requests = messages
        return list(self.change(super().send_and_receive(messages, timeout=timeout)))


@pytest.fixture
def federation(settings, identity) -> Federation:
    """Three nodes whose clients hold images of one object; two must reply."""
    model = build_model(settings())
    app = ClientApp()

    def sender(context: Context) -> Sender:
        number = int(context.node_config["partition-id"])
        return Sender(number, model.backbone.fingerprint, version("fedpatchcore"), {})

    def reply(content: RecordDict, message: Message) -> Message:
        content[TICKET] = message.content[TICKET]
        return Message(content, reply_to=message)

    @app.query("holdings")
    def holdings(message: Message, context: Context) -> Message:
        return reply(pack_holdings(sender(context), {"bracket": STATS}), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply(pack_upload(sender(context), {"bracket": UPLOAD}), message)

    grid = ScriptedGrid(app, {}, [{"partition-id": i} for i in range(len(NODES))])
    registry = NodeRegistry(list(NODES))
    return Federation(settings(min_clients=2, timeout=5), model, grid, registry)


def answers(federation: Federation) -> list[int]:
    """Ask all clients what they hold; the clients that replied, in the order given."""
    return list(ask_holdings(federation, server_round=1))


def refusals(federation: Federation) -> dict[int | str, str]:
    return {refusal.client: refusal.reason for refusal in federation.traffic.refused}


def change_reply(node: int, change: Callable[[RecordDict], None]) -> Callable[[Replies], Replies]:
    """Change the reply of a node."""

    def apply(replies: Replies) -> Replies:
        [reply] = [reply for reply in replies if reply.metadata.src_node_id == node]
        change(reply.content)
        return replies

    return apply


def set_field(name: str, value: object) -> Callable[[RecordDict], None]:
    return lambda content: content[ABOUT].__setitem__(name, value)


def test_replies_are_in_the_order_of_the_clients_whatever_order_they_come_in(federation) -> None:
    for order in ([0, 1, 2], [2, 0, 1], [2, 1, 0]):
        federation.grid.change = lambda replies, order=order: [replies[i] for i in order]
        assert answers(federation) == [0, 1, 2]
    assert refusals(federation) == {}


def test_every_node_gets_a_list_of_requests_with_the_settings_and_one_ticket(federation) -> None:
    answers(federation)
    requests = federation.grid.requests
    assert isinstance(requests, list)  # a generator fails in deployment
    assert [request.metadata.dst_node_id for request in requests] == NODES
    for request in requests:
        config = dict(request.content[CONFIG])
        assert config.pop("workspace") == ""
        assert config == federation.settings.flat()
    tickets = {request.content[TICKET]["id"] for request in requests}
    answers(federation)
    tickets |= {request.content[TICKET]["id"] for request in federation.grid.requests}
    assert len(tickets) == 2  # one an exchange


def test_a_broadcast_is_serialised_once_for_all_nodes(federation) -> None:
    bank = MergedBank(np.eye(3, 152, dtype=np.float32))
    with pytest.raises(RoundFailed):  # these clients cannot score
        evaluate(federation, ServerState(banks=BankSet({"bracket": bank})))
    records = [request.content[BANKS] for request in federation.grid.requests]
    assert len(records) == len(NODES)
    assert all(record is records[0] for record in records)


def test_a_reply_to_another_exchange_is_refused(federation) -> None:
    federation.grid.change = change_reply(
        1002, lambda content: content.__setitem__(TICKET, pack_ticket("earlier"))
    )
    assert answers(federation) == [0, 2]
    assert "its reply answers another request" in refusals(federation)[1]


def test_the_first_of_two_replies_counts(federation) -> None:
    federation.grid.change = lambda replies: [*replies, replies[1]]
    assert answers(federation) == [0, 1, 2]
    assert "it answered twice" in refusals(federation)[1]


def test_a_node_that_takes_another_s_number_is_refused_whoever_replies_first(federation) -> None:
    claim = change_reply(1002, set_field("client", 0))
    for reverse in (False, True):
        federation.grid.change = lambda replies, r=reverse: claim(replies)[:: -1 if r else 1]
        assert answers(federation) == [0, 2]
        assert refusals(federation) == {"node 1002": "it calls itself client 0, as node 1001 does"}


def test_a_node_keeps_the_number_of_its_first_reply(federation) -> None:
    answers(federation)
    federation.grid.change = change_reply(1002, set_field("client", 7))
    assert answers(federation) == [0, 2]
    assert refusals(federation) == {1: "it calls itself client 7 now"}


def test_a_registered_key_holds_a_node_to_its_number(federation) -> None:
    federation.registry.names = {1001: "node-0", 1002: "node-7", 1003: "camera"}
    assert answers(federation) == [0, 2]
    assert refusals(federation) == {7: "it calls itself client 1, but its key is node-7's"}


def replace_node(federation: Federation, old: int, new: int) -> None:
    """Another node takes the place of one, as the retrying grid arranges it."""
    federation.registry.nodes[federation.registry.nodes.index(old)] = new
    federation.grid.rename(old, new)


def test_a_node_that_replaces_another_may_take_over_its_number(federation) -> None:
    assert answers(federation) == [0, 1, 2]
    replace_node(federation, 1002, 99)
    assert answers(federation) == [0, 1, 2]
    assert refusals(federation) == {}


def test_a_number_that_was_taken_over_is_not_free_for_a_third_node(federation) -> None:
    answers(federation)
    replace_node(federation, 1002, 1099)
    answers(federation)
    replace_node(federation, 1003, 1100)
    federation.grid.change = change_reply(1100, set_field("client", 1))
    assert answers(federation) == [0, 1]
    assert refusals(federation) == {"node 1100": "it calls itself client 1, as node 1099 does"}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (
            "version",
            "0.0.9",
            f"its app is fedpatchcore 0.0.9, the federation's is {version('fedpatchcore')}",
        ),
        ("fingerprint", "0123456789abcdef", "its backbone's weights (0123456789abcdef) are not"),
        ("holdings", "{}", "it holds no bank"),
        ("holdings", "[]", "its reply cannot be read"),
        ("seconds", [1.0], "its reply cannot be read"),
    ],
)
def test_a_reply_that_cannot_be_used_leaves_its_client_out(
    federation, field: str, value: object, reason: str
) -> None:
    federation.grid.change = change_reply(1002, set_field(field, value))
    assert answers(federation) == [0, 2]
    assert reason in refusals(federation)[1]


def test_a_client_left_out_takes_part_again_when_it_replies(federation) -> None:
    federation.grid.change = lambda replies: [replies[0], replies[2]]
    assert answers(federation) == [0, 2]
    assert refusals(federation) == {"node 1002": "it did not answer within 5 s"}
    federation.grid.change = ScriptedGrid.change
    assert answers(federation) == [0, 1, 2]
    assert refusals(federation) == {}


def test_too_many_silent_nodes_fail_the_round_and_each_is_named(federation) -> None:
    federation.grid.change = lambda replies: replies[:1]
    with pytest.raises(RoundFailed) as caught:
        answers(federation)
    first, *reasons = str(caught.value).splitlines()
    assert first == "only 1 of 3 clients reported what they hold, 2 are needed (min-clients):"
    assert reasons == [
        "node 1002: it did not answer within 5 s",
        "node 1003: it did not answer within 5 s",
    ]


def test_a_client_that_is_silent_later_is_named_by_its_number(federation) -> None:
    answers(federation)
    federation.grid.change = lambda replies: []
    with pytest.raises(RoundFailed, match="only 0 of 3 clients scored") as caught:
        evaluate(federation, ServerState())
    expected = "client 1: its bank is merged, but it sent no metrics: it did not answer within 5 s"
    assert expected in str(caught.value)


def test_all_clients_are_needed_unless_min_clients_says_otherwise(federation, settings) -> None:
    federation.settings = settings(timeout=5)
    federation.grid.change = lambda replies: replies[:2]
    with pytest.raises(RoundFailed, match="only 2 of 3 clients .* 3 are needed"):
        answers(federation)


@pytest.mark.parametrize(
    ("text", "reason"),
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
def test_the_reason_of_a_client_s_exception_is_taken_out_of_flower_s_words(
    federation, text: str, reason: str
) -> None:
    def fail(replies: Replies) -> Replies:
        request = Message(RecordDict(), 1002, "query.holdings")
        error = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=request)
        error.metadata.__dict__["_src_node_id"] = 1002
        return [replies[0], error, replies[2]]

    federation.grid.change = fail
    assert answers(federation) == [0, 2]
    assert refusals(federation) == {"node 1002": reason}


def test_only_the_clients_named_are_asked_and_only_they_can_be_silent(federation) -> None:
    answers(federation)
    federation.settings = federation.settings.model_copy(update={"min_clients": 1})
    federation.grid.change = lambda replies: replies[:1]
    uploads = ask_rows(federation, ServerState(), {0: {"bracket": 3}, 2: {"bracket": 3}})
    np.testing.assert_array_equal(uploads[0]["bracket"].features, ROWS)
    assert [request.metadata.dst_node_id for request in federation.grid.requests] == [1001, 1003]
    assert refusals(federation) == {2: "it did not answer within 5 s"}


def test_a_node_that_joins_within_an_exchange_may_not_send_rows_in_another_s_place(
    federation,
) -> None:
    """It gets the request of the node it replaces, and may have a number of its own."""

    def join(replies: Replies) -> Replies:
        federation.registry.nodes[2] = 1100
        replies[1].metadata.__dict__["_src_node_id"] = 1100
        replies[1].content[ABOUT]["client"] = 7
        return replies

    answers(federation)
    federation.settings = federation.settings.model_copy(update={"min_clients": 1})
    federation.grid.change = join
    uploads = ask_rows(federation, ServerState(), {0: {"bracket": 3}, 2: {"bracket": 3}})
    assert list(uploads) == [0]
    assert refusals(federation)[7] == "it sent 3 rows of bracket, 0 were asked for"


def test_an_exchange_counts_bytes_and_seconds(federation) -> None:
    sizes = []

    def measure(replies: Replies) -> Replies:
        for reply in replies:
            reply.content[ABOUT]["seconds"] = [0.5, 0.25, 0.0, 0.0]
            sizes.append(wire_bytes(reply.content))
        return replies

    federation.grid.change = measure
    answers(federation)
    [stage] = federation.traffic.stages
    down = max(wire_bytes(request.content) for request in federation.grid.requests)
    assert (stage.round, stage.stage, stage.up, stage.down) == (1, "holdings", sum(sizes), down)
    answers(federation)
    for client, size in zip(range(3), sizes[:3], strict=True):
        assert federation.traffic.clients[client].upload_bytes == 2 * size
        assert federation.traffic.clients[client].seconds["features"] == 1.0


def test_a_reply_is_read_by_the_caller_s_function(federation) -> None:
    def parse(client: int, content: RecordDict) -> int:
        if client == 0:
            raise BankRefused("it is zero")
        return 10 * client

    def ask() -> dict[int, int]:
        return federation.ask(
            "query.holdings",
            lambda client: RecordDict({"extra": ConfigRecord({"client": str(client)})}),
            parse,
            server_round=4,
            purpose="counted",
        )

    assert ask() == {1: 10, 2: 20}
    assert refusals(federation) == {0: "it is zero"}
    clients = [request.content["extra"]["client"] for request in federation.grid.requests]
    assert clients == ["None"] * 3  # not known before the first reply
    ask()
    clients = [request.content["extra"]["client"] for request in federation.grid.requests]
    assert clients == ["0", "1", "2"]
