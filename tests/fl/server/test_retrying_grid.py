"""An exchange waits for the answers that can be expected, and asks again who comes back."""

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

from fl.server import retrying_grid as exchange
from fl.server.retrying_grid import Exchange, Roster

TIMEOUT = 100.0
NODES = [11, 12, 13]


@dataclass
class Plant:
    """A node as the grid plays it: when it is there, and how long it takes to answer.

    Attributes:
        takes: seconds from a request to its answer; None never answers.
        dies, returns: seconds at which it goes and comes; it forgets what it was asked.
        noticed: seconds until the SuperLink sees that it has gone.
        fails: it answers that it could not.
        loses: so many of its answers are lost on their way.
    """

    takes: float | None = 5.0
    dies: float = float("inf")
    returns: float = float("inf")
    born: float = 0.0
    noticed: float = 60.0
    fails: bool = False
    loses: int = 0
    name: str = ""

    def there(self, now: float) -> bool:
        return self.born <= now < self.dies + self.noticed or now >= self.returns

    def activated(self, now: float) -> str:
        return str(self.returns if now >= self.returns else self.born)

    def answers(self, asked: float, now: float) -> bool:
        """Whether a request of the time `asked` is answered by now."""
        if self.takes is None:
            return False
        done = asked + self.takes
        lost = asked < self.returns and done >= self.dies
        return done <= now and not lost


@dataclass
class PlayedGrid(Grid):
    """A grid whose clock goes only when the exchange sleeps."""

    plants: dict[int, Plant]
    now: float = 0.0
    asked: dict[str, tuple[int, float, Message]] = field(default_factory=dict)
    pushes: list[int] = field(default_factory=list)
    breaks: int = 0  # so many times, what is sent is lost in the middle
    refuses: int = 0  # so many messages are not taken

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=n, last_activated_at=plant.activated(self.now), name=plant.name)
            for n, plant in self.plants.items()
            if plant.there(self.now)
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
            self.asked[message.metadata.message_id] = (node, self.now, message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = []
        for message_id in message_ids:
            node, asked, message = self.asked[message_id]
            plant = self.plants[node]
            if plant.answers(asked, self.now) and plant.loses:
                plant.loses -= 1
                error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "objects are unavailable")
                reply = Message(error, reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
                replies.append(reply)
            elif plant.answers(asked, self.now):
                record = "failure" if plant.fails else "about"
                content = RecordDict({record: ConfigRecord({"node": node})})
                replies.append(Message(content, reply_to=message))
            elif not plant.there(self.now):
                error = Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat")
                reply = Message(error, reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID  # as Flower's come
                replies.append(reply)
        return replies

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.get_nodes()]

    def run(self) -> None: ...
    def set_run(self, run: object) -> None: ...
    def create_message(self, *args: object) -> None: ...
    def send_and_receive(self, *args: object, **more: object) -> None: ...


@dataclass
class Played:
    """An exchange that was played to its end."""

    grid: PlayedGrid
    roster: Roster
    answered: list[int]
    gone: list[int]


@pytest.fixture
def play(identity, monkeypatch) -> Callable[..., Played]:
    """play({node: plant}, needed): ask the three nodes."""

    def go(
        plants: dict[int, Plant],
        needed: int = 3,
        roster: Roster | None = None,
        **grid_: int,
    ) -> Played:
        grid = PlayedGrid({n: Plant() for n in NODES} | plants, **grid_)
        clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
        monkeypatch.setattr(exchange, "time", clock)
        roster = roster or Roster(list(NODES))
        patient = Exchange(grid, roster, needed)
        messages = [Message(RecordDict(), n, "train") for n in roster.nodes]
        replies = patient.send_and_receive(messages, timeout=TIMEOUT)
        answered = [r.metadata.src_node_id for r in replies if not r.has_error()]
        gone = [r.metadata.src_node_id for r in replies if r.has_error()]
        return Played(grid, roster, sorted(answered), sorted(gone))

    return go


def test_all_answer_and_nobody_is_asked_twice(play) -> None:
    played = play({12: Plant(takes=20.0)})
    assert (played.answered, played.gone, played.grid.pushes) == (NODES, [], NODES)
    assert played.grid.now <= 21


def test_a_node_that_died_is_not_waited_for_where_the_others_are_enough(play) -> None:
    played = play({12: Plant(dies=3.0)}, needed=2)
    assert (played.answered, played.gone) == ([11, 13], [12])
    assert played.grid.now <= 65


def test_a_node_that_died_and_is_needed_is_waited_for_until_the_time_is_up(play) -> None:
    played = play({12: Plant(dies=3.0)}, needed=3)
    assert (played.answered, played.gone) == ([11, 13], [12])
    assert played.grid.now > TIMEOUT


@pytest.mark.parametrize("returns", [10.0, 80.0], ids=["before it is missed", "after"])
def test_a_node_that_comes_back_is_asked_again(play, returns: float) -> None:
    played = play({12: Plant(dies=3.0, returns=returns)})
    assert played.answered == NODES
    assert played.grid.pushes == [*NODES, 12]
    assert played.grid.now <= returns + 7


def test_a_node_that_comes_in_the_stead_of_another_takes_its_place(play) -> None:
    played = play({12: Plant(dies=3.0), 99: Plant(born=30.0)})
    assert played.answered == [11, 13, 99]
    assert played.roster.nodes == [11, 99, 13]


def test_what_a_restart_lost_on_its_way_is_sent_again(play) -> None:
    played = play({}, breaks=2)
    assert (played.answered, played.grid.pushes) == (NODES, NODES)
    with pytest.raises(ObjectPushError):
        play({}, breaks=3)


def test_messages_that_are_not_taken_are_sent_again_and_then_their_nodes_have_gone(play) -> None:
    assert play({}, refuses=4).answered == NODES
    played = play({}, needed=1, refuses=3 + 3 + 1)
    assert (played.answered, played.gone) == ([12, 13], [11])


@pytest.mark.parametrize(("loses", "answered"), [(1, NODES), (2, NODES), (3, [11, 13])])
def test_a_node_whose_answer_was_lost_is_asked_again(play, loses: int, answered: list) -> None:
    played = play({12: Plant(loses=loses)}, needed=2)
    assert played.answered == answered
    assert played.grid.pushes.count(12) == min(loses + 1, 3)
    assert played.gone == [n for n in NODES if n not in answered]


def test_a_newcomer_is_not_asked_while_all_are_there(play) -> None:
    assert 99 not in play({99: Plant(born=2.0)}).grid.pushes


def test_a_silent_node_costs_its_time_once(play) -> None:
    roster = Roster(list(NODES))
    first = play({12: Plant(takes=None)}, 2, roster)
    assert (first.answered, first.gone, roster.silent) == ([11, 13], [], {12})
    assert first.grid.now > TIMEOUT
    second = play({12: Plant(takes=None)}, 2, roster)
    assert second.answered == [11, 13]
    assert 12 in second.grid.pushes  # it may have woken up
    assert second.grid.now <= 6


def test_a_node_that_comes_back_between_two_exchanges_is_waited_for(identity, monkeypatch) -> None:
    grid = PlayedGrid({n: Plant() for n in NODES} | {12: Plant(dies=3.0, returns=150.0)})
    clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
    monkeypatch.setattr(exchange, "time", clock)
    roster = Roster(list(NODES))
    patient = Exchange(grid, roster, needed=2)
    for expected in ([11, 13], NODES):
        messages = [Message(RecordDict(), n, "train") for n in NODES]
        replies = patient.send_and_receive(messages, timeout=TIMEOUT)
        assert sorted(r.metadata.src_node_id for r in replies if not r.has_error()) == expected
        grid.now = 160.0


def test_nobody_waits_for_the_gone_where_they_cannot_save_the_round(play) -> None:
    played = play({11: Plant(fails=True), 12: Plant(dies=3.0)}, needed=3)
    assert played.grid.now <= 65


def test_names_of_registered_keys_are_known(play) -> None:
    assert play({12: Plant(name="node-1")}).roster.names == {12: "node-1"}


plants = st.builds(
    Plant,
    takes=st.one_of(st.none(), st.floats(0, 150)),
    dies=st.one_of(st.just(float("inf")), st.floats(0, 120)),
)


@given(st.lists(plants, min_size=3, max_size=3), st.integers(1, 3), st.data())
def test_whatever_happens_it_ends_in_time_and_books_each_node_once(
    drawn: list[Plant], needed: int, data
) -> None:
    for plant in drawn:
        plant.returns = plant.dies + data.draw(st.floats(0.1, 200))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        grid = PlayedGrid(dict(zip(NODES, drawn, strict=True)))
        clock = SimpleNamespace(monotonic=grid.monotonic, sleep=grid.sleep)
        patch.setattr(exchange, "time", clock)
        roster = Roster(list(NODES))
        messages = [Message(RecordDict(), n, "train") for n in NODES]
        replies = Exchange(grid, roster, needed).send_and_receive(messages, timeout=TIMEOUT)
    booked = [r.metadata.src_node_id for r in replies]
    assert len(booked) == len(set(booked))
    gone = {r.metadata.src_node_id for r in replies if r.has_error()}
    assert set(booked) | roster.silent == set(NODES)
    assert gone <= roster.silent
    assert grid.now <= TIMEOUT + exchange.POLL + 1e-6
    never_away = [n for n, p in grid.plants.items() if p.takes is not None and p.dies > TIMEOUT]
    quick = [n for n in never_away if grid.plants[n].takes <= TIMEOUT - exchange.POLL]
    assert set(quick) <= set(booked) - gone
