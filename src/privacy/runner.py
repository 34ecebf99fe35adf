"""Running a private mechanism: ask for sums, add noise once, continue from what is public.

A mechanism is a generator of steps. It yields a query and the share of its budget that the query
may cost, receives the noisy sums, and returns a bank. So it reads as pseudocode, never sees a sum
without noise, and runs the same in one process, over messages, and under secure aggregation.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from src.privacy.ledger import Adjacency, Release, Unit
from src.privacy.noise import Noise, add_noise, seeded_noise
from src.privacy.queries import SumQuery, sum_records


@dataclass(frozen=True)
class Step:
    """One query to all records."""

    name: str  # of the step
    what: str  # what it releases, in words, for the report
    query: SumQuery  # the question, public
    # for each block of the query, the part of the mechanism's μ² that it costs
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class Sums:
    """Sums over records without noise, block by block, and how many records they are over."""

    vectors: tuple[np.ndarray, ...]
    records: int


@dataclass(frozen=True)
class NoisySums:
    """Sums over all records with noise, and the noise's standard deviation, block by block."""

    vectors: tuple[np.ndarray, ...]
    sigmas: tuple[float, ...]
    records: int


@dataclass(frozen=True)
class PrivateBank:
    """What a mechanism returns: a bank, and the coordinates in which distances to it are taken."""

    rows: np.ndarray  # [K, d]
    origin: np.ndarray  # [D]
    basis: np.ndarray  # [D, d]; a patch x of unit length lies at (x − origin) @ basis
    spread: float = 1.0  # roughly the largest distance of a patch to the bank
    # mean and standard deviation of the logarithm of the training images' scores, once a part of
    # the budget was spent on them
    log_scores: tuple[float, float] | None = None


Mechanism = Generator[Step, NoisySums, PrivateBank]
AskSums = Callable[[Mapping[str, SumQuery]], Mapping[str, Sums]]  # by bank


@dataclass(frozen=True)
class PrivacyParams:
    """The guarantee under which a mechanism runs."""

    mu: float  # μ of all its releases together
    adjacency: Adjacency = "null"  # with the unit, the change that must be hard to see
    unit: Unit = "image"
    replayable: bool = False  # whether the noise comes from a seed

    def releases(self, step: Step, bank: str = "shared") -> list[Release]:
        """The releases of a step, one per block, with the noise that each needs."""
        return [
            Release(
                name=f"{step.name}: {block.name}",
                what=step.what,
                sensitivity=block.sensitivity(self.adjacency),
                sigma=block.sensitivity(self.adjacency) / (self.mu * sqrt(fraction)),
                bank=bank,
                unit=self.unit,
                adjacency=self.adjacency,
                replayable=self.replayable,
            )
            for block, fraction in zip(step.query.blocks, step.fractions, strict=True)
        ]


def run_mechanisms(
    mechanisms: Mapping[str, Mechanism],
    ask: AskSums,
    params: PrivacyParams,
    noise: Noise,
    reserve: Callable[[Sequence[Release]], None],
    *,
    recorded: Sequence[Mapping[str, NoisySums]] = (),
    record: Callable[[Mapping[str, NoisySums]], None] = lambda replies: None,
) -> dict[str, PrivateBank]:
    """Run the mechanisms of several banks to their end, side by side: one exchange a step.

    Args:
        mechanisms: bank name -> a fresh mechanism.
        ask: returns the sums over all clients.
        params: what each mechanism may cost.
        noise: `system_noise`, except in a simulation that says otherwise.
        reserve: receives an exchange's releases before anything is asked; raises to refuse them.
        recorded: replies of an interrupted run, exchange by exchange. They are used again, since
            asking again would cost again.
        record: receives each exchange's new replies before they are used.
    """
    banks: dict[str, PrivateBank] = {}
    replies: Mapping[str, NoisySums | None] = dict.fromkeys(mechanisms)  # None starts a generator
    earlier = iter(recorded)
    while steps := _next_steps(mechanisms, replies, banks):
        exchange = next(earlier, None)
        if exchange is None:
            releases = {name: params.releases(step, name) for name, step in steps.items()}
            reserve([release for of_bank in releases.values() for release in of_bank])
            sums = ask({name: step.query for name, step in steps.items()})
            exchange = {
                name: release_sums(sums[name], step, releases[name], noise)
                for name, step in steps.items()
            }
            record(exchange)
        replies = {name: exchange[name] for name in steps}
    return banks


def _next_steps(
    mechanisms: Mapping[str, Mechanism],
    replies: Mapping[str, NoisySums | None],
    banks: dict[str, PrivateBank],
) -> dict[str, Step]:
    """Send each mechanism its reply; return the next steps, and put finished banks into `banks`."""
    steps = {}
    for name, reply in replies.items():
        try:
            steps[name] = mechanisms[name].send(reply)  # type: ignore[arg-type]  # None starts
        except StopIteration as stop:
            banks[name] = stop.value
    return steps


def release_sums(sums: Sums, step: Step, releases: Sequence[Release], noise: Noise) -> NoisySums:
    """Sums of a step with their noise: the only way in which sums leave the server.

    Raises:
        ValueError: a sum has another shape than the step's block, or is not finite.
    """
    noisy = []
    for vector, block, entry in zip(sums.vectors, step.query.blocks, releases, strict=True):
        if vector.shape != (block.size,) or not np.isfinite(vector).all():
            raise ValueError(
                f"a sum of {block.name} has shape {vector.shape}, not {(block.size,)}, or values "
                "that are not finite"
            )
        noisy.append(add_noise(vector, entry.sigma, noise))
    return NoisySums(tuple(noisy), tuple(entry.sigma for entry in releases), sums.records)


def planned_releases(mechanisms: Mapping[str, Mechanism], params: PrivacyParams) -> list[Release]:
    """Every release that fresh mechanisms will make, found by running them on no records."""
    releases: list[Release] = []

    def ask_nobody(queries: Mapping[str, SumQuery]) -> dict[str, Sums]:
        return {name: Sums(sum_records(query, []), 1) for name, query in queries.items()}

    run_mechanisms(mechanisms, ask_nobody, params, seeded_noise(0), releases.extend)
    return releases


def replay(
    mechanism: Mechanism, replies: Sequence[NoisySums]
) -> tuple[list[tuple[Step, NoisySums]], PrivateBank]:
    """The steps of a finished run, from the replies it received, and the bank it made.

    Raises:
        ValueError: the mechanism asks for other sums, for more of them, or for fewer.
    """
    steps: list[tuple[Step, NoisySums]] = []
    try:
        step = mechanism.send(None)  # type: ignore[arg-type]  # None starts a generator
        for reply in replies:
            sizes = [len(vector) for vector in reply.vectors]
            if sizes != [block.size for block in step.query.blocks]:
                raise ValueError(f"the reply to {step.name} has blocks of {sizes} numbers")
            steps.append((step, reply))
            step = mechanism.send(reply)
    except StopIteration as stop:
        if len(steps) == len(replies):
            return steps, stop.value
    raise ValueError(f"the mechanism does not ask {len(replies)} times")
