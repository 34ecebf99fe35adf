"""Screening: what the server drops from the clients' banks before it merges them.

A screening is a function from {client: bank} to {client: bank}. A defence against poisoned banks
is one more such function in a file of its own.
"""

from collections.abc import Callable, Mapping

from src.federated.types import ClientBank

Screening = Callable[[Mapping[int, ClientBank]], Mapping[int, ClientBank]]


def accept_all(banks: Mapping[int, ClientBank]) -> Mapping[int, ClientBank]:
    """Merge every bank that passed the checks of `validation`."""
    return banks
