"""The coreset protocol: clients send greedy coresets, the server merges them by greedy selection.

In each round after the first, clients send what the merged banks do not cover yet, and the banks
grow by an equal part of the clients' shares.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from fl.server.exchanges import Curves, ask_curves, ask_holdings, ask_rows
from fl.server.federation import Federation
from fl.server.protocols.base import Protocol, register
from fl.server.state import ServerState
from src.federated.allocation import allocate_quotas
from src.federated.merge import merge_coresets
from src.federated.screening import accept_all

Sizes = Callable[[Mapping[str, int]], Mapping[str, int]]  # clients' shares -> rows of the banks


@register("coreset")
class CoresetProtocol(Protocol):
    """Rounds of coresets."""

    def run_round(self, federation: Federation, state: ServerState) -> ServerState:
        """Grow the merged banks by an equal part of the clients' shares."""
        part = (state.round + 1) / self.settings.num_server_rounds
        proportional = state.round == 0 and self.settings.merge_budget == "proportional"
        return coreset_round(
            federation,
            state,
            lambda shares: {name: max(1, round(rows * part)) for name, rows in shares.items()},
            ask_first=not proportional,
        )

    def merge_new_images(self, federation: Federation, state: ServerState) -> ServerState:
        """Grow the merged banks by the shares that clients have gained."""
        return merge_new_images(federation, state)


def coreset_round(
    federation: Federation, state: ServerState, sizes: Sizes, *, ask_first: bool = True
) -> ServerState:
    """One round: radius curves, quotas, rows, merge.

    Args:
        federation: the clients.
        state: before the round.
        sizes: the clients' shares by bank -> rows of the merged banks after the round.
        ask_first: ask for radius curves, which decide who sends how many rows; otherwise clients
            send in proportion to their patches.
    """
    curves: Curves = {}
    quotas = None
    if ask_first:
        curves, state = ask_curves(federation, state)
        oversample, now = federation.settings.merge_oversample, state.bank_sizes
        targets = sizes(state.shares(curves))
        budgets = {n: round(oversample * (rows - now.get(n, 0))) for n, rows in targets.items()}
        quotas = allocate_quotas(curves, {n: max(0, rows) for n, rows in budgets.items()})
    state = state.with_uploads(ask_rows(federation, state, quotas), state.round + 1)
    started, targets = time.monotonic(), sizes(state.shares(curves))
    banks = {
        name: merge_coresets(
            accept_all(sent),
            targets[name],
            onto=state.banks.get(name),
            seed=federation.settings.seed,
            progress=federation.progress("merge"),
        )
        for name, sent in state.banks_by_name().items()
    }
    return state.after_round(banks, federation.traffic, time.monotonic() - started)


def merge_new_images(federation: Federation, state: ServerState) -> ServerState:
    """Ask what the clients hold now; if it is more than was merged, merge it in one round."""
    growth: dict[str, int] = {}
    for client, holdings in ask_holdings(federation, state.round).items():
        known = state.clients[client].stats if client in state.clients else {}
        for name, stats in holdings.items():
            before = known[name].share if name in known else 0
            growth[name] = growth.get(name, 0) + max(0, stats.share - before)
    if not any(growth.values()):
        return replace(state, traffic=federation.traffic)

    def sizes(shares: Mapping[str, int]) -> dict[str, int]:
        return {name: state.bank_sizes.get(name, 0) + growth.get(name, 0) for name in shares}

    return coreset_round(federation, state, sizes)
