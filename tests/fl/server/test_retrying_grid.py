"""The retrying grid waits for the replies it can expect and resends to nodes that come back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from fl.server import retrying_grid
from fl.server.retrying_grid import NodeRegistry, RetryingGrid

TIMEOUT = 100.0
NODES = [11, 12, 13]


@dataclass
class FakeNode:
    """When a node is connected and how long it takes to reply; times in seconds of the fake clock.

    Attributes:
        latency: from a request to its reply; None never replies.
        dies, returns: when it goes and comes back; it forgets the requests of its first life.
        noticed: from its death until the SuperLink notices.
        fails: it replies that it could not do the work.
        loses: replies that the SuperLink loses.
    """

    latency: float | None = 5.0
    dies: float = float("inf")
    returns: float = float("inf")
    born: float = 0.0
    noticed: float = 60.0
    fails: bool = False
    loses: int = 0
    name: str = ""

    def connected(self, now: float) -> bool:
        return self.born <= now < self.dies + self.noticed or now >= self.returns

    def activated(self, now: float) -> str:
        return str(self.returns if now >= self.returns else self.born)

    def has_replied(self, sent: float, now: float) -> bool:
        """Whether the reply to a request of time `sent` is there."""
        if self.latency is None:
            return False
        done = sent + self.latency
        lost = sent < self.returns and done >= self.dies
        return done <= now and not lost


@dataclass
class FakeGrid(Grid):
    """A grid of fake nodes; its clock advances only when the retrying grid sleeps."""

    nodes: dict[int, FakeNode]
    now: float = 0.0
    requests: dict[str, tuple[int, float, Message]] = field(default_factory=dict)
    pushes: list[int] = field(default_factory=list)
    breaks: int = 0  # pushes that are lost halfway
    refuses: int = 0  # messages that are not accepted

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=n, last_activated_at=node.activated(self.now), name=node.name)
            for n, node in self.nodes.items()
            if node.connected(self.now)
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        if self.breaks:
            self.breaks -= 1
            raise ObjectPushError("an object", 1, "a session")
        for message in messages:
            node = message.metadata.dst_node_id
            if self.refuses:
                self.refuses -= 1
                ids.append("")
                continue
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushes)}"
            self.pushes.append(node)
            self.requests[message.metadata.message_id] = (node, self.now, message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message_id in message_ids:
            number, sent, message = self.requests[message_id]
            node = self.nodes[number]
            if node.has_replied(sent, self.now) and node.loses:
                node.loses -= 1
                replies.append(_superlink_error(ErrorCode.MESSAGE_UNAVAILABLE, message))
            elif node.has_replied(sent, self.now):
                record = "failure" if node.fails else "about"
                content = RecordDict({record: ConfigRecord({"node": number})})
                replies.append(Message(content, reply_to=message))
            elif not node.connected(self.now):
                replies.append(_superlink_error(ErrorCode.NODE_UNAVAILABLE, message))
        return replies

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def run(self) -> None: ...
    def set_run(self, run: object) -> None: ...
    def create_message(self, *args: object) -> None: ...
    def send_and_receive(self, *args: object, **more: object) -> None: ...


def _superlink_error(code: int, message: Message) -> Message:
    """An error from the SuperLink on behalf of a node; as in Flower, it has the SuperLink's id."""
    reply = Message(Error(code, "the SuperLink's reason"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


@dataclass
class Played:
    """A finished exchange."""

    grid: FakeGrid
    registry: NodeRegistry
    answered: list[int]
    gone: list[int]


@pytest.fixture
def play(identity, monkeypatch) -> Callable[..., Played]:
    """play({node: FakeNode}, needed): send a message to the three nodes."""

    def go(
        nodes: dict[int, FakeNode],
        needed: int = 3,
        registry: NodeRegistry | None = None,
        **faults: int,
    ) -> Played:
        grid = FakeGrid({n: FakeNode() for n in NODES} | nodes, **faults)
        clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
        monkeypatch.setattr(retrying_grid, "time", clock)
        registry = registry or NodeRegistry(list(NODES))
        messages = [Message(RecordDict(), n, "train") for n in registry.nodes]
        retrying = RetryingGrid(grid, registry, needed)
        replies = retrying.send_and_receive(messages, timeout=TIMEOUT)
        answered = [r.metadata.src_node_id for r in replies if not r.has_error()]
        gone = [r.metadata.src_node_id for r in replies if r.has_error()]
        return Played(grid, registry, sorted(answered), sorted(gone))

    return go


def test_all_nodes_answer_and_nothing_is_resent(play) -> None:
    played = play({12: FakeNode(latency=20.0)})
    assert (played.answered, played.gone, played.grid.pushes) == (NODES, [], NODES)
    assert played.grid.now <= 21


def test_a_dead_node_is_not_waited_for_if_the_others_are_enough(play) -> None:
    played = play({12: FakeNode(dies=3.0)}, needed=2)
    assert (played.answered, played.gone) == ([11, 13], [12])
    assert played.grid.now <= 65


def test_a_dead_node_that_is_needed_is_waited_for_until_the_timeout(play) -> None:
    played = play({12: FakeNode(dies=3.0)}, needed=3)
    assert (played.answered, played.gone) == ([11, 13], [12])
    assert played.grid.now > TIMEOUT


@pytest.mark.parametrize("returns", [10.0, 80.0], ids=["before it is missed", "after"])
def test_the_message_is_resent_to_a_node_that_comes_back(play, returns: float) -> None:
    played = play({12: FakeNode(dies=3.0, returns=returns)})
    assert played.answered == NODES
    assert played.grid.pushes == [*NODES, 12]
    assert played.grid.now <= returns + 7


def test_a_new_node_replaces_a_dead_one(play) -> None:
    played = play({12: FakeNode(dies=3.0), 99: FakeNode(born=30.0)})
    assert played.answered == [11, 13, 99]
    assert played.registry.nodes == [11, 99, 13]


def test_messages_lost_in_a_restart_are_resent(play) -> None:
    played = play({}, breaks=2)
    assert (played.answered, played.grid.pushes) == (NODES, NODES)
    with pytest.raises(ObjectPushError):
        play({}, breaks=3)


def test_refused_messages_are_resent_and_then_their_nodes_count_as_gone(play) -> None:
    assert play({}, refuses=4).answered == NODES
    played = play({}, needed=1, refuses=3 + 3 + 1)
    assert (played.answered, played.gone) == ([12, 13], [11])


@pytest.mark.parametrize(("loses", "answered"), [(1, NODES), (2, NODES), (3, [11, 13])])
def test_a_node_whose_reply_was_lost_is_asked_again(play, loses: int, answered: list) -> None:
    played = play({12: FakeNode(loses=loses)}, needed=2)
    assert played.answered == answered
    assert played.grid.pushes.count(12) == min(loses + 1, 3)
    assert played.gone == [n for n in NODES if n not in answered]


def test_a_new_node_gets_no_message_while_all_others_are_connected(play) -> None:
    assert 99 not in play({99: FakeNode(born=2.0)}).grid.pushes


def test_a_silent_node_is_waited_for_once(play) -> None:
    registry = NodeRegistry(list(NODES))
    first = play({12: FakeNode(latency=None)}, 2, registry)
    assert (first.answered, first.gone, registry.silent) == ([11, 13], [], {12})
    assert first.grid.now > TIMEOUT
    second = play({12: FakeNode(latency=None)}, 2, registry)
    assert second.answered == [11, 13]
    assert 12 in second.grid.pushes  # it may have woken up
    assert second.grid.now <= 6


def test_a_node_that_comes_back_between_two_exchanges_is_waited_for(identity, monkeypatch) -> None:
    grid = FakeGrid({n: FakeNode() for n in NODES} | {12: FakeNode(dies=3.0, returns=150.0)})
    clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
    monkeypatch.setattr(retrying_grid, "time", clock)
    retrying = RetryingGrid(grid, NodeRegistry(list(NODES)), needed=2)
    for expected in ([11, 13], NODES):
        messages = [Message(RecordDict(), n, "train") for n in NODES]
        replies = retrying.send_and_receive(messages, timeout=TIMEOUT)
        assert sorted(r.metadata.src_node_id for r in replies if not r.has_error()) == expected
        grid.now = 160.0


def test_dead_nodes_that_cannot_save_the_round_are_not_waited_for(play) -> None:
    played = play({11: FakeNode(fails=True), 12: FakeNode(dies=3.0)}, needed=3)
    assert played.grid.now <= 65


def test_the_registry_records_the_names_of_registered_keys(play) -> None:
    assert play({12: FakeNode(name="node-1")}).registry.names == {12: "node-1"}


nodes = st.builds(
    FakeNode,
    latency=st.one_of(st.none(), st.floats(0, 150)),
    dies=st.one_of(st.just(float("inf")), st.floats(0, 120)),
)


@given(st.lists(nodes, min_size=3, max_size=3), st.integers(1, 3), st.data())
def test_every_exchange_ends_in_time_and_counts_each_node_once(
    drawn: list[FakeNode], needed: int, data
) -> None:
    for node in drawn:
        node.returns = node.dies + data.draw(st.floats(0.1, 200))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        grid = FakeGrid(dict(zip(NODES, drawn, strict=True)))
        clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
        patch.setattr(retrying_grid, "time", clock)
        registry = NodeRegistry(list(NODES))
        messages = [Message(RecordDict(), n, "train") for n in NODES]
        retrying = RetryingGrid(grid, registry, needed)
        replies = retrying.send_and_receive(messages, timeout=TIMEOUT)
    counted = [r.metadata.src_node_id for r in replies]
    assert len(counted) == len(set(counted))
    gone = {r.metadata.src_node_id for r in replies if r.has_error()}
    assert set(counted) | registry.silent == set(NODES)
    assert gone <= registry.silent
    assert grid.now <= TIMEOUT + retrying_grid.POLL + 1e-6
    alive = [n for n, p in grid.nodes.items() if p.latency is not None and p.dies > TIMEOUT]
    quick = [n for n in alive if grid.nodes[n].latency <= TIMEOUT - retrying_grid.POLL]
    assert set(quick) <= set(counted) - gone
