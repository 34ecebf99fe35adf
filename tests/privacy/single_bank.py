"""Runs a mechanism of one bank on records in this process."""

from collections.abc import Callable, Sequence

from src.privacy.noise import Noise
from src.privacy.queries import Record, SumQuery, add_sums, sum_records
from src.privacy.runner import Mechanism, PrivacyParams, PrivateBank, Sums, run_mechanisms

Ask = Callable[[SumQuery], Sums]


def ask_clients(*clients: Sequence[Record]) -> Ask:
    """Asks clients that hold these records."""
    count = sum(map(len, clients))
    return lambda query: Sums(add_sums(sum_records(query, client) for client in clients), count)


def run_bank(
    mechanism: Mechanism,
    ask: Ask,
    params: PrivacyParams,
    noise: Noise,
    reserve=list,
    recorded=(),
    record=lambda reply: None,
) -> PrivateBank:
    banks = run_mechanisms(
        {"bank": mechanism},
        lambda queries: {"bank": ask(queries["bank"])},
        params,
        noise,
        reserve,
        recorded=[{"bank": reply} for reply in recorded],
        record=lambda replies: record(replies["bank"]),
    )
    return banks["bank"]
