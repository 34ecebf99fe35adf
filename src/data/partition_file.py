"""A partition as data: partition.json, and the check that it fits a dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.data.dataset import DataError, Sample
from src.storage.atomic import write_whole

VERSION = 1


class PartitionError(DataError):
    """A partition that these data do not allow, or a partition.json that does not fit them."""


@dataclass(frozen=True)
class ClientShare:
    """The keys of the images that one client holds, sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """How images are spread over clients, and the request that it answers."""

    kind: str
    seed: int
    column: str
    alpha: float
    clients: tuple[ClientShare, ...]

    def save(self, path: str | Path) -> None:
        """Write as JSON; a reader never sees half a file."""
        write_whole(path, json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Partition:
        """Read what `save` wrote; raises `PartitionError`, naming the file, for anything else."""
        try:
            return _parse(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise PartitionError(
                f"cannot read partition {path}: {type(error).__name__}: {error}"
            ) from error

    def check(self, train: Sequence[Sample], test: Sequence[Sample]) -> None:
        """Raise `PartitionError` unless every image of both splits has exactly one client."""
        _check_split("train", [share.train for share in self.clients], train)
        _check_split("test", [share.test for share in self.clients], test)


def _parse(content: Any) -> Partition:
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, this program reads {VERSION}")
    clients = tuple(
        ClientShare(_parse_keys(share["train"]), _parse_keys(share["test"]))
        for share in content["clients"]
    )
    return Partition(
        str(content["kind"]),
        int(content["seed"]),
        str(content["column"]),
        float(content["alpha"]),
        clients,
    )


def _parse_keys(keys: Any) -> tuple[str, ...]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TypeError("a client's train and test must be lists of keys")
    return tuple(keys)


def _check_split(split: str, shares: Iterable[Iterable[str]], samples: Sequence[Sample]) -> None:
    held = Counter(key for share in shares for key in share)
    known = {sample.key for sample in samples}
    wrong = {
        "held by no client": known - held.keys(),
        "not in the dataset": held.keys() - known,
        "held twice": {key for key, times in held.items() if times > 1},
    }
    for what, keys in wrong.items():
        if keys:
            raise PartitionError(
                f"the partition does not fit the dataset: {len(keys)} {split} images {what}, "
                f"first {min(keys)}; make the partition again, or check data.root and data.objects"
            )
