"""The private protocol: a mechanism's queries, answered with sums, make each bank.

The clients' sums reach this process without noise and leave it only with noise: whoever runs the
server is trusted with them, and nobody else. No step looks at a single client's sums except to
check and add them, so that secure aggregation can take its place.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fl.config import ConfigError, Settings
from fl.server.checkpoint import ROUND
from fl.server.exchanges import ask_holdings
from fl.server.federation import Federation, RoundFailed
from fl.server.ledger_store import LedgerStore
from fl.server.protocols.base import Protocol, register
from fl.server.state import ClientRecord, ServerState
from fl.setup.public import public_patches
from fl.wire.envelope import check_size
from fl.wire.sums import pack_queries, unpack_sums
from src.federated.bank_set import BankSet
from src.federated.types import BankRefused, MergedBank
from src.models.feature_transform import FeatureTransform
from src.privacy.ledger import guarantee
from src.privacy.noise import Noise, seeded_noise, system_noise
from src.privacy.queries import SumQuery, add_sums
from src.privacy.runner import PrivateBank, Sums, planned_releases, run_mechanisms
from src.storage.run_metrics import PrivacyReport, ReleaseInfo

TRUST = (
    "The server adds the noise: it sees the clients' sums without noise, and is trusted with them. "
    "Test images and their metrics are not protected. In a simulation, neither are the banks that "
    "the private bank is compared with."
)
NOISE = {
    "system": "from the system's own randomness",
    "seed": "from the seed, so that anybody can remove it: for simulations only",
}

log = logging.getLogger("flwr")


@register("private")
class PrivateProtocol(Protocol):
    """One round in which a mechanism asks as often as it needs.

    Raises:
        ConfigError: the ledger cannot be read, or its budget is spent.
    """

    def __init__(self, settings: Settings, out: Path) -> None:
        super().__init__(settings, out)
        assert settings.mechanism
        self.mechanism = settings.mechanism
        try:
            self.store = LedgerStore(out, settings.privacy_ledger, settings.resume)
            if not self.store.recorded:
                self.store.remaining_budget(self.mechanism.budget(1))  # of any number of records
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def problems(cls, settings: Settings) -> Iterable[str]:
        """A mechanism takes one round."""
        if settings.privacy_mechanism == "none":
            yield "merge.protocol = private: set privacy.mechanism instead, which brings it"
        if settings.num_server_rounds > 1 or settings.merge_protocol != "coreset":
            yield (
                f"privacy.mechanism = {settings.privacy_mechanism}: it runs in a single round; set "
                "num-server-rounds = 1 and merge.protocol = coreset"
            )

    @property
    def has_unfinished_round(self) -> bool:
        """Whether noisy sums of an interrupted round are kept: asking again would cost again."""
        return bool(self.store.recorded) and not (self.out / ROUND).exists()

    def run_round(self, federation: Federation, state: ServerState) -> ServerState:
        """Run the mechanism of each bank to its end.

        Raises:
            ConfigError: the budget does not suit so many records, or public images are missing.
            RoundFailed: too few clients came through.
        """
        holdings = ask_holdings(federation, state.round + 1)
        clients = {client: ClientRecord(stats) for client, stats in holdings.items()}
        state = replace(state, clients=clients)
        try:
            banks = self._run_mechanisms(federation, state)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        merged = BankSet({name: _merged_bank(bank) for name, bank in banks.items()})
        return state.after_round(merged, federation.traffic, merge_seconds=0.0)

    def privacy_report(self) -> PrivacyReport:
        """What the ledger guarantees to whom."""
        ledger = self.store.ledger
        if ledger is None:  # of a finished run that is evaluated again
            raise ConfigError(f"{self.store.path} is missing: it says what the run has released")
        budget = ledger.budget
        return PrivacyReport(
            mechanism=self.settings.privacy_mechanism,
            guarantee=guarantee(ledger),
            unit=budget.unit,
            adjacency=budget.adjacency,
            epsilon=ledger.epsilon,
            delta=budget.delta,
            budget=budget.epsilon,
            records=budget.records,
            noise=NOISE[self.settings.privacy_noise],
            trust=TRUST,
            caution=budget.warning or None,
            releases=[
                ReleaseInfo(name=r.name, bank=r.bank, what=r.what, mu=r.mu) for r in ledger.releases
            ],
        )

    def _run_mechanisms(self, federation: Federation, state: ServerState) -> dict[str, PrivateBank]:
        settings, model, store = self.settings, federation.model, self.store
        images = _images(state)
        names = sorted(images)
        records = len(state.clients) if self.mechanism.unit == "client" else sum(images.values())
        dim = model.backbone.get_feature_dim()
        budget = self.mechanism.budget(records)
        mu = store.begin(f"{self.mechanism}, {names}", budget)
        params = self.mechanism.params(mu, len(names), settings.privacy_noise == "seed")
        public = {name: public_patches(settings, model, name) for name in names}
        fresh = {name: self.mechanism.start(dim, public[name]) for name in names}
        store.open(budget, planned_releases(fresh, params))
        if budget.warning:
            log.warning(budget.warning)
        return run_mechanisms(
            {name: self.mechanism.start(dim, public[name]) for name in names},
            lambda queries: self._ask(federation, state, queries),
            params,
            self._noise(),
            store.reserve,
            recorded=store.recorded,
            record=store.record,
        )

    def _ask(
        self, federation: Federation, state: ServerState, queries: Mapping[str, SumQuery]
    ) -> dict[str, Sums]:
        """Sums over the records of all clients, added in the order of the clients' numbers."""
        request, settings = pack_queries(queries), self.settings

        def parse(client: int, content: RecordDict) -> dict[str, Sums]:
            check_size(content, settings.merge_max_rows, settings.merge_max_mb * 2**20)
            sums = unpack_sums(content, queries)
            self._check_records(state.clients.get(client, ClientRecord({})), sums)
            return sums

        answers = federation.ask(
            "query.sums",
            lambda client: request,
            parse,
            server_round=state.round + 1,
            purpose="sent sums",
        )
        totals = {}
        for name in queries:
            parts = [sums[name] for sums in answers.values() if name in sums]
            if not parts:
                raise RoundFailed(f"no client that holds images of {name} sent sums")
            vectors = add_sums(part.vectors for part in parts)
            totals[name] = Sums(vectors, sum(part.records for part in parts))
        return totals

    def _check_records(self, record: ClientRecord, sums: Mapping[str, Sums]) -> None:
        """Refuse sums over more or fewer records than the client holds."""
        for name, each in sums.items():
            images = record.stats[name].images if name in record.stats else 0
            least = images if self.settings.privacy_unit == "image" else 1
            most = 1 if self.settings.privacy_unit == "client" else images
            if not least <= each.records <= most:
                raise BankRefused(
                    f"its sums of {name} are of {each.records} records; it said that it holds "
                    f"{images} images"
                )

    def _noise(self) -> Noise:
        """The system's randomness, or a seed's, which continues after the recorded noise."""
        if self.settings.privacy_noise == "system":
            return system_noise
        noise = seeded_noise(self.settings.seed)
        exchanges = (replies.values() for replies in self.store.recorded)
        noise(sum(v.size for replies in exchanges for reply in replies for v in reply.vectors))
        return noise


def _images(state: ServerState) -> dict[str, int]:
    """Bank name -> training images of all clients."""
    images: dict[str, int] = {}
    for record in state.clients.values():
        for name, stats in record.stats.items():
            images[name] = images.get(name, 0) + stats.images
    return images


def _merged_bank(bank: PrivateBank) -> MergedBank:
    rows = bank.rows.astype(np.float32)
    return MergedBank(rows, FeatureTransform(bank.origin, bank.basis), log_scores=bank.log_scores)
