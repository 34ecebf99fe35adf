"""The score of one test image under each bank that a run compares."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreRow:
    object: str
    key: str  # posix path relative to the data root
    label: int  # 0 normal, 1 anomalous
    defect: str  # "good" or the defect folder's name
    client: str | int | None  # whose test image it is; None where the test set is common
    federated: float
    centralized: float | None = None
    local: Sequence[float | None] | None = None  # one score for each client's own bank
