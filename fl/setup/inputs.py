"""From settings to the things a run works with: the model, the data, the partition."""

import functools
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import torch
from threadpoolctl import threadpool_limits

from fl.config import ConfigError, Settings
from fl.results.progress import FOLDER as PROGRESS
from src.data import InspectionDataset, open_dataset, write_synthetic
from src.data.partition import Partition, extend_partition, make_partition
from src.models import FeatureExtractor, PatchCore

SYNTHETIC = "synthetic-1"
SCORES = "scores"  # where clients of a simulation leave what they scored, while the run goes on


@dataclass(frozen=True)
class Split:
    """Training and test images."""

    train: InspectionDataset
    test: InspectionDataset

    def share(self, partition: Partition, client: int) -> "Split":
        """What one client of a partition holds of this.

        Raises:
            ConfigError: the partition has no such client.
        """
        if client >= len(partition.clients):
            raise ConfigError(
                f"the partition has {len(partition.clients)} clients, none is {client}"
            )
        held = partition.clients[client]
        return Split(_having(self.train, held.train), _having(self.test, held.test))


def build_model(settings: Settings) -> PatchCore:
    """The model of these settings with an empty bank; the same object for the same settings.

    Raises:
        ConfigError: an unknown backbone, or one without the layers asked for.
        WeightsError: backbone weights that cannot be had here.
    """
    layers = tuple(settings.model_layers.split(","))
    try:
        return _model(
            backbone=_extractor(settings.model_backbone, layers, settings.model_weights),
            coreset_percentage=settings.model_coreset_percentage,
            image_size=settings.image_size,
            scale=settings.image_scale,
            even_light=settings.data_normalize_brightness,
            crop=settings.data_crop or None,
            neighbors=settings.model_neighbors,
            border=settings.model_border,
            seed=settings.seed,
            memory_limit=settings.model_memory_limit_mb * 2**20 or None,
            cache=settings.cache,
        )
    except ValueError as error:
        raise ConfigError(f"model.backbone, model.layers: {error}") from error


@functools.lru_cache(maxsize=1)  # its weights take long to load, and runs of a sweep share them
def _extractor(backbone: str, layers: tuple[str, ...], weights: str) -> FeatureExtractor:
    local = None if weights in ("", "random") else weights
    return FeatureExtractor(backbone, layers, pretrained=weights != "random", weights=local)


@functools.lru_cache(maxsize=1)
def _model(**arguments: object) -> PatchCore:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PatchCore(device=device, **arguments)  # type: ignore[arg-type]


def open_split(settings: Settings, root: str = "") -> Split:
    """Training and test images below `root`, or where the settings say.

    The synthetic set is written into the cache first, where there is none.

    Raises:
        ConfigError: neither names a place.
        DataError: the root does not hold what was asked for.
    """
    kind, place = settings.data_kind, root or settings.data_root
    if kind != "synthetic" and not place:
        raise ConfigError("data-root: name the folder of this node's data in its --node-config")
    if kind == "synthetic" and not place:
        place = str(write_synthetic(settings.cache / SYNTHETIC))
    train = open_dataset(kind, place, settings.data_objects, "train")
    if settings.data_train_images:
        train = _drawn(train, settings.seed, 0, settings.data_train_images)
    test = open_dataset(kind, place, settings.data_objects, "test")
    return Split(train, test)


def open_public_holdout(settings: Settings) -> InspectionDataset:
    """The training images that a simulation takes as public: next in the seed's draw after its own.

    Raises:
        DataError: the root does not hold what was asked for.
        ConfigError: no images are left for it.
    """
    train = open_dataset(settings.data_kind, settings.data_root, settings.data_objects, "train")
    holdout = _drawn(train, settings.seed, settings.data_train_images, settings.data_public_holdout)
    if len(holdout) < settings.data_public_holdout * len(train.objects):
        raise ConfigError(
            f"data.public-holdout = {settings.data_public_holdout}: data.train-images = "
            f"{settings.data_train_images} leaves fewer"
        )
    return holdout


def partition_data(
    settings: Settings, data: Split, clients: int, before: Partition | None = None
) -> Partition:
    """The partition of the settings among this many clients, or the one in partition.file.

    `before` is that of a run that goes on: images keep their clients, new ones get one.

    Raises:
        PartitionError: the data cannot be divided so, or the file is not one of this data.
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


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch, FAISS and NumPy use this many threads inside.

    Rounding in a matrix product depends on the number of threads: a client that always has the
    same number computes the same bank in every engine. And clients on one machine whose NumPy
    takes every core get in each other's way: two at a time were five times slower each.
    """
    before, before_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        faiss.omp_set_num_threads(before_faiss)


def run_folder(settings: Settings, run_id: int) -> Path:
    """The run directory: `out`, or one in the cache by the run's number."""
    folder = Path(settings.out) if settings.out else settings.cache / "runs" / str(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_scratch(folder: Path) -> None:
    """Remove what is in the run directory only while a run goes on.

    What a run that broke off left there must not be taken for that of the next.
    """
    for scratch in (SCORES, PROGRESS):
        shutil.rmtree(folder / scratch, ignore_errors=True)


def _drawn(dataset: InspectionDataset, seed: int, start: int, count: int) -> InspectionDataset:
    """Of each object at most so many images, from a place of the seed's draw on."""
    drawn = {s.key: hashlib.sha256(f"{seed} {s.key}".encode()).digest() for s in dataset.samples}
    kept: set[str] = set()
    for name in dataset.objects:
        keys = [sample.key for sample in dataset.samples if sample.object == name]
        kept |= set(sorted(keys, key=drawn.__getitem__)[start : start + count])
    return _having(dataset, tuple(kept))


def _having(dataset: InspectionDataset, keys: tuple[str, ...]) -> InspectionDataset:
    wanted = set(keys)
    found = [i for i, sample in enumerate(dataset.samples) if sample.key in wanted]
    return dataset.select(found)
