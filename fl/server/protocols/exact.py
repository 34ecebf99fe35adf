"""The exact protocol: the merged bank is the one that greedy selection over all patches makes.

In each round clients send the patches farthest from the merged bank, and bound the distance of all
others; the server picks as long as no patch elsewhere can be farther (`src.federated.exact`).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil

from fl.config import Settings
from fl.server.exchanges import ask_curves, ask_rows
from fl.server.federation import Federation
from fl.server.protocols.base import Protocol, register
from fl.server.protocols.coreset import merge_new_images
from fl.server.state import ServerState
from src.federated.allocation import allocate_quotas
from src.federated.codec import is_lossy
from src.federated.merge import merge_exact
from src.federated.screening import accept_all
from src.federated.types import MergedBank


@register("exact")
class ExactProtocol(Protocol):
    """Rounds of farthest patches, until the banks are complete or the rounds are used up."""

    @classmethod
    def problems(cls, settings: Settings) -> Iterable[str]:
        """Rows must arrive unchanged, and one round is not enough."""
        if is_lossy(settings.merge_encoding):
            yield (
                "merge.protocol = exact: rows must arrive unchanged; set merge.encoding = float16 "
                "or float32"
            )
        if settings.num_server_rounds == 1:
            yield "merge.protocol = exact: it takes rounds; set num-server-rounds, for example 64"

    def run_round(self, federation: Federation, state: ServerState) -> ServerState:
        """Pick the farthest patches of all; the last round completes the banks.

        The rounds are over as soon as the banks have all their rows.
        """
        rounds = self.settings.num_server_rounds
        last = state.round + 1 == rounds
        merged_before = state.banks_by_name()
        curves, state = ask_curves(
            federation, state, "query.farthest", self._steps(state, state.shares())
        )
        quotas = allocate_quotas(curves, self._steps(state, state.shares(curves)))
        uploads = ask_rows(federation, state, quotas)
        state = state.with_uploads(uploads, state.round + 1)
        started, banks, shares = time.monotonic(), {}, state.shares(curves)
        for name, sent in state.banks_by_name().items():
            bank = state.banks.get(name)
            size = shares[name] if last or bank else 1  # one row to begin with
            if bank and len(bank.features) >= size:
                banks[name] = bank
                continue
            if bank and not sent.keys() <= merged_before[name].keys():
                bank = _without_exact_rows(bank)  # a new client's patches were never asked for
            banks[name] = merge_exact(
                accept_all(sent),
                size,
                onto=bank,
                reporting_clients=uploads.keys() & sent.keys(),
                fill=last,
                seed=self.settings.seed,
            )
        state = state.after_round(banks, federation.traffic, time.monotonic() - started)
        full = all(rows >= shares[name] for name, rows in state.bank_sizes.items())
        return replace(state, round=rounds) if full else state

    def _steps(self, state: ServerState, shares: Mapping[str, int]) -> dict[str, int]:
        """Bank name -> rows that all clients together send in a round; 0 for a complete bank."""
        rounds, oversample = self.settings.num_server_rounds, self.settings.merge_oversample
        return {
            name: ceil(round(oversample * shares[name]) / rounds) * (shares[name] > size)
            for name, size in state.bank_sizes.items()
        }

    def merge_new_images(self, federation: Federation, state: ServerState) -> ServerState:
        """Grow the merged banks by the shares that clients have gained, in a round of coresets."""
        return merge_new_images(federation, state)


def _without_exact_rows(bank: MergedBank) -> MergedBank:
    assert bank.certificate
    return replace(bank, certificate=replace(bank.certificate, exact_rows=0))
