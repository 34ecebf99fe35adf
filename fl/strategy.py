"""The strategy: rounds of federated PatchCore, as Flower's Strategy hooks.

Train: every client sends banks. Aggregate: check them, merge them by greedy selection. In a later
round the clients send what the merged banks do not cover yet, and these grow. Evaluate, at the end:
the merged banks go to every client, which installs them and sends back figures.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl.config import Settings
from fl.exchange import Roster
from fl.intake import Intake
from fl.messages import (
    ALLOWANCE,
    BANKS,
    CONFIG,
    ROUND,
    TICKET,
    Results,
    Sender,
    Upload,
    check_size,
    pack_allowance,
    pack_banks,
    pack_terms,
    pack_ticket,
    unpack_prospect,
    unpack_results,
    unpack_upload,
)
from src.banks import BankRefused, Calibration, Survey
from src.budget import allot
from src.client import Stage, pooled_threshold, silent
from src.merge import MergedBank, check_bank, check_survey, join_banks, merge_banks
from src.models import PatchCore

log = logging.getLogger(__name__)


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
        roster: Roster,
        workspace: str = "",
        progress: Stage = silent,
        keep: Callable[["FederatedPatchCore"], None] = lambda strategy: None,
    ) -> None:
        self.settings, self.model, self.roster = settings, model, roster
        self.workspace, self.progress, self.keep = workspace, progress, keep
        self.uploads: dict[int, Upload] = {}
        self.sent: dict[int, int] = {}
        self.merged: dict[str, MergedBank] = {}
        self.done = 0
        self.growth: dict[str, int] = {}
        self.results: dict[int, Results] = {}
        self.seconds = 0.0
        self.client_seconds: dict[int, dict[str, float]] = {}
        fingerprint = model.backbone.fingerprint
        self.intake = Intake(roster, settings.timeout, settings.min_clients, fingerprint)
        self._surveys: dict[int, Mapping[str, Survey]] = {}  # of this round
        self._allowances: dict[int, dict[str, int]] = {}  # of this round

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
        """Ask every node for its banks; nobody, where a run is resumed that has merged them."""
        self._allowances = {}
        if server_round <= self.done:
            return []
        if server_round == 1 and self.settings.merge_budget == "proportional":
            return self._messages(MessageType.TRAIN, server_round)
        self._survey(grid, server_round, curves=True)
        self._allowances = self._allot(server_round)
        return self._messages(MessageType.TRAIN, server_round, allowances=self._allowances)

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
            self._merge(server_round)
            self.done = server_round
            self.keep(self)
        rows = sum(len(bank.features) for bank in self.merged.values())
        return self._merged_rows(), MetricRecord({"clients": len(self.uploads), "rows": rows})

    def _survey(self, grid: Grid, server_round: int, curves: bool) -> None:
        """Ask what the clients hold; with `curves`, also how many rows would cover how much."""
        content = {BANKS: self._merged_rows()} if curves and self.merged else {}
        messages = self._messages(MessageType.QUERY, server_round, content, curves=curves)
        self._surveys = {}
        replies = grid.send_and_receive(messages, timeout=self.settings.timeout)
        self.intake.take(replies, self._accept_prospect)
        self.intake.check_enough("said what they hold")

    def _allot(self, server_round: int) -> dict[int, dict[str, int]]:
        """Client -> bank name -> rows that it may send in this round."""
        budget = self.settings.merge_budget if server_round == 1 else "radius"
        allowances: dict[int, dict[str, int]] = {client: {} for client in self._surveys}
        for name in sorted({name for surveys in self._surveys.values() for name in surveys}):
            asked = {c: surveys[name] for c, surveys in self._surveys.items() if name in surveys}
            grow = self._size(name, server_round) - self._has(name)
            rows = max(0, round(self.settings.merge_oversample * grow))
            for client, count in allot(asked, rows, budget).items():
                allowances[client][name] = count
        return allowances

    def _size(self, name: str, server_round: int) -> int:
        """Rows of a merged bank after a round: an even part of the shares each, then its growth."""
        if server_round > self.settings.num_server_rounds:
            return self._has(name) + self.growth.get(name, 0)
        shares = {
            c: u.banks[name].holding.share for c, u in self.uploads.items() if name in u.banks
        }
        shares |= {c: s[name].holding.share for c, s in self._surveys.items() if name in s}
        return max(1, round(sum(shares.values()) * server_round / self.settings.num_server_rounds))

    def _has(self, name: str) -> int:
        return len(self.merged[name].features) if name in self.merged else 0

    def _merge(self, server_round: int) -> None:
        started = time.monotonic()
        for name in sorted({name for upload in self.uploads.values() for name in upload.banks}):
            banks = {c: u.banks[name] for c, u in self.uploads.items() if name in u.banks}
            self.merged[name] = merge_banks(
                banks,
                self.settings.seed,
                self.progress("merge"),
                size=self._size(name, server_round),
                before=self.merged.get(name),
            )
        self.seconds += time.monotonic() - started

    def _merged_rows(self) -> ArrayRecord:
        return pack_banks({name: bank.features for name, bank in self.merged.items()})

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
        return self._messages(MessageType.EVALUATE, server_round, {BANKS: arrays})

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

    def _messages(
        self,
        kind: str,
        server_round: int,
        content: Mapping[str, ArrayRecord] = {},
        *,
        curves: bool = False,
        allowances: Mapping[int, Mapping[str, int]] | None = None,
    ) -> list[Message]:
        """Requests to the nodes, under a new ticket: to all, or to those with an allowance."""
        stage = "banks" if kind == MessageType.TRAIN else kind
        stage = ("curves" if curves else "counts") if kind == MessageType.QUERY else stage
        ticket = pack_ticket(self.intake.open(server_round, stage))
        config = ConfigRecord({**self.settings.flat(), "workspace": self.workspace})
        terms = pack_terms({"number": server_round, "curves": curves})
        records = {CONFIG: config, TICKET: ticket, ROUND: terms}
        requests = {node: RecordDict({**records, **content}) for node in self.roster.nodes}
        if allowances is not None:
            numbers = self.intake.numbers
            requests = {n: each for n, each in requests.items() if numbers.get(n) in allowances}
            for node, each in requests.items():
                each[ALLOWANCE] = pack_allowance(allowances[numbers[node]])
        self.intake.sending(requests, None if allowances is None else list(allowances))
        return [Message(each, node, kind) for node, each in requests.items()]

    def _accept_prospect(self, content: RecordDict) -> None:
        prospect = unpack_prospect(content)
        self.intake.check_sender(prospect.sender)
        if not prospect.surveys:
            raise BankRefused("it holds no bank")
        for survey in prospect.surveys.values():
            check_survey(survey)
        self._surveys[prospect.sender.client] = prospect.surveys
        self._add_seconds(prospect.sender)

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
        self._add_seconds(upload.sender)

    def _check_allowance(self, client: int, name: str, rows: int) -> None:
        if not self._allowances:
            return
        most = self._allowances[client].get(name, 0)
        if rows > most:
            raise BankRefused(f"it sent {rows} rows of {name}, {most} were asked for")

    def _accept_results(self, content: RecordDict) -> None:
        results = unpack_results(content)
        self.results[results["client"]] = results

    def _add_seconds(self, sender: Sender) -> None:
        seconds = self.client_seconds.setdefault(sender.client, {})
        for stage, took in sender.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
