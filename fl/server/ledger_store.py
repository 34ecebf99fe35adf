"""What a private run writes as it goes: its ledger, and the noisy sums that it received.

Both are public. An interrupted run continues from the noisy sums, since asking again would cost
again. The ledger outlives the run, since what was released stays released.
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
from src.privacy.runner import NoisySums
from src.storage.tensor_file import read_tensors, write_tensors

LEDGER, REPLIES = "privacy_ledger.json", "private.safetensors"
FORMAT = "fedpatchcore-answers-1"
EXHAUSTED = 1e-6  # part of a budget's μ² below which nothing is left of it


@dataclass(frozen=True)
class RecordedReplies:
    """The noisy sums that a run received."""

    mu: float = 0.0  # what the run may cost in all
    plan: str = ""  # the run's mechanism and banks, in words
    exchanges: Sequence[Mapping[str, NoisySums]] = ()  # for each exchange, bank name -> noisy sums


class LedgerStore:
    """Ledger and noisy sums of a run, in its directory.

    Args:
        out: the run directory.
        ledger: path of a ledger elsewhere, which several runs share; "" for the directory's own.
        resume: continue from the noisy sums of an earlier run; otherwise they are ignored.

    Attributes:
        ledger: all releases so far, those of earlier runs included; None before the first.
        recorded: the noisy sums so far, exchange by exchange.
    """

    def __init__(self, out: Path, ledger: str = "", resume: bool = False) -> None:
        self.shared = bool(ledger)
        self.path, self.replies = Path(ledger) if ledger else out / LEDGER, out / REPLIES
        self.ledger = read_ledger(self.path) if self.path.exists() else None
        known = resume and self.replies.exists()
        earlier = read_replies(self.replies) if known else RecordedReplies()
        self.mu, self.plan, self.recorded = earlier.mu, earlier.plan, list(earlier.exchanges)
        self._reserved: Sequence[Release] = ()

    def begin(self, plan: str, budget: Budget) -> float:
        """Return μ of the run: what earlier releases leave of it, or what a resumed run had.

        Args:
            plan: the run's mechanism and banks, in words that tell it from other runs.
            budget: of all releases together.

        Raises:
            BudgetExceeded: earlier releases leave nothing.
            ValueError: the run to be resumed had another plan.
        """
        if self.recorded and plan != self.plan:
            raise ValueError(
                f"{self.replies} is of a run with other privacy settings or objects; start in "
                "another directory"
            )
        self.plan = plan
        if not self.recorded:
            self.mu = self.remaining_budget(budget)
        return self.mu

    def remaining_budget(self, budget: Budget) -> float:
        """μ that earlier releases leave of a budget.

        Raises:
            BudgetExceeded: they leave nothing.
        """
        spent = Ledger(budget, self._releases())
        remaining = budget.mu**2 - spent.mu**2
        if remaining <= EXHAUSTED * budget.mu**2:
            raise BudgetExceeded(
                f"privacy: the {len(spent.releases)} releases in {self.path} have spent ε = "
                f"{spent.epsilon:.4g} at δ = {budget.delta:g}, and the budget is "
                f"{budget.epsilon:g}; go on from them with resume, or raise privacy.epsilon"
            )
        return remaining**0.5

    def open(self, budget: Budget, planned: Sequence[Release]) -> None:
        """Set the budget, and check before anything is asked that all planned releases fit into it.

        Planned releases that the run has already made are in the ledger, and count once.

        Raises:
            BudgetExceeded: they do not fit.
            ValueError: the ledger is for another unit or adjacency, or lacks releases of this run.
        """
        made: Counter[str] = Counter()
        for exchange in self.recorded:
            made.update({name: len(reply.vectors) for name, reply in exchange.items()})
        listed = Counter(release.bank for release in self._releases())
        if made - listed:
            raise ValueError(
                f"{self.path} lacks what the run in {self.replies.parent} has released: name the "
                "ledger that it was begun with"
            )
        future = []
        for release in planned:
            if made[release.bank]:
                made[release.bank] -= 1
            else:
                future.append(release)
        self.ledger = Ledger(budget).with_releases(self._releases())
        self.ledger.with_releases(future)

    def reserve(self, releases: Sequence[Release]) -> None:
        """Check that the next exchange's releases fit into the budget.

        Raises:
            BudgetExceeded: they do not.
        """
        assert self.ledger, "open comes first"
        self.ledger.with_releases(releases)
        self._reserved = releases

    def record(self, replies: Mapping[str, NoisySums]) -> None:
        """Write what an exchange released: the ledger first, then the noisy sums.

        Raises:
            BudgetExceeded: another run on the same ledger has spent what this exchange costs.
        """
        assert self.ledger, "open comes first"
        with _locked(self.path) if self.shared else nullcontext():
            written = read_ledger(self.path).releases if self.path.exists() else ()
            ledger = Ledger(self.ledger.budget).with_releases((*written, *self._reserved))
            write_ledger(self.path, ledger)
        self.ledger, self._reserved = ledger, ()
        self.recorded = [*self.recorded, dict(replies)]
        write_replies(self.replies, RecordedReplies(self.mu, self.plan, self.recorded))

    def _releases(self) -> tuple[Release, ...]:
        return self.ledger.releases if self.ledger else ()


def write_replies(path: Path, replies: RecordedReplies) -> None:
    """Write noisy sums, whole or not at all."""
    header: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for number, exchange in enumerate(replies.exchanges):
        header.append({name: [list(r.sigmas), r.records] for name, r in exchange.items()})
        for name, reply in exchange.items():
            for block, vector in enumerate(reply.vectors):
                tensors[f"{number}/{block}/{name}"] = vector
    content = {"mu": replies.mu, "plan": replies.plan, "exchanges": header}
    write_tensors(path, FORMAT, content, tensors)


def read_replies(path: Path) -> RecordedReplies:
    """Read the noisy sums that `write_replies` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is not a file of noisy sums.
    """
    header, tensors = read_tensors(path, FORMAT)
    exchanges = [
        {
            name: NoisySums(
                tuple(tensors[f"{number}/{block}/{name}"] for block in range(len(sigmas))),
                tuple(sigmas),
                records,
            )
            for name, (sigmas, records) in exchange.items()
        }
        for number, exchange in enumerate(header["exchanges"])
    ]
    return RecordedReplies(header["mu"], header["plan"], exchanges)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other runs from writing the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
