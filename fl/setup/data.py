"""From settings to the data and its partition."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from fl.config import ConfigError, Settings
from src.data import InspectionDataset, open_dataset, write_synthetic
from src.data.partition import Partition, extend_partition, make_partition

SYNTHETIC = "synthetic-1"  # folder of the generated data set in the cache


@dataclass(frozen=True)
class Split:
    """Training and test images."""

    train: InspectionDataset
    test: InspectionDataset

    def share(self, partition: Partition, client: int) -> "Split":
        """The images of one client of a partition.

        Raises:
            ConfigError: the partition has no such client.
        """
        if client >= len(partition.clients):
            raise ConfigError(
                f"the partition has {len(partition.clients)} clients, none is {client}"
            )
        keys = partition.clients[client]
        return Split(_select(self.train, keys.train), _select(self.test, keys.test))


def open_split(settings: Settings, root: str = "") -> Split:
    """Training and test images below `root`, or where the settings say.

    The synthetic data set is generated into the cache first, if it is not there.

    Raises:
        ConfigError: neither names a folder.
        DataError: the folder does not hold what was asked for.
    """
    kind, place = settings.data_kind, root or settings.data_root
    if kind != "synthetic" and not place:
        raise ConfigError("data-root: name the folder of this node's data in its --node-config")
    if kind == "synthetic" and not place:
        place = str(write_synthetic(settings.cache / SYNTHETIC))
    train = open_dataset(kind, place, settings.data_objects, "train")
    if settings.data_train_images:
        train = _draw(train, settings.seed, 0, settings.data_train_images)
    test = open_dataset(kind, place, settings.data_objects, "test")
    return Split(train, test)


def open_public_holdout(settings: Settings) -> InspectionDataset:
    """Training images a simulation treats as public: the next ones in the seed's order.

    Raises:
        DataError: the folder does not hold what was asked for.
        ConfigError: too few images are left.
    """
    train = open_dataset(settings.data_kind, settings.data_root, settings.data_objects, "train")
    holdout = _draw(train, settings.seed, settings.data_train_images, settings.data_public_holdout)
    if len(holdout) < settings.data_public_holdout * len(train.objects):
        raise ConfigError(
            f"data.public-holdout = {settings.data_public_holdout}: data.train-images = "
            f"{settings.data_train_images} leaves fewer"
        )
    return holdout


def partition_data(
    settings: Settings, data: Split, clients: int, before: Partition | None = None
) -> Partition:
    """The partition of the settings among so many clients, or the one in partition.file.

    Args:
        settings: of the run.
        data: all images.
        clients: number of clients.
        before: partition of the run that is resumed: images keep their clients, new ones get one.

    Raises:
        PartitionError: the data cannot be divided like this, or the file is of other data.
        ConfigError: the file is for another number of clients.
    """
    train, test = data.train.samples, data.test.samples
    if before and len(before.clients) == clients:
        return extend_partition(before, train, test)
    if settings.partition_file:
        partition = Partition.load(settings.partition_file)
        partition.check(train, test)
        if len(partition.clients) != clients:
            raise ConfigError(
                f"partition.file is for {len(partition.clients)} clients, not for {clients}"
            )
        return partition
    return make_partition(
        train,
        test,
        clients,
        settings.partition_kind,
        column=settings.partition_column,
        alpha=settings.partition_alpha,
        minimum=settings.partition_minimum,
        seed=settings.seed,
    )


def check_groups(settings: Settings, train: InspectionDataset, partition: Partition) -> None:
    """Refuse a partition that splits a privacy group: each client would bound only its own part.

    Raises:
        ConfigError: a group has images at several clients.
    """
    column = settings.privacy_group
    if settings.privacy_unit != "group":
        return
    group_of = {sample.key: sample.metadata.get(column, "") for sample in train.samples}
    holders: dict[str, set[int]] = {}
    for client, share in enumerate(partition.clients):
        for key in share.train:
            holders.setdefault(group_of[key], set()).add(client)
    split = sorted(group for group, clients in holders.items() if len(clients) > 1)
    if split:
        raise ConfigError(
            f"privacy.group = {column}: the images of {split[0]} and {len(split) - 1} other groups "
            "lie with several clients, which together would tell more than one may; partition by "
            f"that column, with partition.kind = attribute and partition.column = {column}"
        )


def _draw(dataset: InspectionDataset, seed: int, start: int, count: int) -> InspectionDataset:
    """Up to `count` images of each object, from position `start` of the order the seed gives."""
    order = {s.key: hashlib.sha256(f"{seed} {s.key}".encode()).digest() for s in dataset.samples}
    keys: set[str] = set()
    for name in dataset.objects:
        of_object = [sample.key for sample in dataset.samples if sample.object == name]
        keys |= set(sorted(of_object, key=order.__getitem__)[start : start + count])
    return _select(dataset, keys)


def _select(dataset: InspectionDataset, keys: Collection[str]) -> InspectionDataset:
    """The images with these keys, in the dataset's order."""
    wanted = set(keys)
    return dataset.select([i for i, s in enumerate(dataset.samples) if s.key in wanted])
