"""Partitions of a dataset among the clients of a federation.

The skews are those of the federated-learning literature: one category or attribute value per
client (feature shift), Dirichlet shares of each value (Hsu et al., 2019), and Dirichlet client
sizes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter

from src.data.dataset import DataError, Sample
from src.storage.atomic import write_whole

VERSION = 1  # of partition.json
KINDS = ("iid", "category", "attribute", "dirichlet", "quantity")

Share = list[Sample]
GroupBy = Callable[[Sample], Any]  # the value that images are grouped by

_object = attrgetter("object")
_label_and_object = attrgetter("label", "object")


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
        _check_keys("train", [key for share in self.clients for key in share.train], train)
        _check_keys("test", [key for share in self.clients for key in share.test], test)


def make_partition(
    train: Sequence[Sample],
    test: Sequence[Sample],
    clients: int,
    kind: str,
    *,
    column: str = "",
    alpha: float = 0.5,
    minimum: int = 1,
    seed: int = 42,
) -> Partition:
    """Assign every training and every test image to exactly one client.

    - iid: random shares of equal size, stratified by object.
    - category, attribute: all images of an object, or of a value of the metadata `column`, to one
      client.
    - dirichlet: Dirichlet(alpha) shares of each value of `column`, or of each object without one.
    - quantity: client sizes from Dirichlet(alpha), with random contents.

    Test images follow the training images for category and attribute; otherwise they are split
    into random shares of equal size, stratified by label and object. The result depends on the
    samples and the seed, not on the order of the samples.

    Raises `PartitionError` if a client would get fewer than `minimum` training images, if images
    lack `column`, and for invalid arguments.
    """
    if kind not in KINDS:
        raise PartitionError(f"unknown partition.kind {kind!r}: choose one of {', '.join(KINDS)}")
    if clients < 1 or minimum < 0 or seed < 0 or not 0 < alpha < float("inf"):
        raise PartitionError(
            f"clients ({clients}) must be at least 1, minimum ({minimum}) and seed ({seed}) at "
            f"least 0, partition.alpha ({alpha}) positive and finite"
        )
    _check_samples(train, test, clients * minimum)
    train, test = (sorted(samples, key=attrgetter("key")) for samples in (train, test))
    group_by = _group_by(kind, column, [*train, *test])
    rng = np.random.default_rng([seed, 0])
    if kind in ("category", "attribute"):
        owners = _assign_values(train, group_by, clients, minimum)
        train_shares = _split_by_owner(train, group_by, owners, clients)
        test_shares = _split_by_owner(test, group_by, owners, clients)
    else:
        if kind == "iid":
            train_shares = _split_evenly(train, clients, _object, rng)
        else:
            train_shares = _split_dirichlet(train, clients, group_by, alpha, rng)
        while len(smallest := min(train_shares, key=len)) < minimum:
            smallest.append(max(train_shares, key=len).pop())
        test_rng = np.random.default_rng([seed, 1])
        test_shares = _split_evenly(test, clients, _label_and_object, test_rng)
    return Partition(kind, seed, column, alpha, _client_shares(train_shares, test_shares))


def extend_partition(
    partition: Partition, train: Sequence[Sample], test: Sequence[Sample]
) -> Partition:
    """Extend a partition to a dataset that has grown; assigned images keep their client.

    A new image goes to a random client, with probabilities proportional to the clients' counts of
    images of the same value: the object or the partition's column; label and object for a test
    image, unless the partition is by category or attribute. If no client has that value, the image
    goes to the client with the fewest images.

    Raises `PartitionError` if images of the partition are missing.
    """
    assigned = {key for share in partition.clients for key in (*share.train, *share.test)}
    missing = assigned - {sample.key for sample in (*train, *test)}
    if missing:
        raise PartitionError(
            f"{len(missing)} images of the partition are missing, first {min(missing)}: restore "
            "them; a run can resume with more images, but not with fewer"
        )
    group_by = _group_by(partition.kind, partition.column, [*train, *test])
    owned = partition.kind in ("category", "attribute")
    rng = np.random.default_rng([partition.seed, 2])
    test_group_by = group_by if owned else _label_and_object
    train_shares = _extend([set(c.train) for c in partition.clients], train, group_by, rng)
    test_shares = _extend([set(c.test) for c in partition.clients], test, test_group_by, rng)
    return replace(partition, clients=_client_shares(train_shares, test_shares))


def partition_table(
    partition: Partition, train: Sequence[Sample], by: str | None = None
) -> tuple[list[str], list[list[int]]]:
    """Count training images per client (rows) and value (columns).

    Values are those of the metadata column `by`, or the objects. Returns the sorted values and one
    row of counts per client. The partition must match `train` (`Partition.check`).
    """
    group_by = _group_by("attribute", by, train) if by else _object
    values = {sample.key: group_by(sample) for sample in train}
    names = sorted(set(values.values()))
    counts = [Counter(values[key] for key in share.train) for share in partition.clients]
    return names, [[count[name] for name in names] for count in counts]


def _check_samples(train: Sequence[Sample], test: Sequence[Sample], needed: int) -> None:
    if len(train) < needed:
        raise PartitionError(
            f"{len(train)} training images, but clients × minimum is {needed}: use fewer clients"
        )
    anomalous = [sample.key for sample in train if sample.label]
    if anomalous:
        raise PartitionError(
            f"{len(anomalous)} anomalous training images, first {anomalous[0]}: move them to test"
        )
    counts = Counter(sample.key for sample in (*train, *test))
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise PartitionError(f"{len(repeated)} keys are listed twice, first {repeated[0]}")


def _group_by(kind: str, column: str, samples: Sequence[Sample]) -> GroupBy:
    if kind == "quantity":
        return lambda sample: ""
    if kind != "attribute" and not (kind == "dirichlet" and column):
        return _object
    lacking = [sample.key for sample in samples if column not in sample.metadata]
    if lacking:
        columns = sorted(set().union(*(sample.metadata for sample in samples)))
        raise PartitionError(
            f"{len(lacking)} of {len(samples)} images have no metadata column {column!r} "
            f"(partition.column), first {lacking[0]}; available columns: "
            f"{', '.join(columns) or 'none (no metadata.csv)'}"
        )
    return lambda sample: sample.metadata[column]


def _assign_values(
    train: Share, group_by: GroupBy, clients: int, minimum: int
) -> dict[str, int]:  # value -> client
    """Assign values in order of size, each to the client with the fewest images.

    Clients are numbered in the sorted order of their largest values.
    """
    counts = Counter(map(group_by, train))
    listing = ", ".join(f"{value!r}: {count}" for value, count in sorted(counts.items()))
    if len(counts) < clients:
        raise PartitionError(
            f"{len(counts)} values ({listing}) for {clients} clients: use at most {len(counts)} "
            "clients, or another partition.kind"
        )
    by_size = sorted(counts, key=lambda value: (-counts[value], value))
    owners = {value: client for client, value in enumerate(sorted(by_size[:clients]))}
    sizes = [counts[value] for value in owners]
    for value in by_size[clients:]:
        owners[value] = int(np.argmin(sizes))
        sizes[owners[value]] += counts[value]
    if min(sizes) < minimum:
        raise PartitionError(
            f"a client would get {min(sizes)} training images, minimum {minimum}, with the values "
            f"{listing}: use fewer clients, or another partition.kind"
        )
    return owners


def _split_by_owner(
    samples: Share, group_by: GroupBy, owners: dict[str, int], clients: int
) -> list[Share]:
    """Give each value to its owner, and each value without one to the smallest client."""
    groups = _group(samples, group_by)
    shares: list[Share] = [[] for _ in range(clients)]
    for value in sorted(groups, key=lambda value: (value not in owners, -len(groups[value]))):
        owner = owners.get(value, int(np.argmin([len(share) for share in shares])))
        shares[owner].extend(groups[value])
    return shares


def _split_evenly(
    samples: Share, clients: int, stratum: GroupBy, rng: np.random.Generator
) -> list[Share]:
    """Deal shuffled strata in turn: sizes differ by at most one, overall and in each stratum."""
    groups = _group(samples, stratum)
    deck = [sample for name in sorted(groups) for sample in _shuffle(groups[name], rng)]
    return [deck[client::clients] for client in range(clients)]


def _split_dirichlet(
    samples: Share, clients: int, group_by: GroupBy, alpha: float, rng: np.random.Generator
) -> list[Share]:
    groups = _group(samples, group_by)
    shares: list[Share] = [[] for _ in range(clients)]
    for value in sorted(groups):
        images = _shuffle(groups[value], rng)
        fractions = np.cumsum(rng.dirichlet(np.full(clients, alpha)))
        cuts = np.rint(fractions[:-1] * len(images)).astype(int)
        for share, part in zip(shares, np.split(np.arange(len(images)), cuts), strict=True):
            share.extend(images[index] for index in part)
    return shares


def _extend(
    assigned: list[set[str]], samples: Sequence[Sample], group_by: GroupBy, rng: np.random.Generator
) -> list[Share]:
    ordered = sorted(samples, key=attrgetter("key"))
    shares = [[sample for sample in ordered if sample.key in keys] for keys in assigned]
    counts = [Counter(map(group_by, share)) for share in shares]
    for sample in ordered:
        if not any(sample.key in keys for keys in assigned):
            weights = np.array([count[group_by(sample)] for count in counts], float)
            if weights.any():
                client = int(rng.choice(len(shares), p=weights / weights.sum()))
            else:
                client = int(np.argmin([len(share) for share in shares]))
            shares[client].append(sample)
    return shares


def _group(samples: Share, group_by: GroupBy) -> dict[str, Share]:
    groups: dict[str, Share] = defaultdict(list)
    for sample in samples:
        groups[group_by(sample)].append(sample)
    return groups


def _shuffle(samples: Share, rng: np.random.Generator) -> Share:
    return [samples[index] for index in rng.permutation(len(samples))]


def _client_shares(train: list[Share], test: list[Share]) -> tuple[ClientShare, ...]:
    keys = ([tuple(sorted(s.key for s in share)) for share in shares] for shares in (train, test))
    return tuple(ClientShare(*pair) for pair in zip(*keys, strict=True))


def _check_keys(split: str, assigned: Sequence[str], samples: Sequence[Sample]) -> None:
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
