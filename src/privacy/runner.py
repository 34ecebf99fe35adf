"""How a private mechanism runs: ask every image, add up, add noise once, go on from what is public.

A mechanism is a generator of steps. It yields what it asks of the images and how much of its
budget that may cost; it is given the sums with noise, from which everything after is computed; it
returns a bank. So it reads as its pseudocode, never sees a sum without noise, and runs alike in one
process, in messages and under secure aggregation: only `Asking` differs.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, log, log2, sqrt

import numpy as np
from scipy.special import ndtr, ndtri

from src.privacy.ledger import Adjacency, Release, Unit
from src.privacy.queries import Ask, Record, Scores, added, summed

# Sums are released on a grid of some σ / 2^20: the last bits of floating-point noise, by which sums
# could be told apart (Mironov, 2012), are not among what is released.
GRID_BITS = 20
# image scores that a threshold is found in: from this part of a bank's spread to so many times it
SCORES_BELOW, SCORES_ABOVE, SCORES_BINS = 4.0, 8.0, 32


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
class Sums:
    """The sums over all records, block by block, without noise; and how many records they are."""

    vectors: tuple[np.ndarray, ...]
    records: int


@dataclass(frozen=True)
class Answer:
    """The sums over all records with their noise, and its standard deviation, block by block."""

    sums: tuple[np.ndarray, ...]
    sigmas: tuple[float, ...]
    records: int


@dataclass(frozen=True)
class PrivateBank:
    """What a mechanism makes: a bank, and the coordinates in which distances to it are taken.

    Attributes:
        rows: [K, d].
        origin, basis: [D] and [D, d]; a patch x of unit length lies at (x − origin) @ basis. None
            where rows are unit patches themselves.
        spread: about how far patches lie from the bank, at most.
        scores: mean and standard deviation of the logarithm of the training images' scores, where
            a part of the budget was spent on that.
    """

    rows: np.ndarray
    origin: np.ndarray | None = None
    basis: np.ndarray | None = None
    spread: float = 1.0
    scores: tuple[float, float] | None = None

    def squared_distances(self, patches: np.ndarray) -> np.ndarray:
        """Of unit patches [P, D] to the closest row: [P] float64."""
        at = patches if self.basis is None else (patches - self.origin) @ self.basis
        squares = (self.rows * self.rows).sum(1) - 2 * at @ self.rows.T
        return np.maximum(0, squares.min(1) + (at * at).sum(1))


Mechanism = Generator[Step, Answer, PrivateBank]
Asking = Callable[[Mapping[str, Ask]], Mapping[str, Sums]]  # of each bank that is asked for
Noise = Callable[[int], np.ndarray]  # so many independent standard normal numbers


@dataclass(frozen=True)
class Terms:
    """On what terms a mechanism runs.

    Attributes:
        mu: what the mechanism may cost in all.
        adjacency, unit: of which change.
        bank: whose images it reads.
        round: the round's number.
        replayable: whether the noise is a seed's.
    """

    mu: float
    adjacency: Adjacency = "null"
    unit: Unit = "image"
    bank: str = "shared"
    round: int = 1
    replayable: bool = False

    def releases(self, step: Step) -> list[Release]:
        """What a step releases, with the noise that it must have."""
        found = []
        for block, fraction in zip(step.ask.blocks, step.fractions, strict=True):
            sensitivity = block.sensitivity(self.adjacency)
            sigma = sensitivity / (self.mu * sqrt(fraction))
            about = (f"{step.name}: {block.name}", self.round, step.what)
            found.append(
                Release(
                    *about,
                    sensitivity,
                    sigma,
                    self.bank,
                    self.unit,
                    self.adjacency,
                    self.replayable,
                )
            )
        return found


def run_mechanisms(
    mechanisms: Mapping[str, Mechanism],
    asking: Asking,
    terms: Terms,
    noise: Noise,
    note: Callable[[Sequence[Release]], None],
    *,
    had: Sequence[Mapping[str, Answer]] = (),
    keep: Callable[[Mapping[str, Answer]], None] = lambda answers: None,
) -> dict[str, PrivateBank]:
    """Run the mechanisms of several banks to their end, side by side: one exchange a step.

    Args:
        mechanisms: bank name -> a fresh one.
        asking: how the sums over all clients are had.
        terms: what each may cost.
        noise: `system_noise`, but in a simulation that says so.
        note: told of a step's releases before anything of it is released; raises to refuse them.
        had: answers of a run that broke off, exchange by exchange, which are used again: to ask
            anew would cost anew.
        keep: given each exchange's new answers before anything else is done with them.
    """
    running, banks = dict(mechanisms), {}
    answers: dict[str, Answer | None] = dict.fromkeys(mechanisms)
    before = iter(had)
    while True:
        steps = {}
        for name, mechanism in list(running.items()):
            try:
                steps[name] = mechanism.send(answers[name])  # type: ignore[arg-type]  # None starts
            except StopIteration as ended:
                banks[name] = ended.value
                del running[name]
        if not steps:
            return banks
        kept = next(before, None)
        if kept is None:
            kept = _ask(steps, asking, terms, noise, note)
            keep(kept)
        answers = {name: kept[name] for name in steps}


def _ask(
    steps: Mapping[str, Step],
    asking: Asking,
    terms: Terms,
    noise: Noise,
    note: Callable[[Sequence[Release]], None],
) -> dict[str, Answer]:
    releases = {name: replace(terms, bank=name).releases(step) for name, step in steps.items()}
    note([release for of_bank in releases.values() for release in of_bank])
    sums = asking({name: step.ask for name, step in steps.items()})
    return {name: released(sums[name], step, releases[name], noise) for name, step in steps.items()}


def run_mechanism(
    mechanism: Mechanism,
    asking: Callable[[Ask], Sums],
    terms: Terms,
    noise: Noise,
    note: Callable[[Sequence[Release]], None],
    *,
    had: Sequence[Answer] = (),
    keep: Callable[[Answer], None] = lambda answer: None,
) -> PrivateBank:
    """Run the mechanism of a single bank to its end; as `run_mechanisms`."""
    name = terms.bank
    banks = run_mechanisms(
        {name: mechanism},
        lambda asks: {name: asking(asks[name])},
        terms,
        noise,
        note,
        had=[{name: answer} for answer in had],
        keep=lambda answers: keep(answers[name]),
    )
    return banks[name]


def planned(mechanism: Mechanism, terms: Terms) -> list[Release]:
    """What a mechanism will release, found by running it on a record that gives nothing."""
    releases: list[Release] = []

    def nothing(ask: Ask) -> Sums:
        return Sums(summed(ask, []), 1)

    run_mechanism(mechanism, nothing, terms, seeded_noise(0), releases.extend)
    return releases


def replayed(
    mechanism: Mechanism, answers: Sequence[Answer]
) -> tuple[list[tuple[Step, Answer]], PrivateBank]:
    """What a fresh mechanism asked in a run, by the answers that it had, and what it made of them.

    Raises:
        ValueError: it asks for other sums than these, or more often, or less.
    """
    pairs: list[tuple[Step, Answer]] = []
    try:
        step = mechanism.send(None)  # type: ignore[arg-type]  # None starts a generator
        for answer in answers:
            sizes = [len(vector) for vector in answer.sums]
            if sizes != [block.size for block in step.ask.blocks]:
                raise ValueError(f"the answer to {step.name} has blocks of {sizes} numbers")
            pairs.append((step, answer))
            step = mechanism.send(answer)
    except StopIteration as ended:
        if len(pairs) == len(answers):
            return pairs, ended.value
    raise ValueError(f"the mechanism does not ask {len(answers)} times")


def in_process(clients: Sequence[Sequence[Record]]) -> Callable[[Ask], Sums]:
    """Asking records that are all here, by client; each step goes through all of them."""
    count = sum(map(len, clients))
    return lambda ask: Sums(added(summed(ask, client) for client in clients), count)


def with_scores(mechanism: Mechanism, part: float) -> Mechanism:
    """A mechanism that spends a part of its budget on how the training images score with its bank.

    A private bank hardly depends on any one image, so images that helped to make it score as fresh
    ones do: from mean and deviation of their log scores, which a normal law fitted to a histogram
    gives, follows a threshold.

    Args:
        mechanism: which makes the bank; it is left the rest of the budget.
        part: of it, in (0, 1).
    """
    answer: Answer | None = None
    try:
        while True:
            step = mechanism.send(answer)  # type: ignore[arg-type]  # None starts a generator
            fractions = tuple(fraction * (1 - part) for fraction in step.fractions)
            answer = yield replace(step, fractions=fractions)
    except StopIteration as ended:
        bank: PrivateBank = ended.value
    low, high = bank.spread / SCORES_BELOW, bank.spread * SCORES_ABOVE
    ask = Scores(bank.rows, low, high, SCORES_BINS, bank.origin, bank.basis)
    answer = yield Step("threshold", "how many images' scores lie in each bin", ask, (part,))
    mean, deviation = normal_of(answer.sums[0] / answer.records)
    width = log(high / low)
    return replace(bank, scores=(log(low) + width * mean, width * deviation))


def normal_of(shares: np.ndarray) -> tuple[float, float]:
    """Mean and deviation, on a scale from 0 to 1, of the normal law that is closest to a histogram.

    By least squares, which for equal Gaussian noise on all bins is maximum likelihood; searched on
    a grid of a tenth of a bin.

    Args:
        shares: [B] of all values in equal bins from 0 to 1, with noise.
    """
    bins = len(shares)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    means = np.linspace(0, 1, 10 * bins + 1)
    deviations = np.geomspace(0.2, bins / 4, 60) / bins
    below = ndtr((edges - means[:, None, None]) / deviations[:, None])
    expected = np.diff(below, axis=2, prepend=0.0, append=1.0)
    error = ((expected - shares) ** 2).sum(2)
    mean, deviation = np.unravel_index(error.argmin(), error.shape)
    return float(means[mean]), float(deviations[deviation])


def threshold_of(scores: tuple[float, float], false_alarm_rate: float) -> float:
    """Image score above which this share of normal images lies, if its logarithm is normal.

    Args:
        scores: mean and standard deviation of the logarithm, as `PrivateBank.scores`.
        false_alarm_rate: in (0, 1).
    """
    mean, deviation = scores
    return float(np.exp(mean + deviation * ndtri(1 - false_alarm_rate)))


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


def released(sums: Sums, step: Step, releases: Sequence[Release], noise: Noise) -> Answer:
    """The sums of a step with their noise: the only way by which sums leave the server.

    Raises:
        ValueError: sums of another shape than the step's blocks, or that are not finite.
    """
    noisy = []
    for total, block, release in zip(sums.vectors, step.ask.blocks, releases, strict=True):
        if total.shape != (block.size,) or not np.isfinite(total).all():
            raise ValueError(
                f"a sum of {block.name} has shape {total.shape}, not {(block.size,)}, or values "
                "that are not finite"
            )
        grid = 2.0 ** (floor(log2(release.sigma)) - GRID_BITS)
        noisy.append(np.rint((total + release.sigma * noise(block.size)) / grid) * grid)
    return Answer(tuple(noisy), tuple(release.sigma for release in releases), sums.records)
