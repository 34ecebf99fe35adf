"""Selection from rows that arrive in parts, within a memory bound."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.blocks import Progress, farthest_first
from src.models.coreset.sharding import devices_for, free_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """A coreset of rows seen in parts.

    Attributes:
        features: [k, D] in the order picked: any prefix is the smaller coreset.
        radii: [k] covering radius of all rows seen, by the first t + 1 picks (an upper bound
            where memory forced a reduction on the way).
        seen: number of rows that came.
        before: the same radius before the first pick: by the rows that were there already.
    """

    features: Tensor
    radii: Tensor
    seen: int
    before: float


class BoundedRows:
    """Rows held for one selection. When they outgrow the bound, greedy selection halves them.

    Args:
        limit: bytes the held rows may take; None for 2 GiB on a CPU, and on a GPU for 60 % of
            the memory that is free when the first rows come.
        seed: start rows of the selections.
        device: where rows are held and selections run.
        expected: rows that will come, as far as is known. On a GPU room is made for these at
            first, otherwise for as many as the bound allows: a CPU's pages are only taken up as
            rows come.
    """

    def __init__(
        self,
        limit: int | None,
        seed: int,
        device: torch.device | str = "cpu",
        expected: int | None = None,
    ) -> None:
        self.seed, self.device, self.expected = seed, torch.device(device), expected
        self.limit = _limit(self.device) if limit is None else limit
        self.rows: Tensor | None = None  # [capacity, D]
        self.held = self.seen = 0
        self.slack = 0.0  # covering radius of everything seen by what is held

    def add(self, rows: Tensor) -> None:
        """Take rows [M, D] in.

        Raises:
            ValueError: another dimension or dtype than before, or a bound too small for two rows.
        """
        if self.rows is None:
            self.rows = self._room(rows, self.expected)
        if rows.shape[1] != self.rows.shape[1] or rows.dtype != self.rows.dtype:
            raise ValueError(
                f"rows are {rows.dtype} of {rows.shape[1]} dimensions, "
                f"those before were {self.rows.dtype} of {self.rows.shape[1]}"
            )
        self.seen += len(rows)
        while len(rows):
            if self.held == len(self.rows):
                self._grow(self.rows)
            fits = min(len(rows), len(self.rows) - self.held)
            self.rows[self.held : self.held + fits] = rows[:fits]
            self.held += fits
            rows = rows[fits:]

    def select(
        self,
        target: int,
        progress: Progress | None = None,
        covered: np.ndarray | Tensor | None = None,
        squared: np.ndarray | None = None,
    ) -> Selection:
        """Farthest-first coreset of `target` rows, or of all that are held if those are fewer.

        Args:
            target: rows to pick.
            progress: called with (rows picked, target).
            covered: [M, D] rows of a bank from which the selection goes on.
            squared: squared distances to it of all rows that came, which saves computing them as
                long as memory has forced no reduction.

        Raises:
            ValueError: no rows have come, or rows with NaN or infinite values.
        """
        if self.rows is None or not self.held:
            raise ValueError("there are no features to select from")
        if self.held < min(target, self.seen):
            log.warning(
                "a bank of %d rows does not fit the memory bound of %.0f MB: it holds %d",
                target, self.limit / 2**20, self.held,
            )  # fmt: skip
        held = self.rows[: self.held]
        chosen = farthest_first(
            held,
            min(target, self.held),
            self.seed,
            covered=covered,
            squared=None if self.slack else squared,
            devices=devices_for(held.numel(), self.device),
            progress=progress,
        )
        picks = torch.as_tensor(chosen.indices, device=held.device)
        radii = torch.as_tensor(chosen.radii) + self.slack
        return Selection(held[picks].cpu(), radii, self.seen, chosen.before + self.slack)

    def _room(self, rows: Tensor, count: int | None) -> Tensor:
        """Room for `count` rows like these on a GPU, as far as the bound allows."""
        capacity = self.limit // (rows.shape[1] * rows.element_size())
        if capacity < 2:
            raise ValueError(f"a memory bound of {self.limit} bytes holds no two rows")
        if count and self.device.type != "cpu":
            capacity = min(capacity, max(2, count))
        return torch.empty(capacity, rows.shape[1], dtype=rows.dtype, device=self.device)

    def _grow(self, rows: Tensor) -> None:
        wider = self._room(rows, 2 * len(rows))
        if len(wider) > len(rows):
            wider[: self.held] = rows[: self.held]
            self.rows = wider
        else:
            self._reduce(rows)

    def _reduce(self, rows: Tensor) -> None:
        with warnings.catch_warnings():  # of rows that repeat: the fewer the better here
            warnings.simplefilter("ignore", UserWarning)
            kept = self.select(len(rows) // 2)
        self.slack = float(kept.radii[-1])
        self.held = len(kept.features)
        rows[: self.held] = kept.features
        log.info("features outgrew the memory bound: reduced to %d rows", self.held)


def _limit(device: torch.device) -> int:
    return int(0.6 * free_memory(device)) if device.type == "cuda" else 2 * 2**30
