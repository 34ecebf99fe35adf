"""The ledger: every release of private data in a run, and what all releases together cost.

The ledger adds releases up exactly, refuses those that would exceed the budget, and states the
resulting guarantee in one sentence.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from src.privacy.accounting import compose, epsilon_for, mu_for
from src.storage.atomic import write_whole

Unit = Literal["image", "group", "client"]
Adjacency = Literal["null", "replace"]  # the record becomes a null record, or another record

FEW_CLIENTS = 100
TOLERANCE = 1e-9  # relative, by which rounding may lift a sum of parts above the budget

UNITS = {
    "image": "one of {} training images",
    "group": "one whole group of the {} training images",
    "client": "all that one of {} clients holds",
}
CHANGES = {"null": "had been left out", "replace": "had been replaced by anything else"}


class BudgetExceeded(ValueError):
    """Releases would cost more than the budget; the message says which and how much."""


@dataclass(frozen=True)
class Budget:
    """What all releases together may cost, and who is protected.

    Attributes:
        epsilon, delta: the guarantee.
        records: number of images or clients, as the unit says; the number is public. For groups it
            is the number of images, which is at least that of groups.
        unit: what one record is.
        adjacency: how two data sets differ that must be hard to tell apart.

    Raises:
        ValueError: ε is not positive and finite, or δ is not below 1 / records.
    """

    epsilon: float
    delta: float
    records: int
    unit: Unit = "image"
    adjacency: Adjacency = "null"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"privacy.epsilon must be above 0 and finite, not {self.epsilon}")
        if self.records < 1:
            raise ValueError(f"a privacy budget over {self.records} {self.unit}s protects nobody")
        if not 0 < self.delta < 1 / self.records:
            raise ValueError(
                f"privacy.delta is {self.delta:g}: with {self.records} {self.unit}s it must be "
                f"above 0 and below {1 / self.records:.2g}, or giving one of them away would pass"
            )

    @property
    def warning(self) -> str:
        """Warning to log for this budget, or an empty string."""
        if self.unit != "client" or self.records >= FEW_CLIENTS:
            return ""
        return (
            f"privacy.unit is client and there are {self.records}: the noise that hides one client "
            f"hides what all have in common; it takes {FEW_CLIENTS} clients at least"
        )

    @property
    def mu(self) -> float:
        """The Gaussian parameter that ε and δ allow."""
        return mu_for(self.epsilon, self.delta)


@dataclass(frozen=True)
class Release:
    """One noisy sum that left the clients' side, or is about to."""

    name: str  # the step and the sum, as "moments: mean"
    what: str  # the content in words, for the report
    sensitivity: float  # Δ, the largest change by one record (L2 norm)
    sigma: float  # standard deviation of the noise in each coordinate
    round: int = 1  # in which round
    bank: str = "shared"  # whose images were read; images of different banks are different images
    unit: Unit = "image"  # with adjacency, the change that Δ bounds
    adjacency: Adjacency = "null"
    # whether the noise can be drawn again, as from a seed; it then hides nothing
    replayable: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.sensitivity < math.inf and 0 < self.sigma < math.inf):
            raise ValueError(
                f"release {self.name}: a sensitivity of {self.sensitivity} and noise of "
                f"{self.sigma} cannot be accounted"
            )

    @property
    def mu(self) -> float:
        """Its cost, Δ/σ."""
        return self.sensitivity / self.sigma


@dataclass(frozen=True)
class Ledger:
    """All releases of a run, and the budget that they must keep to."""

    budget: Budget
    releases: tuple[Release, ...] = ()

    @property
    def mu(self) -> float:
        """The cost of all releases together.

        An image or a group is in one bank, so releases of different banks do not add up. A client
        may be in all banks.
        """
        if self.budget.unit == "client":
            return compose(release.mu for release in self.releases)
        by_bank: dict[str, list[float]] = {}
        for release in self.releases:
            by_bank.setdefault(release.bank, []).append(release.mu)
        return max(map(compose, by_bank.values()), default=0.0)

    @property
    def epsilon(self) -> float:
        """ε of all releases so far, at the budget's δ."""
        return epsilon_for(self.mu, self.budget.delta)

    def with_releases(self, releases: Sequence[Release]) -> "Ledger":
        """The ledger with more releases; call it before they are made.

        Raises:
            BudgetExceeded: all together would cost more than the budget.
            ValueError: a release is for another unit or adjacency than the budget.
        """
        for release in releases:
            if (release.unit, release.adjacency) != (self.budget.unit, self.budget.adjacency):
                raise ValueError(
                    f"release {release.name} is bounded for {release.unit}, {release.adjacency}; "
                    f"the budget is for {self.budget.unit}, {self.budget.adjacency}"
                )
        grown = replace(self, releases=(*self.releases, *releases))
        if grown.mu > self.budget.mu * (1 + TOLERANCE):
            names = ", ".join(f"{r.name} (round {r.round})" for r in releases)
            raise BudgetExceeded(
                f"privacy: {names} would bring ε to {grown.epsilon:.4g} at δ = "
                f"{self.budget.delta:g}; the budget is {self.budget.epsilon:g}, of which "
                f"{len(self.releases)} earlier releases have spent {self.epsilon:.4g}"
            )
        return grown


def guarantee(ledger: Ledger) -> str:
    """The guarantee, for whom and for which unit, in one sentence."""
    if not ledger.releases:
        return "Nothing that depends on private images has been released."
    budget = ledger.budget
    record = UNITS[budget.unit].format(budget.records)
    if any(release.replayable for release in ledger.releases):
        return (
            "Guarantee: none, since the noise can be drawn again from the run's seed, and taken "
            f"off; with noise from the system it would be ε = {ledger.epsilon:.4g} at δ = "
            f"{budget.delta:g} for {record}."
        )
    return (
        "Whoever sees all that was released, but not the sums before the server added its noise, "
        f"can hardly tell the run from one in which {record} {CHANGES[budget.adjacency]}: it is "
        f"({ledger.epsilon:.4g}, {budget.delta:g})-differentially private for that unit, of a "
        f"budget of ε = {budget.epsilon:g}."
    )


def write_ledger(path: str | Path, ledger: Ledger) -> None:
    """Write a ledger as JSON, whole or not at all."""
    content = {
        "guarantee": guarantee(ledger),
        "budget": asdict(ledger.budget),
        "mu": ledger.mu,
        "epsilon": ledger.epsilon,
        "releases": [asdict(release) | {"mu": release.mu} for release in ledger.releases],
    }
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_ledger(path: str | Path) -> Ledger:
    """Read a ledger that `write_ledger` wrote.

    Raises:
        ValueError: the file is not a ledger, or its releases exceed its own budget.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = [{k: v for k, v in entry.items() if k != "mu"} for entry in content["releases"]]
        releases = [Release(**entry) for entry in entries]
        return Ledger(Budget(**content["budget"])).with_releases(releases)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a valid privacy ledger: {error}") from error
