"""What a private run writes down as it goes: its ledger, and the answers that it has had.

Both are public: answers carry their noise. A run that broke off goes on from the answers, since
asking again would cost again; the ledger outlives the run, since what was released stays released.
"""

import fcntl
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.privacy.ledger import Budget, BudgetExceeded, Ledger, Release, read_ledger, write_ledger
from src.privacy.runner import Answer
from src.storage.tensor_file import read_tensors, write_tensors

LEDGER, ANSWERS = "privacy_ledger.json", "private.safetensors"
FORMAT = "fedpatchcore-answers-1"
ROOM = 1e-6  # of a budget's μ², below which nothing is left of it


@dataclass(frozen=True)
class KeptAnswers:
    """The answers that a run has had.

    Attributes:
        mu: what the run may cost in all.
        plan: what it was to do, in words.
        exchanges: bank name -> answer, exchange by exchange.
    """

    mu: float
    plan: str
    exchanges: Sequence[dict[str, Answer]]


class Books:
    """Ledger and answers of a run in its directory.

    Args:
        out: the run directory.
        ledger: a ledger that lies elsewhere, which several runs share.
        resume: go on from the answers that an earlier run left; else they are passed over.

    Attributes:
        ledger: all releases so far, of earlier runs too.
        had: answers, exchange by exchange.
        mu: what the run that gave them may cost in all; `plan`: what it was to do, in words.
    """

    def __init__(self, out: Path, ledger: str = "", resume: bool = False) -> None:
        self.shared = bool(ledger)
        self.path, self.answers = Path(ledger) if ledger else out / LEDGER, out / ANSWERS
        self.ledger = read_ledger(self.path) if self.path.exists() else Ledger()
        going_on = resume and self.answers.exists()
        kept = read_answers(self.answers) if going_on else KeptAnswers(0.0, "", [])
        self.mu, self.plan, self.had = kept.mu, kept.plan, list(kept.exchanges)
        self._pending: Sequence[Release] = ()

    def begin(self, plan: str, budget: Budget) -> float:
        """What a run may cost: what earlier releases leave of a budget, or as it was begun.

        Args:
            plan: what the run will do, in words that tell it from others.
            budget: of all releases together.

        Raises:
            BudgetExceeded: earlier releases leave nothing.
            ValueError: the run that is to go on was another one.
        """
        if self.had and plan != self.plan:
            raise ValueError(
                f"{self.answers} is of a run with other privacy settings or objects; start in "
                "another directory"
            )
        self.plan = plan
        if not self.had:
            self.mu = self.room(budget)
        return self.mu

    def room(self, budget: Budget) -> float:
        """What earlier releases leave of a budget's μ.

        Raises:
            BudgetExceeded: nothing.
        """
        spent = Ledger(budget, self.ledger.releases)
        room = budget.mu**2 - spent.mu**2
        if room <= ROOM * budget.mu**2:
            raise BudgetExceeded(
                f"privacy: the {len(spent.releases)} releases in {self.path} have spent ε = "
                f"{spent.epsilon:.4g} at δ = {budget.delta:g}, and the budget is "
                f"{budget.epsilon:g}; go on from them with resume, or raise privacy.epsilon"
            )
        return room**0.5

    def open(self, budget: Budget | None, releases: Sequence[Release]) -> None:
        """Take up a budget, and see that what is planned fits into it, before anything is asked.

        Of the planned releases those that the run has had answers to are in the ledger already.

        Raises:
            BudgetExceeded: it does not fit.
            ValueError: the ledger is of another unit or adjacency, or not this run's.
        """
        had: dict[str, int] = {}
        for answers in self.had:
            for name, answer in answers.items():
                had[name] = had.get(name, 0) + len(answer.sums)
        listed = Counter(release.bank for release in self.ledger.releases)
        if any(listed[name] < count for name, count in had.items()):
            raise ValueError(
                f"{self.path} lacks what the run in {self.answers.parent} has released: name the "
                "ledger that it was begun with"
            )
        left = []
        for release in releases:
            if had.get(release.bank, 0):
                had[release.bank] -= 1
            else:
                left.append(release)
        told = Ledger(budget).adding(self.ledger.releases)
        told.adding(left)
        self.ledger = told

    def note(self, releases: Sequence[Release]) -> None:
        """Be told what an exchange will release.

        Raises:
            BudgetExceeded: it would be too much.
        """
        self.ledger.adding(releases)
        self._pending = releases

    def keep(self, answers: Mapping[str, Answer]) -> None:
        """Write down what an exchange has released: in the ledger first."""
        self.write(self._pending)
        self._pending = ()
        self.had = [*self.had, dict(answers)]
        header: list[dict[str, Any]] = []
        tensors: dict[str, np.ndarray] = {}
        for number, given in enumerate(self.had):
            header.append({n: [list(a.sigmas), a.records] for n, a in given.items()})
            for name, answer in given.items():
                for block, vector in enumerate(answer.sums):
                    tensors[f"{number}/{block}/{name}"] = vector
        about = {"mu": self.mu, "plan": self.plan, "exchanges": header}
        write_tensors(self.answers, FORMAT, about, tensors)

    def write(self, releases: Sequence[Release]) -> None:
        """Add releases to the ledger, as it stands there now, and write it.

        Raises:
            BudgetExceeded: another run on the same ledger has spent what these would cost.
        """
        with _locked(self.path) if self.shared else nullcontext():
            there = read_ledger(self.path).releases if self.path.exists() else ()
            self.ledger = Ledger(self.ledger.budget).adding((*there, *releases))
            write_ledger(self.path, self.ledger)


def read_answers(path: Path) -> KeptAnswers:
    """The answers that a run has had.

    Raises:
        FileNotFoundError: no such file.
        FileError: not a file of answers.
    """
    header, tensors = read_tensors(path, FORMAT)
    exchanges = [
        {
            name: Answer(
                tuple(tensors[f"{number}/{block}/{name}"] for block in range(len(sigmas))),
                tuple(sigmas),
                records,
            )
            for name, (sigmas, records) in exchange.items()
        }
        for number, exchange in enumerate(header["exchanges"])
    ]
    return KeptAnswers(header["mu"], header["plan"], exchanges)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
