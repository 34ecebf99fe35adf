"""Who holds which images: partitions of a dataset among the clients of a federation.

The skews are those of the federated-learning literature: one category or attribute value a client
(feature shift), Dirichlet shares of each value (Hsu et al., 2019), and Dirichlet client sizes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from src.data.dataset import Sample
from src.data.partition_file import ClientShare, Partition, PartitionError

KINDS = ("iid", "category", "attribute", "dirichlet", "quantity")

__all__ = [
    "ClientShare",
    "Partition",
    "PartitionError",
    "extend_partition",
    "make_partition",
    "partition_table",
]

Share = list[Sample]
ValueOf = Callable[[Sample], str]


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
    """Give every training and every test image to exactly one client.

    - iid: dealt evenly at random, object by object.
    - category, attribute: each object, or value of the metadata `column`, to one client.
    - dirichlet: each value's images in shares Dirichlet(alpha), over `column` if given, else
      objects.
    - quantity: client sizes Dirichlet(alpha), contents at random.

    Test images follow the values of category and attribute; otherwise they are dealt evenly at
    random, label by label and object by object. The result depends on the samples and the seed,
    not on the order of the samples. Raises `PartitionError` where a client would hold fewer than
    `minimum` training images, and for a column that is not there.
    """
    if kind not in KINDS:
        raise PartitionError(f"unknown partition.kind {kind!r}: choose one of {', '.join(KINDS)}")
    _check_numbers(clients, alpha, minimum, seed)
    _check_samples(train, test, clients * minimum)
    train, test = (sorted(samples, key=lambda sample: sample.key) for samples in (train, test))
    value_of = _value_of(kind, column, [*train, *test])
    rng = np.random.default_rng([seed, 0])
    if kind in ("category", "attribute"):
        owners = _own_values(train, value_of, clients, minimum)
        shares = _by_owner(train, value_of, owners, clients)
        test_shares = _by_owner(test, value_of, owners, clients)
    else:
        if kind == "iid":
            shares = _deal(train, clients, _object, rng)
        else:
            shares = _skew(train, clients, value_of, alpha, rng)
        _level(shares, minimum)
        test_rng = np.random.default_rng([seed, 1])
        test_shares = _deal(test, clients, lambda s: f"{s.label} {s.object}", test_rng)
    held = (
        ClientShare(_keys(mine), _keys(tests))
        for mine, tests in zip(shares, test_shares, strict=True)
    )
    return Partition(kind, seed, column, alpha, tuple(held))


def extend_partition(
    partition: Partition, train: Sequence[Sample], test: Sequence[Sample]
) -> Partition:
    """The partition of a dataset that has grown: images keep their client, new ones get one.

    A new image goes to a client at random, by how many images of its value each holds (its object,
    or what the partition goes by; of a test image its label and object, where clients have no
    values of their own); one of a value that nobody holds, to the client with fewest images.
    Raises `PartitionError` where images have gone.
    """
    gone = _gone(partition, [*train, *test])
    if gone:
        raise PartitionError(
            f"{len(gone)} images of the partition have gone, first {min(gone)}: a run can go on "
            "with more images, not with fewer"
        )
    value_of = _value_of(partition.kind, partition.column, [*train, *test])
    owned = partition.kind in ("category", "attribute")
    stratum = value_of if owned else lambda s: f"{s.label} {s.object}"
    rng = np.random.default_rng([partition.seed, 2])
    kept = partition.clients
    shares = _extend([set(client.train) for client in kept], train, value_of, rng)
    test_shares = _extend([set(client.test) for client in kept], test, stratum, rng)
    held = (
        ClientShare(_keys(mine), _keys(tests))
        for mine, tests in zip(shares, test_shares, strict=True)
    )
    return replace(partition, clients=tuple(held))


def partition_table(
    partition: Partition, train: Sequence[Sample], by: str | None = None
) -> tuple[list[str], list[list[int]]]:
    """Training images a client (rows) and value (columns) of metadata column `by`, or of object.

    Returns the sorted values and one row of counts a client. The partition must fit `train`
    (`Partition.check`).
    """
    value_of = _value_of("attribute", by, train) if by else _object
    values = {sample.key: value_of(sample) for sample in train}
    names = sorted(set(values.values()))
    counts = [Counter(values[key] for key in share.train) for share in partition.clients]
    return names, [[count[name] for name in names] for count in counts]


def _check_numbers(clients: int, alpha: float, minimum: int, seed: int) -> None:
    if clients < 1 or minimum < 0 or seed < 0 or not 0 < alpha < float("inf"):
        raise PartitionError(
            f"clients ({clients}) must be at least 1, minimum ({minimum}) and seed ({seed}) at "
            f"least 0, partition.alpha ({alpha}) positive and finite"
        )


def _check_samples(train: Sequence[Sample], test: Sequence[Sample], needed: int) -> None:
    if len(train) < needed:
        raise PartitionError(
            f"{len(train)} training images, but clients × minimum is {needed}: ask for fewer "
            "clients"
        )
    anomalous = [sample.key for sample in train if sample.label]
    if anomalous:
        raise PartitionError(f"{len(anomalous)} anomalous training images, first {anomalous[0]}")
    twice = [key for key, times in Counter(s.key for s in chain(train, test)).items() if times > 1]
    if twice:
        raise PartitionError(f"{len(twice)} keys are listed twice, first {twice[0]}")


def _object(sample: Sample) -> str:
    return sample.object


def _value_of(kind: str, column: str, samples: Sequence[Sample]) -> ValueOf:
    """What a partition of this kind groups images by."""
    if kind == "quantity":
        return lambda sample: ""
    if kind != "attribute" and not (kind == "dirichlet" and column):
        return _object
    lacking = [sample.key for sample in samples if column not in sample.metadata]
    if lacking:
        present = sorted(set().union(*(sample.metadata for sample in samples)))
        raise PartitionError(
            f"{len(lacking)} of {len(samples)} images have no metadata column {column!r} "
            f"(partition.column), first {lacking[0]}; columns there are: "
            f"{', '.join(present) or 'none (no metadata.csv)'}"
        )
    return lambda sample: sample.metadata[column]


def _own_values(train: Share, value_of: ValueOf, clients: int, minimum: int) -> dict[str, int]:
    """Value -> client: values dealt largest first, each to the client with fewest images.

    Clients are numbered in the order of the first value that each was dealt.
    """
    counts = Counter(map(value_of, train))
    if len(counts) < clients:
        raise PartitionError(
            f"{len(counts)} values ({_counted(counts)}) for {clients} clients: ask for at most "
            f"{len(counts)} clients, or another partition.kind"
        )
    by_size = sorted(counts, key=lambda value: (-counts[value], value))
    owners = {value: client for client, value in enumerate(sorted(by_size[:clients]))}
    sizes = [counts[value] for value in owners]
    for value in by_size[clients:]:
        owners[value] = int(np.argmin(sizes))
        sizes[owners[value]] += counts[value]
    if min(sizes) < minimum:
        raise PartitionError(
            f"a client would hold {min(sizes)} training images, minimum {minimum}, with the values "
            f"{_counted(counts)}: ask for fewer clients, or another partition.kind"
        )
    return owners


def _by_owner(
    samples: Share, value_of: ValueOf, owners: dict[str, int], clients: int
) -> list[Share]:
    """Each value's images to its owner; values without one, to the client with fewest images."""
    groups = _group(samples, value_of)
    shares: list[Share] = [[] for _ in range(clients)]
    for value in sorted(groups, key=lambda value: (value not in owners, -len(groups[value]))):
        owner = owners.get(value, int(np.argmin([len(share) for share in shares])))
        shares[owner].extend(groups[value])
    return shares


def _deal(samples: Share, clients: int, stratum: ValueOf, rng: np.random.Generator) -> list[Share]:
    """Deal like cards, stratum after stratum: sizes differ by at most one, overall and in each."""
    groups = _group(samples, stratum)
    cards = [card for name in sorted(groups) for card in _shuffled(groups[name], rng)]
    return [cards[client::clients] for client in range(clients)]


def _skew(
    samples: Share,
    clients: int,
    value_of: ValueOf,
    alpha: float,
    rng: np.random.Generator,
) -> list[Share]:
    """Cut each value's shuffled images into shares drawn from a symmetric Dirichlet(alpha)."""
    groups = _group(samples, value_of)
    shares: list[Share] = [[] for _ in range(clients)]
    for value in sorted(groups):
        images = _shuffled(groups[value], rng)
        fractions = np.cumsum(rng.dirichlet(np.full(clients, alpha)))
        cuts = np.rint(fractions[:-1] * len(images)).astype(int)
        for share, piece in zip(shares, np.split(np.arange(len(images)), cuts), strict=True):
            share.extend(images[index] for index in piece)
    return shares


def _level(shares: list[Share], minimum: int) -> None:
    """Move images from the largest client to the smallest until all hold the minimum."""
    sizes = [len(share) for share in shares]
    while min(sizes) < minimum:
        donor, receiver = int(np.argmax(sizes)), int(np.argmin(sizes))
        shares[receiver].append(shares[donor].pop())
        sizes[donor] -= 1
        sizes[receiver] += 1


def _extend(
    held: list[set[str]], samples: Sequence[Sample], value_of: ValueOf, rng: np.random.Generator
) -> list[Share]:
    """Samples by client: those whose keys it holds, and its part of those that nobody holds."""
    ordered = sorted(samples, key=lambda sample: sample.key)
    shares = [[sample for sample in ordered if sample.key in keys] for keys in held]
    counts = [Counter(map(value_of, share)) for share in shares]
    known = set().union(*held)
    for sample in ordered:
        if sample.key not in known:
            odds = np.array([count[value_of(sample)] for count in counts], float)
            sizes = [len(share) for share in shares]
            draw = rng.choice(len(odds), p=odds / odds.sum()) if odds.any() else np.argmin(sizes)
            shares[int(draw)].append(sample)
    return shares


def _gone(partition: Partition, samples: Sequence[Sample]) -> set[str]:
    held = {key for share in partition.clients for key in (*share.train, *share.test)}
    return held - {sample.key for sample in samples}


def _group(samples: Share, value_of: ValueOf) -> dict[str, Share]:
    groups: dict[str, Share] = defaultdict(list)
    for sample in samples:
        groups[value_of(sample)].append(sample)
    return groups


def _shuffled(samples: Share, rng: np.random.Generator) -> Share:
    return [samples[index] for index in rng.permutation(len(samples))]


def _keys(share: Share) -> tuple[str, ...]:
    return tuple(sorted(sample.key for sample in share))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{value!r}: {count}" for value, count in sorted(counts.items()))
