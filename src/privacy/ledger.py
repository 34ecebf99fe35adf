"""The ledger: every release of private data in a run, and what all of them together may cost.

A release is anything that leaves the clients' side with noise (or without) and depends on images:
a bank, a threshold, a calibration, in every round. The ledger adds them up exactly, refuses what
would pass the budget, and says in one sentence what is then guaranteed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from src.privacy.accounting import composed, epsilon_for, mu_for
from src.storage.atomic import write_whole

Unit = Literal["image", "group", "client"]
Adjacency = Literal["null", "replace"]  # the record becomes a null record, or another record

FEW_CLIENTS = 100
ROUNDING = 1e-9  # relative, by which a sum of parts of a budget may pass it

UNITS = {
    "image": "one of {} training images",
    "group": "one whole group of the {} training images",
    "client": "all that one of {} clients holds",
}
CHANGES = {"null": "had been left out", "replace": "had been replaced by anything else"}


class BudgetExceeded(ValueError):
    """Releases that would cost more than the budget; the message says what and how much."""


@dataclass(frozen=True)
class Budget:
    """What all releases together may cost, and who is protected.

    Attributes:
        epsilon, delta: of the guarantee.
        records: images or clients, as the unit says; their number is public. Groups of images are
            counted by their images, of which there are no fewer.
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
    def caution(self) -> str:
        """What to know before such a budget is spent, in a sentence; mostly nothing."""
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
    """One sum with noise that left the clients' side, or is about to.

    Attributes:
        name: which step released it, as "moments: mean".
        round: in which round.
        what: in words, for the report.
        sensitivity: Δ, the most by which one record changes it (L2 norm); infinite if unbounded.
        sigma: standard deviation of the noise in each coordinate; 0 for none.
        bank: whose images were read. Images of different banks are different images.
        unit, adjacency: of which change Δ is the bound.
        replayable: whether its noise can be drawn again, as from a seed; it then hides nothing.
    """

    name: str
    round: int
    what: str
    sensitivity: float
    sigma: float
    bank: str = "shared"
    unit: Unit = "image"
    adjacency: Adjacency = "null"
    replayable: bool = False

    def __post_init__(self) -> None:
        if not self.sensitivity > 0 or not 0 <= self.sigma < math.inf:
            raise ValueError(
                f"release {self.name}: a sensitivity of {self.sensitivity} and noise of "
                f"{self.sigma} cannot be accounted"
            )

    @property
    def mu(self) -> float:
        """What it costs: Δ/σ, infinite where nothing is hidden."""
        return self.sensitivity / self.sigma if self.sigma else math.inf


@dataclass(frozen=True)
class Ledger:
    """All releases of a run. Without a budget they are written down and nothing is promised."""

    budget: Budget | None = None
    releases: tuple[Release, ...] = ()

    @property
    def mu(self) -> float:
        """What all releases cost together.

        An image, or a group, is in one bank: releases of different banks do not add up. A client
        may be in all.
        """
        unit = self.budget.unit if self.budget else "image"
        banks = {r.bank for r in self.releases} if unit != "client" else {None}
        return max(
            (composed(r.mu for r in self.releases if bank in (None, r.bank)) for bank in banks),
            default=0.0,
        )

    @property
    def epsilon(self) -> float:
        """ε at the budget's δ of all releases so far; infinite without a budget or a bound."""
        if self.budget is None or math.isinf(self.mu):
            return math.inf if self.releases else 0.0
        return epsilon_for(self.mu, self.budget.delta)

    def adding(self, releases: Sequence[Release]) -> "Ledger":
        """The ledger with more releases; ask before they are made.

        Raises:
            BudgetExceeded: all together would cost more than the budget.
            ValueError: a release is of another unit or adjacency.
        """
        grown = replace(self, releases=(*self.releases, *releases))
        if self.budget is None:
            return grown
        for release in releases:
            if (release.unit, release.adjacency) != (self.budget.unit, self.budget.adjacency):
                raise ValueError(
                    f"release {release.name} is bounded for {release.unit}, {release.adjacency}; "
                    f"the budget is for {self.budget.unit}, {self.budget.adjacency}"
                )
        if grown.mu > self.budget.mu * (1 + ROUNDING):
            names = ", ".join(f"{r.name} (round {r.round})" for r in releases)
            raise BudgetExceeded(
                f"privacy: {names} would bring ε to {grown.epsilon:.4g} at δ = "
                f"{self.budget.delta:g}; the budget is {self.budget.epsilon:g}, of which "
                f"{len(self.releases)} earlier releases have spent {self.epsilon:.4g}"
            )
        return grown


def guarantee(ledger: Ledger) -> str:
    """What is guaranteed, to whom and for which unit, in one sentence."""
    if not ledger.releases:
        return "Nothing that depends on private images has been released."
    budget = ledger.budget
    if budget is None or math.isinf(ledger.mu):
        return (
            "Guarantee: none at image level, since what was released has no bound on what one "
            "image changes, or no noise for it."
        )
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
    """Write a ledger as JSON, whole or not at all; numbers without bound become null."""
    releases = [asdict(r) | {"mu": r.mu} for r in ledger.releases]
    content = {
        "guarantee": guarantee(ledger),
        "budget": asdict(ledger.budget) if ledger.budget else None,
        "mu": _or_none(ledger.mu),
        "epsilon": _or_none(ledger.epsilon),
        "releases": [{k: _or_none(v) for k, v in r.items()} for r in releases],
    }
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_ledger(path: str | Path) -> Ledger:
    """A ledger as it was written.

    Raises:
        ValueError: the file is not a ledger, or its releases pass its own budget.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        budget = Budget(**content["budget"]) if content["budget"] else None
        releases = [_release(entry) for entry in content["releases"]]
        return Ledger(budget).adding(releases)
    except (KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{path} is not a privacy ledger that holds: {fault}") from fault


def _release(entry: dict) -> Release:
    known = {key: value for key, value in entry.items() if key != "mu"}
    if known["sensitivity"] is None:
        known["sensitivity"] = math.inf
    return Release(**known)


def _or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
