"""Read the replies of one exchange: each in one try block, each from one named client."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Generic, TypeVar

from flwr.app import Message, RecordDict

from fl.server.retrying_grid import NodeRegistry
from fl.wire.envelope import (
    ClientFailed,
    Sender,
    check_ticket,
    client_number,
    unpack_sender,
    wire_bytes,
)
from src.federated.types import BankRefused

APP = "fedpatchcore"
KEY_NAME = re.compile(r"node-(\d+)")  # as `register_nodes` names the keys of `make_certificates`
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

T = TypeVar("T")
Parse = Callable[[int, RecordDict], T]  # client, content of its reply -> what it says

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accepted(Generic[T]):
    """A reply that was read."""

    node: int
    sender: Sender
    value: T
    size: int  # bytes on the wire


@dataclass(frozen=True)
class Refused:
    """A node that is left out of the exchange, and why."""

    node: int
    reason: str


class ReplyCollector:
    """Reads replies, and knows which client each node is.

    Args:
        registry: the nodes that take part.
        fingerprint: of the backbone weights that all must have.

    Attributes:
        clients: node -> the client number in its first reply.
    """

    def __init__(self, registry: NodeRegistry, fingerprint: str) -> None:
        self.registry, self.fingerprint = registry, fingerprint
        self.clients: dict[int, int] = {}

    def collect(
        self, replies: Iterable[Message], ticket: str, parse: Parse[T]
    ) -> Iterator[Accepted[T] | Refused]:
        """Read replies in the order of their nodes, whatever order they came in."""
        answered: set[int] = set()
        for reply in sorted(replies, key=_node_of):
            node = _node_of(reply)
            try:
                accepted = self._read(node, reply, ticket, parse)
                if accepted.sender.client in answered:
                    raise BankRefused("it answered twice; its first answer counts")
                answered.add(accepted.sender.client)
                yield accepted
            except (ClientFailed, BankRefused) as failure:
                yield Refused(node, str(failure))

    def name_of(self, node: int) -> int | str:
        """The client number of a node: as it says, or as its key is registered; else its name."""
        return self.clients.get(node, self.registered_name(node))

    def registered_name(self, node: int) -> int | str:
        """The client number a node's key is registered for; without a key, "node ID"."""
        name = KEY_NAME.fullmatch(self.registry.names.get(node, ""))
        return int(name[1]) if name else f"node {node}"

    def _read(self, node: int, reply: Message, ticket: str, parse: Parse[T]) -> Accepted[T]:
        if reply.has_error():
            raise ClientFailed(_reason(reply))
        content = reply.content
        self._claim(node, client_number(content))
        check_ticket(content, ticket)
        sender = unpack_sender(content)
        self._check_sender(sender)
        return Accepted(node, sender, parse(sender.client, content), wire_bytes(content))

    def _claim(self, node: int, number: int | None) -> None:
        """Note the client number of a node; refuse a number that is not its own.

        A node whose key is registered as node-3 is client 3. Without keys, a node that replaces
        another may take over the other's number.
        """
        if number is None:
            return
        registered = self.registered_name(node)
        if isinstance(registered, int) and registered != number:
            raise BankRefused(
                f"it calls itself client {number}, but its key is node-{registered}'s"
            )
        for other in self.registry.nodes:
            if other != node and self.clients.get(other) == number:
                raise BankRefused(f"it calls itself client {number}, as node {other} does")
        if self.clients.setdefault(node, number) != number:
            raise BankRefused(f"it calls itself client {number} now")

    def _check_sender(self, sender: Sender) -> None:
        """Refuse another version of the app or other backbone weights."""
        if sender.version != version(APP):
            raise BankRefused(
                f"its app is {APP} {sender.version}, the federation's is {version(APP)}"
            )
        if sender.fingerprint != self.fingerprint:
            raise BankRefused(
                f"its backbone's weights ({sender.fingerprint}) are not the federation's "
                f"({self.fingerprint})"
            )


def display_name(client: int | str) -> str:
    """A client as people read it: "client 3", or the name of its node."""
    return f"client {client}" if isinstance(client, int) else client


def _node_of(reply: Message) -> int:
    return reply.metadata.src_node_id


def _reason(reply: Message) -> str:
    """What a client's exception says, without the words Flower puts around it."""
    text = COLOUR.sub("", reply.error.reason or "it gave no reason")
    for mark in ("occurred. Message: ", ":<'"):
        if mark in text:
            return text.rpartition(mark)[2].removesuffix("'>").strip()
    return text.strip()
