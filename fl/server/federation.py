"""The clients of a run, as a protocol sees them: ask, and get what each one replies."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fl.config import Settings
from fl.server.replies import Accepted, Parse, Refused, ReplyCollector, display_name
from fl.server.retrying_grid import NodeRegistry, RetryingGrid
from fl.server.traffic import Traffic
from fl.wire.envelope import CONFIG, TICKET, make_ticket, pack_ticket, wire_bytes
from src.federated.candidates import Stage as Progress
from src.federated.candidates import silent
from src.models import PatchCore
from src.storage.run_metrics import Stage

T = TypeVar("T")
Request = Callable[[int | None], RecordDict]  # client, or None if unknown -> its request

log = logging.getLogger(__name__)


class RoundFailed(RuntimeError):
    """Too few clients replied; the message names each that did not, and why."""


@dataclass
class Federation:
    """The nodes of a run."""

    settings: Settings  # of the run; every request carries them
    model: PatchCore  # gives the dimension and the fingerprint that banks must have
    grid: RetryingGrid  # by which messages travel
    registry: NodeRegistry  # the nodes that take part
    workspace: str = ""  # the run directory if clients share it, else ""
    progress: Progress = silent  # where to report progress
    # cost of the exchanges so far, and who was left out
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._collector = ReplyCollector(self.registry, self.model.backbone.fingerprint)

    @property
    def needed(self) -> int:
        """Number of clients that must reply to each question."""
        return self.settings.min_clients or len(self.registry.nodes)

    def ask(
        self,
        action: str,
        request: Request,
        parse: Parse[T],
        *,
        server_round: int,
        purpose: str,
        to: Collection[int] | None = None,
        answered: int = 0,
    ) -> dict[int, T]:
        """Ask clients, wait for their replies, and read each one.

        A client that fails, is silent, or replies with something that cannot be used is left out
        and named in `traffic`.

        Args:
            action: Flower's message type, such as "query.curves".
            request: gives each client's request, without ticket and settings.
            parse: reads a reply; raises ClientFailed or BankRefused to leave its client out.
            server_round: number of the round.
            purpose: what the clients do, to complete "only 2 of 3 clients ...".
            to: the clients to ask; None for all nodes.
            answered: clients that count as having replied already.

        Returns:
            client -> what it replied, in the order of the clients' numbers.

        Raises:
            RoundFailed: fewer clients than min-clients replied.
        """
        ticket = make_ticket()
        requests = self._requests(request, ticket, to)
        down = max(map(wire_bytes, requests.values()), default=0)
        messages = [Message(content, node, action) for node, content in requests.items()]
        arrived = self.grid.send_and_receive(messages, timeout=self.settings.timeout)
        outcomes = list(self._collector.collect(arrived, ticket, parse))
        accepted = [each for each in outcomes if isinstance(each, Accepted)]
        stage = action.removeprefix(f"{MessageType.QUERY}.")
        up = sum(reply.size for reply in accepted)
        self.traffic = self.traffic.with_stage(
            Stage(round=server_round, stage=stage, up=up, down=down)
        )
        for reply in accepted:
            self._count(reply, action)
        for refusal in [*outcomes, *self._silent(outcomes, to)]:
            if isinstance(refusal, Refused):
                self._leave_out(refusal, action)
        self._check_enough(answered + len(accepted), purpose)
        return {reply.sender.client: reply.value for reply in sorted(accepted, key=_client_of)}

    def _requests(
        self, request: Request, ticket: str, to: Collection[int] | None
    ) -> dict[int, RecordDict]:
        """Node -> its complete request."""
        config = ConfigRecord({**self.settings.flat(), "workspace": self.workspace})
        requests = {}
        for node in self.registry.nodes:
            client = self._collector.clients.get(node)
            if to is None or client in to:
                records = {CONFIG: config, TICKET: pack_ticket(ticket)}
                requests[node] = RecordDict({**records, **request(client)})
        return requests

    def _silent(
        self, outcomes: list[Accepted | Refused], to: Collection[int] | None
    ) -> list[Refused]:
        """Nodes that were asked and gave no reply."""
        clients = self._collector.clients
        asked = {node for node in self.registry.nodes if to is None or clients.get(node) in to}
        reason = f"it did not answer within {self.settings.timeout} s"
        return [Refused(node, reason) for node in sorted(asked - {o.node for o in outcomes})]

    def _count(self, reply: Accepted, action: str) -> None:
        """Count a reply; before the evaluation, its client takes part again if it was left out."""
        client = reply.sender.client
        upload = 0
        if action != MessageType.EVALUATE:
            upload = reply.size
            self.traffic = self.traffic.readmit(client, self._collector.registered_name(reply.node))
        self.traffic = self.traffic.with_reply(client, upload, reply.sender.seconds)

    def _leave_out(self, refusal: Refused, action: str) -> None:
        client, reason = self._collector.name_of(refusal.node), refusal.reason
        if action == MessageType.EVALUATE and self._has_uploaded(client):
            reason = f"its bank is merged, but it sent no metrics: {reason}"
        log.error("%s is left out: %s", display_name(client), reason)
        self.traffic = self.traffic.with_refusal(client, reason)

    def _has_uploaded(self, client: int | str) -> bool:
        return any(c == client and each.upload_bytes for c, each in self.traffic.clients.items())

    def _check_enough(self, count: int, purpose: str) -> None:
        if count < self.needed:
            refused = self.traffic.refused
            reasons = "\n".join(f"{display_name(r.client)}: {r.reason}" for r in refused)
            raise RoundFailed(
                f"only {count} of {len(self.registry.nodes)} clients {purpose}, {self.needed} "
                f"are needed (min-clients):\n{reasons}"
            )


def _client_of(reply: Accepted) -> int:
    return reply.sender.client
