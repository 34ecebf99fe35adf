"""How a private mechanism runs: ask every image, add up, add noise once, go on from what is public.

A mechanism is a generator of steps. It yields what it asks of the images and how much of its
budget that may cost; it is given the sums with noise, from which everything after is computed; it
returns a bank. So it reads as its pseudocode, never sees a sum without noise, and runs alike in one
process, in messages and under secure aggregation: only `Asking` differs.
"""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.special import ndtri

from src.privacy.contributions import Ask, added, summed
from src.privacy.ledger import Adjacency, Release, Unit


@dataclass(frozen=True)
class Step:
    """One question to all images.

    Attributes:
        name: of the step.
        what: what is released, in words.
        ask: the question, public.
        fractions: for each of its blocks the part of the mechanism's μ² that it costs.
    """

    name: str
    what: str
    ask: Ask
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """The sums over all images with their noise, and its standard deviation, block by block."""

    sums: tuple[np.ndarray, ...]
    sigmas: tuple[float, ...]


@dataclass(frozen=True)
class PrivateBank:
    """What a mechanism makes: a bank, and the coordinates in which distances to it are taken.

    Attributes:
        rows: [K, d].
        origin, basis: [D] and [D, d]; a patch x of unit length lies at (x − origin) @ basis. None
            where rows are patches themselves, to be installed with set_memory_bank.
    """

    rows: np.ndarray
    origin: np.ndarray | None = None
    basis: np.ndarray | None = None

    def squared_distances(self, patches: np.ndarray) -> np.ndarray:
        """Of unit patches [P, D] to the closest row: [P] float64."""
        at = patches if self.basis is None else (patches - self.origin) @ self.basis
        squares = (self.rows * self.rows).sum(1) - 2 * at @ self.rows.T
        return np.maximum(0, squares.min(1) + (at * at).sum(1))


Mechanism = Generator[Step, Answer, PrivateBank]
Asking = Callable[[Ask], tuple[np.ndarray, ...]]  # the sums over all clients, without noise
Noise = Callable[[int], np.ndarray]  # so many independent standard normal numbers


@dataclass(frozen=True)
class Terms:
    """On what terms a mechanism runs.

    Attributes:
        mu: what the mechanism may cost in all.
        adjacency, unit: of which change.
        bank: whose images it reads.
        round: the round's number.
    """

    mu: float
    adjacency: Adjacency = "null"
    unit: Unit = "image"
    bank: str = "shared"
    round: int = 1

    def releases(self, step: Step) -> list[Release]:
        """What a step releases, with the noise that it must have."""
        found = []
        for block, fraction in zip(step.ask.blocks, step.fractions, strict=True):
            sensitivity = block.sensitivity(self.adjacency)
            sigma = sensitivity / (self.mu * sqrt(fraction))
            about = (f"{step.name}: {block.name}", self.round, step.what)
            found.append(Release(*about, sensitivity, sigma, self.bank, self.unit, self.adjacency))
        return found


def run_mechanism(
    mechanism: Mechanism,
    asking: Asking,
    terms: Terms,
    noise: Noise,
    note: Callable[[Sequence[Release]], None],
) -> PrivateBank:
    """Run a mechanism to its bank.

    Args:
        mechanism: fresh.
        asking: how the sums over all clients are had.
        terms: what it may cost.
        noise: `system_noise`, but in a simulation that says so.
        note: told of a step's releases before the step is asked; raises to refuse them.
    """
    answer: Answer | None = None
    try:
        while True:
            step = mechanism.send(answer)  # type: ignore[arg-type]  # None starts a generator
            releases = terms.releases(step)
            note(releases)
            sums = asking(step.ask)
            for total, block in zip(sums, step.ask.blocks, strict=True):
                _check(total, block.size, block.name)
            noisy = [
                total + release.sigma * noise(len(total))
                for total, release in zip(sums, releases, strict=True)
            ]
            answer = Answer(tuple(noisy), tuple(release.sigma for release in releases))
    except StopIteration as ended:
        return ended.value


def in_process(clients: Iterable[Iterable[np.ndarray]]) -> Asking:
    """Asking records [P, D] that are all here, client by client."""
    return lambda ask: added(summed(ask, client) for client in clients)


def system_noise(count: int) -> np.ndarray:
    """Standard normal numbers from the system's own randomness: nobody can draw them again.

    By the inverse of the distribution function at the middles of 2^52 equal parts of (0, 1); the
    tails beyond ± 8.2, which are left out, have a probability of 2e-16 a number.
    """
    drawn = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(12)
    return ndtri((drawn + 0.5) * 2.0**-52)


def seeded_noise(seed: int) -> Noise:
    """Noise that the seed gives back: for tests and simulations, which must say so."""
    return np.random.default_rng(seed).standard_normal


def _check(total: np.ndarray, size: int, name: str) -> None:
    if total.shape != (size,) or not np.isfinite(total).all():
        raise ValueError(f"a sum of {name} has shape {total.shape} or values that are not finite")
