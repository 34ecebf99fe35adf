"""Send a message to every node and collect the replies, although nodes die, hang or restart.

Flower drops a message when its node dies. This grid resends it when the node comes back, or sends
it to a node that joins in its place. It does not wait for a dead node unless the run needs its
reply, and it waits for an unresponsive node only once.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fl.wire.envelope import FAILURE

LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
POLL = 1.0  # seconds between two polls for replies
TRIES = 3  # sends of one message while the SuperLink drops it or its reply
GONE = "it went away and did not come back in time"

log = logging.getLogger("flwr")  # `flwr run --stream` shows this logger


@dataclass
class NodeRegistry:
    """The nodes that take part in the run."""

    nodes: list[int]  # their ids; a replacement takes the index of the node that it replaces
    # node id -> the name under which its key is registered, if it has one
    names: dict[int, str] = field(default_factory=dict)
    # the nodes that did not reply in the last exchange
    silent: set[int] = field(default_factory=set)


@dataclass
class _Pending:
    """A request without a reply."""

    message: Message
    activated: str  # when the node last connected, by the SuperLink's clock; "" if unknown
    gone: bool = False
    losses: int = 0  # replies that the SuperLink lost


class RetryingGrid:
    """Sends messages over a grid, and resends them to nodes that come back.

    Args:
        grid: the engine's grid.
        registry: the participating nodes; kept up to date.
        needed: an exchange with fewer successful replies than this waits until its timeout.
    """

    def __init__(self, grid: Grid, registry: NodeRegistry, needed: int) -> None:
        self._grid = grid
        self.registry = registry
        self.needed = needed
        self._pending: dict[int, _Pending] = {}  # by node
        self._sent: dict[str, int] = {}  # message id -> node

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for every reply that can still be expected.

        Returns:
            the reply of each node that sent one and an error for each node that went away; nothing
            for an unresponsive node.
        """
        start = time.monotonic()
        deadline = start + (timeout if timeout is not None else float("inf"))
        messages = list(messages)
        self._open(messages)
        replies: dict[int, Message] = {}
        while self._pending:
            for reply in self._grid.pull_messages(list(self._sent)):
                self._receive(reply, replies)
            if not self._worth_waiting(replies) or time.monotonic() > deadline:
                break
            self._resend_to_returned()
            time.sleep(POLL)
        self.registry.silent = set(self._pending)
        if messages:
            kind, seconds = messages[0].metadata.message_type, time.monotonic() - start
            log.info("%s: %d replies in %.1f s", kind, len(replies), seconds)
        gone = [pending.message for pending in self._pending.values() if pending.gone]
        error = Error(ErrorCode.NODE_UNAVAILABLE, GONE)
        return [*replies.values(), *(Message(error, reply_to=message) for message in gone)]

    def _open(self, messages: list[Message]) -> None:
        """Start an exchange. A node that restarted since the last one is not silent any more."""
        active = self._active_nodes()
        self.registry.silent -= {
            node
            for node, pending in self._pending.items()
            if active.get(node, pending.activated) != pending.activated
        }
        self._sent, self._pending = {}, {}
        for message in messages:
            node = message.metadata.dst_node_id
            self._pending[node] = _Pending(message, active.get(node, ""))
        self._push([pending.message for pending in self._pending.values()])

    def _receive(self, reply: Message, replies: dict[int, Message]) -> None:
        """Store a reply, resend its request if it was lost, or mark its node as gone."""
        node = self._sent.pop(reply.metadata.reply_to_message_id)
        pending = self._pending.get(node)
        if pending is None:
            return  # an earlier copy of the message was answered
        code = reply.error.code if reply.has_error() else None
        if code == ErrorCode.NODE_UNAVAILABLE:
            pending.gone = True
            log.warning("node %s went away; its message is resent if it comes back", node)
        elif code in LOST and pending.losses < TRIES - 1:
            pending.losses += 1
            log.warning("the SuperLink lost the reply of node %s; resending its message", node)
            self._resend(node)
        else:
            if code is not None and reply.metadata.src_node_id != node:  # sent by the SuperLink
                reply = Message(reply.error, reply_to=pending.message)
            replies[node] = reply
            del self._pending[node]

    def _worth_waiting(self, replies: dict[int, Message]) -> bool:
        """Whether a live node owes a reply, or the run needs a gone or silent node to return."""
        live = {node for node, pending in self._pending.items() if not pending.gone}
        good = sum(
            not reply.has_error() and FAILURE not in reply.content for reply in replies.values()
        )
        return bool(live - self.registry.silent) or (
            good < self.needed <= good + len(self._pending)
        )

    def _resend_to_returned(self) -> None:
        """Resend to nodes that restarted, and give the messages of gone nodes to new nodes."""
        active = self._active_nodes()
        returned = []
        for node, pending in self._pending.items():
            if node in active and active[node] != pending.activated:
                pending.activated, pending.gone = active[node], False
                returned.append(node)
        gone = [node for node, pending in self._pending.items() if pending.gone]
        nodes = self.registry.nodes
        new = sorted(set(active) - set(nodes))
        for old, node in zip(gone, new, strict=False):
            self._pending[node] = _Pending(self._pending.pop(old).message, active[node])
            nodes[nodes.index(old)] = node
            returned.append(node)
        for node in returned:
            log.warning("node %s came back; resending its message", node)
            self.registry.silent.discard(node)
            self._resend(node)

    def _resend(self, node: int) -> None:
        message = _copy(self._pending[node].message, node)
        self._pending[node].message = message
        self._push([message])

    def _push(self, messages: list[Message]) -> None:
        """Send messages; retry as new messages those that the SuperLink does not accept.

        A SuperLink that restarts meanwhile refuses a message of which it has a part, or loses one
        that it has. It discards parts after three minutes, which frees a node that waits for one.
        """
        for tries_left in reversed(range(TRIES)):
            messages = self._push_once(messages, last=not tries_left)
            if not messages:
                return
            time.sleep(POLL)
            messages = [_copy(message, message.metadata.dst_node_id) for message in messages]
            for message in messages:
                self._pending[message.metadata.dst_node_id].message = message

    def _push_once(self, messages: list[Message], last: bool) -> list[Message]:
        """Send messages; return the refused ones or, on the last try, mark their nodes as gone.

        Raises:
            ObjectPushError: the SuperLink lost the messages on the last try.
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
            elif last:  # it signed off, and the SuperLink has forgotten it
                self._pending[node].gone = True
            else:
                refused.append(message)
        return refused

    def _active_nodes(self) -> dict[int, str]:
        """Map each connected node to the time of its last connection; record the nodes' names."""
        nodes = list(self._grid.get_nodes())
        self.registry.names |= {node.node_id: node.name for node in nodes if node.name}
        return {node.node_id: node.last_activated_at for node in nodes}


def _copy(message: Message, node: int) -> Message:
    """A new message to a node with the same content and type."""
    return Message(message.content, node, message.metadata.message_type)
