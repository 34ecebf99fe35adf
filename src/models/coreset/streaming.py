"""Selection from rows that arrive in parts, within a memory limit."""

import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.selection import farthest_first
from src.models.coreset.sharding import devices_for, free_memory
from src.models.coreset.types import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """A coreset of rows that arrived in parts.

    Radii are upper bounds if the rows had to be reduced to fit the memory limit.
    """

    features: Tensor  # [k, D] in the order picked; any prefix is the smaller coreset
    radii: Tensor  # [k] covering radius of all rows after each pick
    seen: int  # number of rows that arrived
    initial_radius: float  # covering radius before the first pick, by the existing rows


class BoundedRows:
    """Rows collected for a selection; greedy selection halves them when they reach a limit.

    Args:
        limit: bytes that the rows may take; by default 2 GiB on a CPU, 60 % of a GPU's free memory.
        seed: seed of the selections.
        device: where rows are stored and selections run.
        expected: number of rows that will arrive, if known. A GPU allocates memory for these first;
            a CPU allocates up to the limit, since its pages are only used as rows arrive.
    """

    def __init__(
        self,
        limit: int | None,
        seed: int,
        device: torch.device | str = "cpu",
        expected: int | None = None,
    ) -> None:
        self.seed, self.device, self.expected = seed, torch.device(device), expected
        if limit is None:
            on_gpu = self.device.type == "cuda"
            limit = int(0.6 * free_memory(self.device)) if on_gpu else 2 * 2**30
        self.limit = limit
        self.rows: Tensor | None = None  # [capacity, D]
        self.count = self.seen = 0
        self.slack = 0.0  # covering radius of all rows seen by the rows kept

    def add(self, rows: Tensor) -> None:
        """Add rows [M, D].

        Raises:
            ValueError: dimension or dtype differ from earlier rows, or the limit is below two rows.
        """
        if self.rows is None:
            self.rows = self._allocate(rows, self.expected)
        if rows.shape[1] != self.rows.shape[1] or rows.dtype != self.rows.dtype:
            raise ValueError(
                f"rows are {rows.dtype} with {rows.shape[1]} dimensions, "
                f"earlier ones were {self.rows.dtype} with {self.rows.shape[1]}"
            )
        self.seen += len(rows)
        while len(rows):
            if self.count == len(self.rows):
                self._make_room(self.rows)
            fits = min(len(rows), len(self.rows) - self.count)
            self.rows[self.count : self.count + fits] = rows[:fits]
            self.count += fits
            rows = rows[fits:]

    def select(
        self,
        target: int,
        progress: Progress | None = None,
        existing: np.ndarray | Tensor | None = None,
        squared_distances: np.ndarray | None = None,
    ) -> Selection:
        """Farthest-first coreset of `target` rows, or of all rows kept if those are fewer.

        The other arguments are those of `farthest_first`. Known distances are those of all rows
        seen; they are not used if the rows had to be reduced.

        Raises:
            ValueError: there are no rows, or they hold NaN or infinite values.
        """
        if self.rows is None or not self.count:
            raise ValueError("there are no features to select from")
        if self.count < min(target, self.seen):
            log.warning(
                "a bank of %d rows exceeds the memory limit of %.0f MB: %d rows fit",
                target, self.limit / 2**20, self.count,
            )  # fmt: skip
        rows = self.rows[: self.count]
        coreset = farthest_first(
            rows,
            min(target, self.count),
            self.seed,
            existing=existing,
            squared_distances=None if self.slack else squared_distances,
            devices=devices_for(rows.numel(), self.device),
            progress=progress,
        )
        radii = torch.as_tensor(coreset.radii) + self.slack
        initial = coreset.initial_radius + self.slack
        return Selection(rows[coreset.indices].cpu(), radii, self.seen, initial)

    def _allocate(self, rows: Tensor, count: int | None) -> Tensor:
        """Memory for rows like these: up to the limit, or on a GPU for `count` of them."""
        capacity = self.limit // (rows.shape[1] * rows.element_size())
        if capacity < 2:
            raise ValueError(f"a memory limit of {self.limit} bytes does not hold two rows")
        if count and self.device.type != "cpu":
            capacity = min(capacity, max(2, count))
        return torch.empty(capacity, rows.shape[1], dtype=rows.dtype, device=self.device)

    def _make_room(self, rows: Tensor) -> None:
        """Enlarge the memory if the limit allows, or else halve the rows."""
        larger = self._allocate(rows, 2 * len(rows))
        if len(larger) > len(rows):
            larger[: self.count] = rows[: self.count]
            self.rows = larger
            return
        with warnings.catch_warnings():  # duplicates are welcome here: they leave fewer rows
            warnings.simplefilter("ignore", UserWarning)
            kept = self.select(len(rows) // 2)
        self.slack = float(kept.radii[-1])
        self.count = len(kept.features)
        rows[: self.count] = kept.features
        log.info("features reached the memory limit: reduced to %d rows", self.count)
