"""A message to every node and its answer, also when nodes die, hang, or come back.

Flower loses a message with the node that had it. Here a node that comes back is asked again, and so
is one that comes in the stead of another; nobody waits for a node that has gone, unless too few
others are left; and what was silent once is not waited for twice.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run

from fl.wire.messages import FAILURE

LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
POLL = 1.0  # seconds between two looks for answers
TRIES = 3  # times that a message is sent, where the SuperLink went away in the middle of it
GONE = "it went away and did not come back in time"

log = logging.getLogger("flwr")  # what `flwr run --stream` shows


@dataclass
class Roster:
    """The nodes that take part.

    Attributes:
        nodes: their ids; a node that comes in another's stead takes its place.
        names: node -> the name that its key was registered by, where it has one.
        silent: those that gave no answer in the last exchange.
    """

    nodes: list[int]
    names: dict[int, str] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)


@dataclass
class _Asked:
    """A node that has not answered yet."""

    message: Message
    activated: str  # when the node last came, as the SuperLink says; "" where it does not
    gone: bool = False
    spoiled: int = 0  # answers that were lost on their way


class Exchange(Grid):
    """A Grid that keeps asking.

    Args:
        grid: the engine's.
        roster: the nodes that take part; kept up to date.
        needed: so many must answer; with fewer, an exchange waits until its time is up.
    """

    def __init__(self, grid: Grid, roster: Roster, needed: int) -> None:
        self._grid = grid
        self.roster = roster
        self.needed = needed
        self._asked: dict[int, _Asked] = {}
        self._sent: dict[str, int] = {}  # message id -> node

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Ask, and wait for the answers that can be expected.

        Returns:
            an answer for each node that gave one, and an error for each that went away; none for
            a node that is silent.
        """
        began = time.monotonic()
        ends = began + (timeout if timeout is not None else float("inf"))
        messages = list(messages)
        here = self._look_around()
        back = {
            n for n, last in self._asked.items() if here.get(n, last.activated) != last.activated
        }
        self.roster.silent -= back
        self._sent, self._asked = {}, {}
        for message in messages:
            node = message.metadata.dst_node_id
            self._asked[node] = _Asked(message, here.get(node, ""))
        self._push([asked.message for asked in self._asked.values()])
        answers: dict[int, Message] = {}
        while self._asked:
            for reply in self._grid.pull_messages(list(self._sent)):
                self._take(reply, answers)
            if not self._worth_waiting(answers) or time.monotonic() > ends:
                break
            self._ask_who_came_back()
            time.sleep(POLL)
        self.roster.silent = set(self._asked)
        if messages:
            kind, took = messages[0].metadata.message_type, time.monotonic() - began
            log.info("%s: %d answers in %.1f s", kind, len(answers), took)
        gone = [asked.message for asked in self._asked.values() if asked.gone]
        error = Error(ErrorCode.NODE_UNAVAILABLE, GONE)
        return [*answers.values(), *(Message(error, reply_to=message) for message in gone)]

    def _take(self, reply: Message, answers: dict[int, Message]) -> None:
        """Book an answer, or that its node has gone, which is the SuperLink's to say."""
        node = self._sent.pop(reply.metadata.reply_to_message_id)
        asked = self._asked.get(node)
        if asked is None:
            return  # it was asked twice, and has answered
        if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            asked.gone = True
            log.warning("node %s has gone; it is asked again if it comes back", node)
            return
        if reply.has_error() and reply.error.code in LOST and asked.spoiled < TRIES - 1:
            asked.spoiled += 1
            log.warning("the answer of node %s was lost, and it is asked again", node)
            self._ask_again(node)
            return
        if reply.has_error() and reply.metadata.src_node_id != node:  # the SuperLink speaks for it
            reply = Message(reply.error, reply_to=asked.message)
        answers[node] = reply
        del self._asked[node]

    def _worth_waiting(self, answers: dict[int, Message]) -> bool:
        """Whether an answer is to come, or one is needed of a node that may not give it."""
        silent = self.roster.silent
        expected = [n for n, asked in self._asked.items() if not asked.gone and n not in silent]
        good = sum(
            not reply.has_error() and FAILURE not in reply.content for reply in answers.values()
        )
        return bool(expected) or good < self.needed <= good + len(self._asked)

    def _ask_who_came_back(self) -> None:
        """Ask again who was started anew since it was asked, or has come for one that has gone."""
        here = self._look_around()
        again = []
        for node, asked in self._asked.items():
            if node in here and here[node] != asked.activated:
                asked.activated, asked.gone = here[node], False
                again.append(node)
        gone = [node for node, asked in self._asked.items() if asked.gone]
        nodes = self.roster.nodes
        new = sorted(set(here) - set(nodes))
        for old, node in zip(gone, new, strict=False):
            asked = self._asked.pop(old)
            self._asked[node] = _Asked(asked.message, here[node])
            nodes[nodes.index(old)] = node
            again.append(node)
        for node in again:
            log.warning("node %s has come back, and is asked again", node)
            self.roster.silent.discard(node)
            self._ask_again(node)

    def _ask_again(self, node: int) -> None:
        self._asked[node].message = _copy(self._asked[node].message, node)
        self._push([self._asked[node].message])

    def _push(self, messages: list[Message]) -> None:
        """Send messages; those that the SuperLink does not take again, as new ones.

        One that restarts meanwhile refuses a message that it has half of, or loses track of one
        that it has. It forgets halves after three minutes; a node that waits for one is free then.
        """
        for left in reversed(range(TRIES)):
            messages = self._push_once(messages, last=not left)
            if not messages:
                return
            time.sleep(POLL)
            messages = [_copy(message, message.metadata.dst_node_id) for message in messages]
            for message in messages:
                self._asked[message.metadata.dst_node_id].message = message

    def _push_once(self, messages: list[Message], last: bool) -> list[Message]:
        """Send messages; returns those that were not taken, or at last books their nodes as gone.

        Raises:
            ObjectPushError: at last, where the SuperLink has lost track of them.
        """
        try:
            ids = list(self._grid.push_messages(messages))
        except ObjectPushError:
            if last:
                raise
            return messages
        refused = []
        for message_id, message in zip(ids, messages, strict=True):
            node = message.metadata.dst_node_id
            if message_id:
                self._sent[message_id] = node
            elif last:  # it signed off, and the SuperLink knows it no more
                self._asked[node].gone = True
            else:
                refused.append(message)
        return refused

    def _look_around(self) -> dict[int, str]:
        """Node -> when it last came, of all that are there."""
        nodes = list(self._grid.get_nodes())
        self.roster.names |= {node.node_id: node.name for node in nodes if node.name}
        return {node.node_id: node.last_activated_at for node in nodes}

    # --- the rest is the engine's ---

    @property
    def run(self) -> Run:
        return self._grid.run

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)


def _copy(message: Message, node: int) -> Message:
    """The same message anew, to a node."""
    return Message(message.content, node, message.metadata.message_type)
