"""A partition as data: partition.json, and the check that it matches a dataset."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from src.data.dataset import DataError, Sample
from src.storage.atomic import write_whole

VERSION = 1


class PartitionError(DataError):
    """A partition that the data do not allow, or a partition.json that does not match them."""


@dataclass(frozen=True)
class ClientShare:
    """The sorted keys of one client's images."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """The assignment of images to clients, and the arguments that produced it."""

    kind: str
    seed: int
    column: str
    alpha: float
    clients: tuple[ClientShare, ...]

    def save(self, path: str | Path) -> None:
        """Write the partition as JSON, atomically."""
        write_whole(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises `PartitionError`, naming the file, for anything else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                raise ValueError(f"version is {content['version']}, expected {VERSION}")
            return TypeAdapter(cls).validate_python(content)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PartitionError(
                f"cannot read partition {path}: {type(error).__name__}: {error}; make it again"
            ) from error

    def check(self, train: Sequence[Sample], test: Sequence[Sample]) -> None:
        """Raise `PartitionError` unless every image of both splits has exactly one client."""
        _check_split("train", [key for share in self.clients for key in share.train], train)
        _check_split("test", [key for share in self.clients for key in share.test], test)


def _check_split(split: str, assigned: Sequence[str], samples: Sequence[Sample]) -> None:
    counts = Counter(assigned)
    keys = {sample.key for sample in samples}
    mismatches = {
        "without a client": keys - counts.keys(),
        "missing from the dataset": counts.keys() - keys,
        "with two clients": {key for key, count in counts.items() if count > 1},
    }
    for mismatch, wrong in mismatches.items():
        if wrong:
            raise PartitionError(
                f"the partition does not match the dataset: {len(wrong)} {split} images "
                f"{mismatch}, first {min(wrong)}; make the partition again, or check data.root "
                "and data.objects"
            )
