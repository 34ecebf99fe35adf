"""The strategy: one round of federated PatchCore, as Flower's Strategy hooks.

Train: every client sends banks. Aggregate: check them, merge them by greedy selection. Evaluate:
the merged banks go to every client, which installs them and sends back figures.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.config import Settings
from fl.exchange import Roster
from fl.messages import (
    BANKS,
    CONFIG,
    TICKET,
    ClientFailed,
    Results,
    Upload,
    banks_bytes,
    check_size,
    check_ticket,
    make_ticket,
    number_in,
    pack_banks,
    pack_ticket,
    unpack_results,
    unpack_upload,
)
from src.banks import BankRefused, Calibration
from src.client import Stage, pooled_threshold, silent
from src.merge import MergedBank, check_bank, merge_banks
from src.models import PatchCore

log = logging.getLogger(__name__)

APP = "fedpatchcore"
KEY_NAME = re.compile(r"node-(\d+)")  # as `admit` registers the keys of `make_certificates`
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RoundFailed(RuntimeError):
    """Too few clients came through; the message names each that did not, and why."""


class FederatedPatchCore(Strategy):
    """Merges the clients' memory banks by greedy coreset selection.

    Args:
        settings: the run's.
        model: for the dimension and the fingerprint that banks must have.
        roster: the nodes that take part.
        workspace: the run directory where clients share it; "" where they do not.
        progress: who to tell how far the merge is.
        keep: called after the merge, to keep it before anything else can fail.

    Attributes:
        uploads: client -> what it sent, once checked.
        merged: bank name -> merge.
        results: client -> its answer to the evaluate message.
        refused: clients that were left out, with the reason.
        numbers: node -> the client number it goes by, as its first answer says.
        ticket: of the exchange that goes on.
        upload_bytes, broadcast_bytes: arrays on the wire, by client and in one broadcast.
        seconds: of the merge.
    """

    def __init__(
        self,
        settings: Settings,
        model: PatchCore,
        roster: Roster,
        workspace: str = "",
        progress: Stage = silent,
        keep: Callable[["FederatedPatchCore"], None] = lambda strategy: None,
    ) -> None:
        self.settings, self.model, self.roster = settings, model, roster
        self.workspace, self.progress, self.keep = workspace, progress, keep
        self.uploads: dict[int, Upload] = {}
        self.merged: dict[str, MergedBank] = {}
        self.results: dict[int, Results] = {}
        self.refused: list[dict] = []
        self.numbers: dict[int, int] = {}
        self.upload_bytes: dict[int, int] = {}
        self.broadcast_bytes = 0
        self.seconds = 0.0
        self.ticket = ""

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Ask every node for its banks; nobody, where a run is resumed that has merged them."""
        return [] if self.merged else self._messages(MessageType.TRAIN, {})

    def aggregate_train(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Merge what the clients sent, bank by bank.

        Raises:
            RoundFailed: fewer clients than min-clients sent banks that can be merged.
        """
        if not self.merged:
            self._take_all(replies, self._accept_upload)
            self._check_enough(len(self.uploads), "sent a bank that can be merged")
            self._merge()
            self.keep(self)
        record = pack_banks({name: bank.features for name, bank in self.merged.items()})
        self.broadcast_bytes = banks_bytes(record)
        rows = sum(len(bank.features) for bank in self.merged.values())
        return record, MetricRecord({"clients": len(self.uploads), "rows": rows})

    def _merge(self) -> None:
        started = time.monotonic()
        for name in sorted({name for upload in self.uploads.values() for name in upload.banks}):
            banks = {c: u.banks[name] for c, u in self.uploads.items() if name in u.banks}
            self.merged[name] = merge_banks(banks, self.settings.seed, self.progress("merge"))
        self.seconds = time.monotonic() - started

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Broadcast the merged banks; a client that was left out gets them like any other."""
        return self._messages(MessageType.EVALUATE, {BANKS: arrays})

    def aggregate_evaluate(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> MetricRecord:
        """Collect the clients' figures.

        Raises:
            RoundFailed: fewer clients than min-clients scored the merged bank.
        """
        self._take_all(replies, self._accept_results)
        self.results = dict(sorted(self.results.items()))  # sums round by their order
        self._check_enough(len(self.results), "scored the merged bank")
        return MetricRecord({"clients": len(self.results)})

    def summary(self) -> None:
        """Say what the round will do."""
        log.info("federated PatchCore over %d clients", len(self.roster.nodes))

    def thresholds(self) -> dict[str, float]:
        """Bank name -> image score above which the set share of the normal images lies."""
        rate = self.settings.evaluate_false_alarm_rate
        return {
            name: pooled_threshold(self._calibrations(name), rate)
            for name in self.merged
            if any(c.images for c in self._calibrations(name).values())
        }

    def measured_radius(self, name: str) -> float | None:
        """Largest distance to the bank of any training patch of the clients that answered."""
        return max((c.radius for c in self._calibrations(name).values()), default=None)

    def _calibrations(self, name: str) -> dict[int, Calibration]:
        return {
            client: Calibration(np.array(found["quantiles"]), found["images"], found["radius"])
            for client, result in self.results.items()
            if (found := result["calibration"].get(name))
        }

    def _messages(self, kind: str, content: dict) -> list[Message]:
        """The same to every node, under a new ticket."""
        self.ticket = make_ticket()
        config = ConfigRecord({**self.settings.flat(), "workspace": self.workspace})
        records = {CONFIG: config, TICKET: pack_ticket(self.ticket), **content}
        return [Message(RecordDict(records), node, kind) for node in self.roster.nodes]

    def _take_all(self, replies: Iterable[Message], accept: Callable[[Message], None]) -> None:
        """Accept the replies that came, by node; book as left out whoever gave none."""
        came = sorted(replies, key=_node_of)
        for reply in came:
            self._take(reply, accept)
        for node in sorted(set(self.roster.nodes) - set(map(_node_of, came))):
            self._refuse(node, f"it gave no answer within {self.settings.timeout} s")

    def _take(self, reply: Message, accept: Callable[[Message], None]) -> None:
        """Accept a reply, or book its sender as left out with the reason."""
        try:
            if reply.has_error():
                raise ClientFailed(_reason(reply))
            self._claim(_node_of(reply), number_in(reply.content))
            check_ticket(reply.content, self.ticket)
            accept(reply)
        except (ClientFailed, BankRefused) as failure:
            self._refuse(_node_of(reply), str(failure))

    def _claim(self, node: int, number: int | None) -> None:
        """Book the number a node goes by; refuse one that is not its own.

        A node whose key was registered as node-3 is client 3. Where there are no keys, a node that
        has come in the stead of another may go by the other's number.
        """
        if number is None:
            return
        registered = self._registered(node)
        if isinstance(registered, int) and registered != number:
            raise BankRefused(
                f"it calls itself client {number}, but its key is node-{registered}'s"
            )
        holder = next((n for n, held in self.numbers.items() if held == number), node)
        if holder != node and holder in self.roster.nodes:
            raise BankRefused(f"it calls itself client {number}, as node {holder} does")
        if self.numbers.setdefault(node, number) != number:
            raise BankRefused(f"it calls itself client {number} now")

    def _registered(self, node: int) -> int | str:
        """The number that a node's key was registered for; else what to call the node."""
        name = KEY_NAME.fullmatch(self.roster.names.get(node, ""))
        return int(name[1]) if name else f"node {node}"

    def _accept_upload(self, reply: Message) -> None:
        if BANKS in reply.content:
            sent: ArrayRecord = reply.content[BANKS]  # type: ignore[assignment]
            check_size(sent, self.settings.merge_max_rows, self.settings.merge_max_mb * 2**20)
        upload = unpack_upload(reply.content)
        if upload.client in self.uploads:
            raise BankRefused("it answered twice; its first answer counts")
        if upload.version != version(APP):
            raise BankRefused(
                f"its app is {APP} {upload.version}, the federation's is {version(APP)}"
            )
        if upload.fingerprint != self.model.backbone.fingerprint:
            raise BankRefused(
                f"its backbone's weights ({upload.fingerprint}) are not the federation's "
                f"({self.model.backbone.fingerprint})"
            )
        if not upload.banks:
            raise BankRefused("it sent no bank")
        for bank in upload.banks.values():
            check_bank(bank, self.model.backbone.get_feature_dim())
        self.uploads[upload.client] = upload
        self.upload_bytes[upload.client] = banks_bytes(reply.content[BANKS])  # type: ignore[arg-type]

    def _accept_results(self, reply: Message) -> None:
        results = unpack_results(reply.content)
        if results["client"] in self.results:
            raise BankRefused("it answered twice; its first answer counts")
        self.results[results["client"]] = results

    def _refuse(self, node: int, reason: str) -> None:
        client = self.numbers.get(node, self._registered(node))
        if client in self.uploads:
            reason = f"its bank is merged, but it gave no figures: {reason}"
        log.error("%s is left out: %s", called(client), reason)
        if client not in [entry["client"] for entry in self.refused]:
            self.refused.append({"client": client, "reason": reason})

    def _check_enough(self, came: int, did: str) -> None:
        needed = self.settings.min_clients or len(self.roster.nodes)
        if came < needed:
            named = "\n".join(f"{called(r['client'])}: {r['reason']}" for r in self.refused)
            raise RoundFailed(
                f"only {came} of {len(self.roster.nodes)} clients {did}, {needed} are needed "
                f"(min-clients):\n{named}"
            )


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
