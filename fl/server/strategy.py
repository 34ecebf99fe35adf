"""The strategy: rounds of federated PatchCore, as Flower's Strategy hooks.

Train: every client sends banks. Aggregate: check them, merge them by greedy selection. In a later
round the clients send what the merged banks do not cover yet, and these grow. Evaluate, at the end:
the merged banks go to every client, which installs them and sends back figures.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.config import Settings
from fl.server.ledger_store import Books
from fl.server.private import PrivateRound
from fl.server.replies import Intake
from fl.server.retrying_grid import NodeRegistry
from fl.wire.arrays import pack_banks
from fl.wire.messages import (
    ALLOWANCE,
    BANKS,
    CONFIG,
    ROUND,
    TICKET,
    Results,
    Sender,
    Terms,
    Upload,
    check_size,
    pack_allowance,
    pack_frames,
    pack_terms,
    pack_ticket,
    unpack_prospect,
    unpack_results,
    unpack_upload,
)
from fl.wire.sums import pack_asks
from src.federated.allocation import Budget, allot
from src.federated.candidates import Stage, pooled_threshold, silent
from src.federated.merge import MergedBank, check_bank, check_survey, join_banks, merge_banks
from src.federated.types import BankRefused, Calibration, ClientBank, Survey
from src.models import PatchCore
from src.models.feature_transform import Frame
from src.privacy.queries import Ask
from src.privacy.runner import threshold_of

log = logging.getLogger(__name__)


class FederatedPatchCore(Strategy):
    """Merges the clients' memory banks by greedy coreset selection.

    Args:
        settings: the run's.
        model: for the dimension and the fingerprint that banks must have.
        registry: the nodes that take part.
        workspace: the run directory where clients share it; "" where they do not.
        progress: who to tell how far the merge is.
        keep: called after the merge, to keep it before anything else can fail.
        books: where a private run writes down what it releases.

    Attributes:
        uploads: client -> all that it has sent, once checked.
        sent: client -> rows that it has sent.
        merged: bank name -> merge.
        done: rounds merged, of the `rounds` to do.
        growth: bank name -> rows that it grows by, where a finished run takes in new images.
        results: client -> its answer to the evaluate message.
        intake: who answered, at what cost, and who was left out.
        seconds: of the merges; `client_seconds`: client -> stage -> how long it took.
    """

    def __init__(
        self,
        settings: Settings,
        model: PatchCore,
        registry: NodeRegistry,
        workspace: str = "",
        progress: Stage = silent,
        keep: Callable[["FederatedPatchCore"], None] = lambda strategy: None,
        books: Books | None = None,
    ) -> None:
        self.settings, self.model, self.registry = settings, model, registry
        self.workspace, self.progress, self.keep = workspace, progress, keep
        self.books = books
        self.uploads: dict[int, Upload] = {}
        self.sent: dict[int, int] = {}
        self.merged: dict[str, MergedBank] = {}
        self.done = 0
        self.growth: dict[str, int] = {}
        self.results: dict[int, Results] = {}
        self.seconds = 0.0
        self.client_seconds: dict[int, dict[str, float]] = {}
        fingerprint = model.backbone.fingerprint
        self.intake = Intake(registry, settings.timeout, settings.min_clients, fingerprint)
        self._surveys: dict[int, Mapping[str, Survey]] = {}  # of this round
        self._allowances: dict[int, dict[str, int]] = {}  # of this round
        self._known: dict[int, dict[str, int]] = {}  # client -> rows of the banks that it has
        self._heard: dict[int, int] = {}  # client -> the last round of which its rows came
        self._merged_of: dict[str, set[int]] = {}  # bank name -> clients in its last merge
        self._lost: set[int] = set()  # clients that were started anew, and must be told all

    @property
    def rounds(self) -> int:
        """Rounds to do, the one that takes in new images included."""
        return self.settings.num_server_rounds + bool(self.growth)

    def look_for_growth(self, grid: Grid) -> None:
        """Ask what the clients hold now, and plan a round for what is more than was merged."""
        self._survey(grid, self.done, curves=False)
        for client, surveys in self._surveys.items():
            banks = self.uploads[client].banks if client in self.uploads else {}
            for name, survey in surveys.items():
                before = banks[name].holding.share if name in banks else 0
                more = max(0, survey.holding.share - before)
                self.growth[name] = self.growth.get(name, 0) + more
        self.growth = {name: rows for name, rows in self.growth.items() if rows}

    def configure_train(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Ask every node for its banks; nobody, where they are merged or complete already."""
        self._allowances = {}
        if server_round <= self.done:
            return []
        if self.settings.plan:
            self._survey(grid, server_round, curves=False)
            assert self.books  # a run with a plan is given them
            private = PrivateRound(self, grid, server_round, self.books)
            self.merged = private.make_banks(self.settings.plan)
            self._book(server_round)
            return []
        if server_round == 1 and not self._asks_first:
            return self.requests(MessageType.TRAIN, server_round)
        self._survey(grid, server_round, curves=True)
        self._allowances = self._allot(server_round)
        return self.requests(MessageType.TRAIN, server_round, allowances=self._allowances)

    @property
    def _asks_first(self) -> bool:
        """Whether clients tell their radius curves before the first rows are sent."""
        settings = self.settings
        return settings.merge_budget != "proportional" or settings.merge_protocol == "exact"

    def aggregate_train(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Merge what the clients sent, bank by bank.

        Raises:
            RoundFailed: fewer clients than min-clients sent banks that can be merged.
        """
        if server_round > self.done:
            self.intake.take(replies, self._accept_upload)
            self.intake.check_enough("sent a bank that can be merged")
            self._heard |= dict.fromkeys(self.intake.came, server_round)
            self._merge(server_round)
            done = self.settings.exact_in(server_round) and self._complete()
            self._book(self.settings.num_server_rounds if done else server_round)
        rows = sum(len(bank.features) for bank in self.merged.values())
        return self._merged_rows(), MetricRecord({"clients": len(self.uploads), "rows": rows})

    def _survey(self, grid: Grid, server_round: int, curves: bool) -> None:
        """Ask what the clients hold; with `curves`, also how many rows would cover how much."""
        self._surveys, self._lost = {}, set()
        messages = self.requests(MessageType.QUERY, server_round, curves=curves)
        replies = grid.send_and_receive(messages, timeout=self.settings.timeout)
        self.intake.take(replies, self._accept_prospect)
        if self._lost:
            came, self._lost = self.intake.came - self._lost, set()
            again = self.intake.came - came
            messages = self.requests(MessageType.QUERY, server_round, curves=curves, to=again)
            replies = grid.send_and_receive(messages, timeout=self.settings.timeout)
            self.intake.take(replies, self._accept_prospect)
            self.intake.came |= came
        if curves:
            known = {name: self._has(name) for name in self.merged}
            self._known |= dict.fromkeys(self._surveys, known)
        self.intake.check_enough("said what they hold")

    def _allot(self, server_round: int) -> dict[int, dict[str, int]]:
        """Client -> bank name -> rows that it may send in this round."""
        exact = self.settings.exact_in(server_round)
        budget: Budget = self.settings.merge_budget if server_round == 1 else "radius"
        allowances: dict[int, dict[str, int]] = {client: {} for client in self._surveys}
        for name in sorted({name for surveys in self._surveys.values() for name in surveys}):
            asked = {c: surveys[name] for c, surveys in self._surveys.items() if name in surveys}
            grow = self._size(name, server_round) - self._has(name)
            rows = max(0, round(self.settings.merge_oversample * grow))
            if exact:  # first a row of each, to begin with
                budget, rows = (
                    ("radius", self._step(name)) if self._has(name) else ("equal", len(asked))
                )
            for client, count in allot(asked, rows, budget).items():
                allowances[client][name] = count
        return allowances

    def _step(self, name: str) -> int:
        """Rows that the clients send together in an exact round, until the bank is complete."""
        rounds = self.settings.num_server_rounds
        size = self._size(name, rounds)
        return -(-round(self.settings.merge_oversample * size) // rounds) * (size > self._has(name))

    def _complete(self) -> bool:
        """Whether the merged banks have all the rows that they are to have."""
        rounds = self.settings.num_server_rounds
        return all(self._has(name) >= self._size(name, rounds) for name in self.merged)

    def _size(self, name: str, server_round: int) -> int:
        """Rows of a merged bank after a round at most: a part of the shares, then its growth."""
        if server_round > self.settings.num_server_rounds:
            return self._has(name) + self.growth.get(name, 0)
        part = server_round / self.settings.num_server_rounds
        if self.settings.exact_in(server_round):
            last = server_round == self.settings.num_server_rounds
            part = float(last or self._has(name) > 0)  # one row to begin with
        shares = {
            c: u.banks[name].holding.share for c, u in self.uploads.items() if name in u.banks
        }
        shares |= {c: s[name].holding.share for c, s in self._surveys.items() if name in s}
        return max(1, round(sum(shares.values()) * part))

    def _book(self, done: int) -> None:
        """Take the rounds so far for done, and keep what is merged."""
        self.set_merged_clients()
        self.done = done
        self.keep(self)

    def set_merged_clients(self) -> None:
        """Take the clients whose uploads are there for those of the last merge."""
        self._merged_of = {
            name: {c for c, upload in self.uploads.items() if name in upload.banks}
            for name in self.merged
        }

    def _has(self, name: str) -> int:
        return len(self.merged[name].features) if name in self.merged else 0

    def _merge(self, server_round: int) -> None:
        started = time.monotonic()
        exact = self.settings.exact_in(server_round)
        for name in sorted({name for upload in self.uploads.values() for name in upload.banks}):
            banks = {c: u.banks[name] for c, u in self.uploads.items() if name in u.banks}
            size = self._size(name, server_round)
            if exact and 0 < self._has(name) >= size:
                continue
            before = self.merged.get(name)
            if before and not banks.keys() <= self._merged_of.get(name, banks.keys()):
                before = replace(before, exact=0)  # a client's patches were not asked for before
            self.merged[name] = merge_banks(
                banks,
                self.settings.seed,
                None if exact else self.progress("merge"),
                size=size,
                before=before,
                told=self.intake.came & banks.keys() if exact else (),
                fill=not exact or server_round == self.settings.num_server_rounds,
            )
        self.seconds += time.monotonic() - started

    @property
    def frames(self) -> dict[str, Frame]:
        """Bank name -> the coordinates of those banks that do not lie in the features' own."""
        return {name: bank.frame for name, bank in self.merged.items() if bank.frame}

    def _merged_rows(self, known: Mapping[str, int] = {}) -> ArrayRecord:
        """The merged banks, but for the first rows of each that are known."""
        banks = {name: bank.features for name, bank in self.merged.items()}
        return pack_banks({name: rows[known.get(name, 0) :] for name, rows in banks.items()})

    def configure_evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """After the last round, broadcast the merged banks, also to clients that were left out."""
        if server_round < self.rounds:
            return []
        return self.requests(MessageType.EVALUATE, server_round)

    def aggregate_evaluate(
        self,
        server_round: int,
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Collect the clients' figures.

        Raises:
            RoundFailed: fewer clients than min-clients scored the merged bank.
        """
        if server_round < self.rounds:
            return None
        self.intake.take(replies, self._accept_results)
        self.results = dict(sorted(self.results.items()))  # sums round by their order
        self.intake.check_enough("scored the merged bank")
        return MetricRecord({"clients": len(self.results)})

    def summary(self) -> None:
        """Say what the round will do."""
        log.info("federated PatchCore over %d clients", len(self.registry.nodes))

    def thresholds(self) -> dict[str, float]:
        """Bank name -> image score above which the set share of the normal images lies."""
        rate = self.settings.evaluate_false_alarm_rate
        private = {
            name: threshold_of(bank.scores, rate)
            for name, bank in self.merged.items()
            if bank.scores
        }
        return private or {
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

    def requests(
        self,
        kind: str,
        server_round: int,
        *,
        curves: bool = False,
        allowances: Mapping[int, Mapping[str, int]] | None = None,
        to: Collection[int] | None = None,
        asks: Mapping[str, Ask] | None = None,
    ) -> list[Message]:
        """Requests under a new ticket: to all nodes, or to those of some clients.

        Args:
            kind: of the messages; an evaluation carries the merged banks, a query for curves what
                the client does not know of them.
            server_round: its number.
            curves: whether a query asks for them.
            allowances: client -> rows that it may send; others are not asked.
            to: clients; None for all.
            asks: bank name -> what a query asks for private sums of.
        """
        stage = "banks" if kind == MessageType.TRAIN else kind
        stage = ("curves" if curves else "counts") if kind == MessageType.QUERY else stage
        stage = "sums" if asks else stage
        asked = pack_asks(asks) if asks else RecordDict()
        frames = pack_frames(self.frames) if kind == MessageType.EVALUATE else RecordDict()
        ticket = pack_ticket(self.intake.open(server_round, stage))
        config = ConfigRecord({**self.settings.flat(), "workspace": self.workspace})
        to = allowances.keys() if allowances is not None else to
        requests = {}
        for node in self.registry.nodes:
            client = self.intake.numbers.get(node)
            if to is not None and client not in to:
                continue
            known = self._known.get(client, {}) if curves and client is not None else {}
            terms = self._terms(server_round, curves, client, known)
            request = RecordDict({CONFIG: config, TICKET: ticket, ROUND: terms, **asked, **frames})
            if self.merged and (curves or kind == MessageType.EVALUATE):
                request[BANKS] = self._merged_rows(known)
            if allowances is not None and client is not None:
                request[ALLOWANCE] = pack_allowance(allowances[client])
            requests[node] = request
        self.intake.sending(requests, None if to is None else list(to))
        return [Message(each, node, kind) for node, each in requests.items()]

    def _terms(
        self, server_round: int, curves: bool, client: int | None, known: Mapping[str, int]
    ) -> ConfigRecord:
        exact = curves and self.settings.exact_in(server_round)
        heard = self._heard.get(client, 0) if client is not None else 0
        step = {name: self._step(name) for name in self.merged} if exact else {}
        return pack_terms(Terms(server_round, curves, heard, known, step))

    def _accept_prospect(self, content: RecordDict) -> None:
        prospect = unpack_prospect(content)
        client = prospect.sender.client
        self.intake.check_sender(prospect.sender)
        if prospect.lost and self._known.get(client):
            del self._known[client]
            self._lost.add(client)
            return
        if not prospect.surveys:
            raise BankRefused("it holds no bank")
        for survey in prospect.surveys.values():
            check_survey(survey)
        self._surveys[client] = prospect.surveys
        self.add_seconds(prospect.sender)
        if self.settings.plan:  # of which no rows will come
            nothing = np.empty((0, self.model.backbone.get_feature_dim()), np.float32)
            banks = {
                name: ClientBank(nothing, math.inf, math.inf, survey.holding)
                for name, survey in prospect.surveys.items()
            }
            self.uploads[client] = Upload(prospect.sender, banks)
            self.sent[client] = 0

    def _accept_upload(self, content: RecordDict) -> None:
        settings, dim = self.settings, self.model.backbone.get_feature_dim()
        check_size(content, settings.merge_max_rows, settings.merge_max_mb * 2**20)
        upload = unpack_upload(content, settings.coding, dim)
        client = upload.sender.client
        self.intake.check_sender(upload.sender)
        if not upload.banks:
            raise BankRefused("it sent no bank")
        for name, bank in upload.banks.items():
            check_bank(bank, dim)
            self._check_allowance(client, name, len(bank.features))
        before = self.uploads[client].banks if client in self.uploads else {}
        joined = {name: join_banks(before.get(name), bank) for name, bank in upload.banks.items()}
        self.uploads[client] = Upload(upload.sender, {**before, **joined})
        rows = sum(len(bank.features) for bank in upload.banks.values())
        self.sent[client] = self.sent.get(client, 0) + rows
        self.add_seconds(upload.sender)

    def _check_allowance(self, client: int, name: str, rows: int) -> None:
        if not self._allowances:
            return
        most = self._allowances[client].get(name, 0)
        if rows > most:
            raise BankRefused(f"it sent {rows} rows of {name}, {most} were asked for")

    def _accept_results(self, content: RecordDict) -> None:
        results = unpack_results(content)
        self.results[results["client"]] = results

    def add_seconds(self, sender: Sender) -> None:
        """Book how long a client took."""
        seconds = self.client_seconds.setdefault(sender.client, {})
        for stage, took in sender.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
