"""What the server knows after a round, as a frozen value; a checkpoint is this value on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fl.server.traffic import Traffic
from fl.wire.results import Results
from src.federated.bank_set import BankSet
from src.federated.merge import join_banks
from src.federated.types import ClientBank, ClientStats, MergedBank, RadiusCurve


@dataclass(frozen=True)
class ClientRecord:
    """What the server knows of a client that takes part."""

    stats: Mapping[str, ClientStats]  # bank name -> how much it holds
    # bank name -> all rows it has sent; empty in a private run
    banks: Mapping[str, ClientBank] = field(default_factory=dict)
    sent_rows: int = 0  # number of rows it has sent
    acked_round: int = 0  # last round in which its rows arrived; 0 for none
    # bank name -> rows of the merged bank that it has
    synced_rows: Mapping[str, int] = field(default_factory=dict)

    def with_upload(self, upload: Mapping[str, ClientBank], server_round: int) -> "ClientRecord":
        """The record with rows that arrived in a round."""
        joined = {name: join_banks(self.banks.get(name), bank) for name, bank in upload.items()}
        banks = {**self.banks, **joined}
        return replace(
            self,
            stats={name: bank.stats for name, bank in banks.items()},
            banks=banks,
            sent_rows=self.sent_rows + sum(len(bank.features) for bank in upload.values()),
            acked_round=server_round,
        )


@dataclass(frozen=True)
class ServerState:
    """The state of a run between two rounds."""

    round: int = 0  # number of the last round
    banks: BankSet[MergedBank] = field(default_factory=BankSet)  # the merged banks
    # client -> its record, for clients that have taken part
    clients: Mapping[int, ClientRecord] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)  # cost of the exchanges so far
    merge_seconds: float = 0.0  # seconds spent merging
    # client -> its answer to the evaluation
    results: Mapping[int, Results] = field(default_factory=dict)

    def banks_by_name(self) -> dict[str, dict[int, ClientBank]]:
        """Bank name -> client -> all rows it has sent."""
        banks: dict[str, dict[int, ClientBank]] = {}
        for client, record in self.clients.items():
            for name, bank in record.banks.items():
                banks.setdefault(name, {})[client] = bank
        return dict(sorted(banks.items()))

    def shares(self, curves: Mapping[int, Mapping[str, RadiusCurve]] = {}) -> dict[str, int]:
        """Bank name -> the shares of all clients together: those that sent rows, or a curve."""
        stats = {(n, c): b.stats for c, r in self.clients.items() for n, b in r.banks.items()}
        stats |= {(n, c): curve.stats for c, of in curves.items() for n, curve in of.items()}
        totals: dict[str, int] = {}
        for (name, _), each in stats.items():
            totals[name] = totals.get(name, 0) + each.share
        return totals

    @property
    def bank_sizes(self) -> dict[str, int]:
        """Bank name -> rows of the merged bank."""
        return {name: len(bank.features) for name, bank in self.banks.items()}

    def with_uploads(
        self, uploads: Mapping[int, Mapping[str, ClientBank]], server_round: int
    ) -> "ServerState":
        """The state with rows that clients sent in a round, before they are merged."""
        clients = {
            client: self.clients.get(client, ClientRecord({})).with_upload(upload, server_round)
            for client, upload in uploads.items()
        }
        return replace(self, clients=dict(sorted({**self.clients, **clients}.items())))

    def after_round(
        self, banks: Mapping[str, MergedBank], traffic: Traffic, merge_seconds: float
    ) -> "ServerState":
        """The state at the end of a round."""
        return replace(
            self,
            round=self.round + 1,
            banks=BankSet(banks),
            traffic=traffic,
            merge_seconds=self.merge_seconds + merge_seconds,
        )

    def with_synced_rows(self, clients: Mapping[int, object]) -> "ServerState":
        """The state after these clients have received all merged rows."""
        synced = {
            client: replace(self.clients.get(client, ClientRecord({})), synced_rows=self.bank_sizes)
            for client in clients
        }
        return replace(self, clients={**self.clients, **synced})
