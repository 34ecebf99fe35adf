"""How a private mechanism runs: ask every image, add up, add noise once, go on from what is public.

A mechanism is a generator of steps. It yields what it asks of the images and how much of its
budget that may cost; it is given the sums with noise, from which everything after is computed; it
returns a bank. So it reads as its pseudocode, never sees a sum without noise, and runs alike in one
process, in messages and under secure aggregation: only `Asking` differs.
"""

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from math import floor, log2, sqrt

import numpy as np
from scipy.special import ndtri

from src.privacy.contributions import Ask, added, summed
from src.privacy.ledger import Adjacency, Release, Unit

# Sums are released on a grid of some σ / 2^20: the last bits of floating-point noise, by which sums
# could be told apart (Mironov, 2012), are not among what is released.
GRID_BITS = 20


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
    *,
    had: Sequence[Answer] = (),
    keep: Callable[[Answer], None] = lambda answer: None,
) -> PrivateBank:
    """Run a mechanism to its bank.

    Args:
        mechanism: fresh.
        asking: how the sums over all clients are had.
        terms: what it may cost.
        noise: `system_noise`, but in a simulation that says so.
        note: told of a step's releases before the step is asked; raises to refuse them.
        had: answers of a run that broke off, which are used again: to ask anew would cost anew.
        keep: given each new answer before anything else is done with it.
    """
    before = iter(had)
    answer: Answer | None = None
    try:
        while True:
            step = mechanism.send(answer)  # type: ignore[arg-type]  # None starts a generator
            answer = next(before, None)
            if answer is None:
                releases = terms.releases(step)
                note(releases)
                answer = _with_noise(asking(step.ask), step, releases, noise)
                keep(answer)
    except StopIteration as ended:
        return ended.value


def planned(mechanism: Mechanism, terms: Terms) -> list[Release]:
    """What a mechanism will release, found by running it on no image at all."""
    releases: list[Release] = []
    run_mechanism(mechanism, in_process([[]]), terms, seeded_noise(0), releases.extend)
    return releases


def in_process(clients: Sequence[Iterable[np.ndarray]]) -> Asking:
    """Asking records [P, D] that are all here, by client; each step goes through all of them."""
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


def _with_noise(
    sums: tuple[np.ndarray, ...], step: Step, releases: Sequence[Release], noise: Noise
) -> Answer:
    noisy = []
    for total, block, release in zip(sums, step.ask.blocks, releases, strict=True):
        if total.shape != (block.size,) or not np.isfinite(total).all():
            raise ValueError(
                f"a sum of {block.name} has shape {total.shape}, not {(block.size,)}, or values "
                "that are not finite"
            )
        grid = 2.0 ** (floor(log2(release.sigma)) - GRID_BITS)
        noisy.append(np.rint((total + release.sigma * noise(block.size)) / grid) * grid)
    return Answer(tuple(noisy), tuple(release.sigma for release in releases))
