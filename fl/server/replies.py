"""What the nodes answer: who it is that answers, what it cost, and why anyone is left out."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

from flwr.app import Message, RecordDict

from fl.server.retrying_grid import NodeRegistry
from fl.wire.messages import ClientFailed, Sender, check_ticket, make_ticket, number_in, wire_bytes
from src.federated.types import BankRefused

log = logging.getLogger(__name__)

APP = "fedpatchcore"
EVALUATE = "evaluate"  # the stage after which a client's bank is merged, whatever it answers
KEY_NAME = re.compile(r"node-(\d+)")  # as `admit` registers the keys of `make_certificates`
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RoundFailed(RuntimeError):
    """Too few clients came through; the message names each that did not, and why."""


class Intake:
    """Takes in the answers of one exchange after the other.

    Args:
        registry: the nodes that take part.
        timeout: of an exchange in seconds, for what is said of the silent.
        needed: clients that must come through; 0 for all.
        fingerprint: of the weights that all must have.

    Attributes:
        ticket: of the exchange that goes on.
        came: clients whose answer was accepted in it.
        stages: the exchanges: round, stage, bytes from all clients (`up`) and to each (`down`).
        upload_bytes: client -> what it has sent on the wire before the evaluation.
        numbers: node -> the client number it goes by, as its first answer says.
        refused: clients that are left out, with the reason.
    """

    def __init__(self, registry: NodeRegistry, timeout: int, needed: int, fingerprint: str) -> None:
        self.registry, self.timeout, self.fingerprint = registry, timeout, fingerprint
        self.needed = needed or len(registry.nodes)
        self.ticket = ""
        self.came: set[int] = set()
        self.stages: list[dict] = []
        self.upload_bytes: dict[int, int] = {}
        self.numbers: dict[int, int] = {}
        self.refused: list[dict] = []
        self._asked: list[int] | None = None  # clients; None for all nodes

    def open(self, server_round: int, stage: str) -> str:
        """Begin an exchange with everybody; returns its ticket."""
        self.ticket, self._asked = make_ticket(), None
        self.stages.append({"round": server_round, "stage": stage, "up": 0, "down": 0})
        return self.ticket

    def sending(self, requests: Mapping[int, RecordDict], clients: list[int] | None) -> None:
        """Book the requests of this exchange, by node; `clients` where not all are asked."""
        self._asked = clients
        self.stages[-1]["down"] = max(map(wire_bytes, requests.values()), default=0)

    def take(self, replies: Iterable[Message], accept: Callable[[RecordDict], None]) -> None:
        """Accept the replies that came, by node; book as left out whoever gave none."""
        came = sorted(replies, key=_node_of)
        self.came = set()
        for reply in came:
            self._take(reply, accept)
        silent = set(self.registry.nodes) - set(map(_node_of, came))
        for node in sorted(silent):
            if self._asked is None or self.numbers.get(node) in self._asked:
                self._refuse(node, f"it gave no answer within {self.timeout} s")

    def check_sender(self, sender: Sender) -> None:
        """Refuse an app or a backbone that are not the federation's.

        Raises:
            BankRefused: they are not.
        """
        if sender.version != version(APP):
            raise BankRefused(
                f"its app is {APP} {sender.version}, the federation's is {version(APP)}"
            )
        if sender.fingerprint != self.fingerprint:
            raise BankRefused(
                f"its backbone's weights ({sender.fingerprint}) are not the federation's "
                f"({self.fingerprint})"
            )

    def check_enough(self, did: str) -> None:
        """Go on only if as many came through as must.

        Raises:
            RoundFailed: fewer did.
        """
        if len(self.came) < self.needed:
            named = "\n".join(f"{called(r['client'])}: {r['reason']}" for r in self.refused)
            raise RoundFailed(
                f"only {len(self.came)} of {len(self.registry.nodes)} clients {did}, {self.needed} "
                f"are needed (min-clients):\n{named}"
            )

    def claim(self, node: int, number: int | None) -> None:
        """Book the number a node goes by; refuse one that is not its own.

        A node whose key was registered as node-3 is client 3. Where there are no keys, a node that
        has come in the stead of another may go by the other's number.

        Raises:
            BankRefused: it is another's number, or not the one it went by before.
        """
        if number is None:
            return
        registered = self._registered(node)
        if isinstance(registered, int) and registered != number:
            raise BankRefused(
                f"it calls itself client {number}, but its key is node-{registered}'s"
            )
        holder = next((n for n, held in self.numbers.items() if held == number), node)
        if holder != node and holder in self.registry.nodes:
            raise BankRefused(f"it calls itself client {number}, as node {holder} does")
        if self.numbers.setdefault(node, number) != number:
            raise BankRefused(f"it calls itself client {number} now")

    def _take(self, reply: Message, accept: Callable[[RecordDict], None]) -> None:
        """Accept a reply, or book its sender as left out with the reason."""
        node = _node_of(reply)
        try:
            if reply.has_error():
                raise ClientFailed(_reason(reply))
            number = number_in(reply.content)
            self.claim(node, number)
            check_ticket(reply.content, self.ticket)
            if number in self.came:
                raise BankRefused("it answered twice; its first answer counts")
            accept(reply.content)
            self._book(node, wire_bytes(reply.content))
        except (ClientFailed, BankRefused) as failure:
            self._refuse(node, str(failure))

    def _book(self, node: int, size: int) -> None:
        """Count an accepted answer; who was left out before takes part again."""
        client, stage = self.numbers[node], self.stages[-1]
        self.came.add(client)
        stage["up"] += size
        if stage["stage"] != EVALUATE:
            names = (client, self._registered(node))
            self.refused = [entry for entry in self.refused if entry["client"] not in names]
            self.upload_bytes[client] = self.upload_bytes.get(client, 0) + size

    def _registered(self, node: int) -> int | str:
        """The number that a node's key was registered for; else what to call the node."""
        name = KEY_NAME.fullmatch(self.registry.names.get(node, ""))
        return int(name[1]) if name else f"node {node}"

    def _refuse(self, node: int, reason: str) -> None:
        client = self.numbers.get(node, self._registered(node))
        if self.stages[-1]["stage"] == EVALUATE and client in self.upload_bytes:
            reason = f"its bank is merged, but it gave no figures: {reason}"
        log.error("%s is left out: %s", called(client), reason)
        if client not in [entry["client"] for entry in self.refused]:
            self.refused.append({"client": client, "reason": reason})


def called(client: int | str) -> str:
    """What to call a client: by its number, or as Flower's node where that is all we know."""
    return f"client {client}" if isinstance(client, int) else client


def _node_of(reply: Message) -> int:
    return reply.metadata.src_node_id


def _reason(reply: Message) -> str:
    """What a client's exception said, out of the words that Flower puts around it."""
    text = COLOUR.sub("", reply.error.reason or "it gave no reason")
    for mark in ("occurred. Message: ", ":<'"):
        if mark in text:
            return text.rpartition(mark)[2].removesuffix("'>").strip()
    return text.strip()
