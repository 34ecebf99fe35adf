"""PatchCore (Roth et al., CVPR 2022): a memory bank of normal patches, and distances to it."""

import functools
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.streaming import BoundedRows, Selection
from src.models.coreset.types import Progress
from src.models.extraction import PatchGrids, Preparation, extract
from src.models.feature_cache import FeatureCache, cached_grids
from src.models.feature_transform import FeatureTransform
from src.models.features import FeatureExtractor, Size
from src.models.memory_bank import MemoryBank
from src.models.model_file import ModelFile
from src.models.scoring import (
    CodedRows,
    Prediction,
    anomaly_maps,
    exclude_own_rows,
    image_scores,
    mask_border,
)
from src.storage.tensor_file import FileError

log = logging.getLogger(__name__)

CACHED_BATCH = 32  # images from the cache that a GPU scores together


class PatchCore:
    """Anomaly detector that is fitted on normal images only.

    Args:
        backbone: wide_resnet50_2, resnet50, efficientnet_b4, efficientnet_lite0 or a timm name; or
            a FeatureExtractor, which several models may share. It is moved to `device`; `layers`,
            `pretrained` and `weights` are then ignored.
        layers: stages whose features are concatenated, shallowest first.
        coreset_percentage: the share of patches to keep, a fraction in (0, 1]: 0.1 keeps 10 %.
        device: "cuda", "cuda:1" or "cpu". Without a GPU, the CPU is used, with one warning.
        pretrained: False uses random weights, the same on every machine.
        weights: a local state dict (.safetensors, .pth) instead of the published weights.
        image_size: side of a square, or (H, W), to resize images to; None keeps each image's size.
        scale: factor for the sides of each image if image_size is None.
        normalize_brightness: give all images the same brightness and contrast.
        crop: side of a centre crop after resizing.
        patch_size: side of the neighbourhood that each patch feature averages.
        neighbors: b in the re-weighting of image scores; 1 turns it off.
        border: rows of patches along each side of an image that maps show, but scores ignore.
        seed: seed of the coreset selection.
        batch_size: images per batch on a GPU; 6.4 megapixels by default.
        workers: threads that decode images for a GPU; at most 8 by default.
        memory_limit: bytes that features may take while fitting; beyond it, greedy selection
            reduces them. By default 2 GiB on a CPU, and 60 % of a GPU's free memory.
        cache: a folder for features in half precision, of datasets whose `samples` have paths.

    Attributes:
        backbone: the feature extractor, an nn.Module.
        memory_bank: the MemoryBank, empty before `fit` or `set_memory_bank`.
        transform: the feature transform of the bank, or None.
        threshold: image score above which an image is anomalous, or None; see `calibrate`.

    Raises:
        ValueError: an argument is out of range.
        WeightsError: the backbone's weights are not available here.
    """

    def __init__(
        self,
        backbone: str | FeatureExtractor = "wide_resnet50_2",
        layers: Sequence[str] = ("layer2", "layer3"),
        coreset_percentage: float = 0.1,
        device: str = "cuda",
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        image_size: int | Size | None = None,
        scale: float = 1.0,
        normalize_brightness: bool = False,
        crop: int | None = None,
        patch_size: int = 3,
        neighbors: int = 9,
        border: int = 0,
        seed: int = 42,
        batch_size: int | None = None,
        workers: int | None = None,
        memory_limit: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        if not 0 < coreset_percentage <= 1:
            raise ValueError(f"coreset_percentage is {coreset_percentage}: a fraction in (0, 1]")
        if not 0 < scale <= 4 or (image_size is not None and scale != 1):
            raise ValueError(f"scale is {scale}: above 0, at most 4, and without an image_size")
        self.device = _available_device(str(device))
        if isinstance(backbone, str):
            backbone = FeatureExtractor(backbone, layers, pretrained, weights=weights)
        self.backbone = backbone.to(self.device)
        self.coreset_percentage, self.seed = coreset_percentage, seed
        self.neighbors, self.border = neighbors, border
        self.patch_size, self.batch_size = patch_size, batch_size
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers
        self.memory_limit = memory_limit
        self.threshold: float | None = None
        self.memory_bank = MemoryBank(self.backbone.get_feature_dim(), device=self.device)
        self.transform: FeatureTransform | None = None
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        size = size and (size[0], size[1])  # model files store a list
        interpolation = self.backbone.interpolation
        self.preparation = Preparation(size, crop, interpolation, scale, normalize_brightness)
        self.cache = None if cache is None else FeatureCache(cache, self._signature())

    def fit(self, dataset: Iterable) -> "PatchCore":
        """Fill the memory bank from normal images; returns self.

        Args:
            dataset: items are images [3, H, W] in [0, 1], or tuples (image, label, ...).

        Raises:
            ValueError: there are no images, or some are labelled anomalous.
        """
        self.set_memory_bank(self.select(dataset, self.coreset_percentage).features)
        return self

    def select(
        self,
        dataset: Iterable,
        fraction: float,
        *,
        existing: np.ndarray | None = None,
        squared_distances: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> Selection:
        """Greedy coreset of a dataset's patches, within the memory limit; the bank is unchanged.

        Args:
            dataset: as for `fit`.
            fraction: share of all patches to keep, in (0, 1]; at least one patch is kept.
            existing: [M, D] rows of a bank from which the selection continues.
            squared_distances: squared distances of all patches to it, if known.
            progress: called with (number of picks, target).
        """
        rows: BoundedRows | None = None
        for grids in self.embed(_require_normal(dataset)):
            patches = grids.features.flatten(0, 2)
            if rows is None:
                expected = operator.length_hint(dataset) * len(patches) // len(grids.features)
                rows = BoundedRows(self.memory_limit, self.seed, self.device, expected)
            rows.add(patches)
        if rows is None:
            raise ValueError("there are no features to select from")
        target = max(1, round(fraction * rows.seen))
        return rows.select(target, progress, existing, squared_distances)

    def predict(self, dataset: Iterable) -> list[np.ndarray]:
        """Anomaly maps, one [H, W] float32 array per image, at the image's own size."""
        return [self.anomaly_map(prediction) for prediction in self.score(dataset)]

    def predict_single(self, image: Tensor) -> np.ndarray:
        """Anomaly map [H, W] of one image [3, H, W] in [0, 1]."""
        return self.predict([image])[0]

    def anomaly_map(self, prediction: Prediction) -> np.ndarray:
        """Anomaly map [H, W] float32 of a prediction, at the image's own size."""
        distances = torch.as_tensor(prediction.distances, device=self.device)
        size = prediction.image_size
        return anomaly_maps(distances[None], size, self.preparation.viewport(size))[0].cpu().numpy()

    def score(
        self,
        dataset: Iterable,
        *,
        exclude_own: bool = False,
        coded: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Score each image of a dataset, in order.

        Args:
            dataset: as for `fit`, with any labels.
            exclude_own: score each image as if the bank held none of its own rows. Patch distances
                are to the whole bank all the same.
            coded: rows [n, D] of these images before coding, and the same rows after decoding, to
                find own rows that coding has changed.
            progress: called with (number of images, total).

        Raises:
            ValueError: the memory bank is empty.
        """
        if not len(self.memory_bank):
            raise ValueError("the memory bank is empty: call fit or set_memory_bank first")
        arrays = [torch.tensor(array, device=self.device) for array in coded or ()]
        coded_rows = CodedRows(self.memory_bank, *arrays) if arrays else None
        for batch in self.embed(dataset, progress):
            scores, distances = self._score_batch(batch.features, exclude_own, coded_rows)
            yield from map(Prediction, scores.tolist(), distances.cpu().numpy(), batch.image_sizes)

    def calibrate(self, dataset: Iterable, false_alarm_rate: float = 0.01) -> float:
        """Set the threshold so that about this share of normal images scores above it.

        Images that contributed to the bank are scored without their own rows.

        Raises:
            ValueError: there are no images, some are labelled anomalous, or the bank is empty or
                comes from a single image.
        """
        scores = [p.score for p in self.score(_require_normal(dataset), exclude_own=True)]
        if not np.isfinite(scores).all() or not scores:
            raise ValueError("calibrate needs images, and a bank of more than one image")
        self.threshold = float(np.quantile(scores, 1 - false_alarm_rate))
        return self.threshold

    def embed(self, dataset: Iterable, progress: Progress | None = None) -> Iterator[PatchGrids]:
        """Patch grids of a dataset's images in order, in batches; on a CPU, of one image each."""
        total, samples = operator.length_hint(dataset), getattr(dataset, "samples", None)
        extract_from = functools.partial(
            extract,
            self.backbone,
            prepare=self.preparation,
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            workers=self.workers,
        )
        if self.cache is None or samples is None:
            batches = extract_from(dataset)
        else:
            paths = [Path(sample.path) for sample in samples]
            batch_size = 1 if self.device.type == "cpu" else CACHED_BATCH
            batches = cached_grids(self.cache, dataset, paths, extract_from, batch_size)
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.features)
            if progress:
                progress(done, total)

    def get_memory_bank(self) -> np.ndarray:
        """The bank's rows [N, D]."""
        return self.memory_bank.features

    def set_memory_bank(
        self, features: np.ndarray | Tensor, transform: FeatureTransform | None = None
    ) -> None:
        """Install rows [N, D] as the bank in place of the old one, and reset the threshold.

        Args:
            features: the rows; with a transform [N, d].
            transform: applied to patches before they are compared with the rows.

        Raises:
            ValueError: features are not [N, D] with the backbone's dimension, N at least 1, and
                finite values; or the transform has another dimension.
        """
        dim = self.backbone.get_feature_dim()
        bank = MemoryBank(transform.output_dim(dim) if transform else dim, device=self.device)
        bank.add(features)
        if not len(bank):
            raise ValueError("a memory bank needs at least one row")
        self.memory_bank, self.transform, self.threshold = bank, transform, None

    def save(self, path: str | Path) -> None:
        """Write the backbone's configuration, the bank and the threshold as safetensors."""
        thresholds = {} if self.threshold is None else {"bank": self.threshold}
        transforms = {} if self.transform is None else {"bank": self.transform}
        self.as_file({"bank": self.get_memory_bank()}, thresholds, transforms).write(path)

    def as_file(
        self,
        banks: Mapping[str, np.ndarray],
        thresholds: Mapping[str, float],
        transforms: Mapping[str, FeatureTransform] = {},
    ) -> ModelFile:
        """A model file of banks whose features this model computed."""
        return ModelFile(self._config(), self.backbone.fingerprint, banks, thresholds, transforms)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cuda",
        *,
        weights: str | Path | None = None,
        bank: str | None = None,
        **options: Any,
    ) -> "PatchCore":
        """Read a model that `save` or a federated run wrote.

        Args:
            path: the .safetensors file.
            device: as for the constructor.
            weights: the local weights file, if the model was created with one.
            bank: name of the bank to install, if the file holds several (one per object).
            options: further arguments of the constructor, e.g. batch_size.

        Raises:
            FileNotFoundError: the file does not exist.
            FileError: the file is truncated, has another version, was created with other weights,
                or does not hold the bank.
        """
        file = ModelFile.read(path)
        name = file.resolve_bank(bank, path)
        config: dict[str, Any] = dict(file.config)
        source = str(config.pop("weights"))
        if weights is None and source not in ("published", "random"):
            raise FileError(f"{path} was created with the weights file {source}: pass weights=")
        pretrained = source != "random"
        model = cls(device=device, weights=weights, pretrained=pretrained, **{**config, **options})
        if model.backbone.fingerprint != file.fingerprint:
            raise FileError(
                f"{path} was created with other {config['backbone']} weights (fingerprint "
                f"{file.fingerprint}) than these ({model.backbone.fingerprint})"
            )
        model.set_memory_bank(file.banks[name], file.transforms.get(name))
        model.threshold = file.thresholds.get(name)
        return model

    def _score_batch(
        self, grids: Tensor, exclude_own: bool, coded: CodedRows | None
    ) -> tuple[Tensor, Tensor]:
        """Image scores [B] and patch distances [B, h, w] of grids [B, h, w, D]."""
        grids = grids.to(self.device)
        grids = grids if self.transform is None else self.transform.apply(grids)
        bank, patches, own = self.memory_bank, grids.flatten(1, 2), None
        neighbours = bank.neighbours(patches.flatten(0, 1))
        nearest, indices = (x.view(patches.shape[:2]) for x in neighbours)
        distances = nearest.view(grids.shape[:3])
        if exclude_own:
            nearest, indices, own = exclude_own_rows(bank, patches, nearest, indices, coded)
        inside = mask_border(nearest.view(grids.shape[:3]), self.border).flatten(1)
        return image_scores(bank, patches, inside, indices, self.neighbors, own), distances

    def _config(self) -> dict[str, object]:
        return {
            "backbone": self.backbone.backbone_name,
            "layers": self.backbone.layers,
            "coreset_percentage": self.coreset_percentage,
            "weights": self.backbone.weights,
            "image_size": self.preparation.size,
            "scale": self.preparation.scale,
            "normalize_brightness": self.preparation.normalize_brightness,
            "crop": self.preparation.crop,
            "patch_size": self.patch_size,
            "neighbors": self.neighbors,
            "border": self.border,
        }

    def _signature(self) -> dict[str, object]:
        """What cached features depend on besides the image."""
        config, keys = self._config(), ["backbone", "layers", "image_size", "crop", "patch_size"]
        keys += ["scale"] if self.preparation.scale != 1 else []
        keys += ["normalize_brightness"] if self.preparation.normalize_brightness else []
        return {
            **{key: config[key] for key in keys},
            "fingerprint": self.backbone.fingerprint,
            "precision": "float32" if self.device.type == "cpu" else "bfloat16 convolutions",
        }


def _require_normal(dataset: Iterable) -> Iterable:
    samples = getattr(dataset, "samples", ())
    anomalous = sum(sample.label != 0 for sample in samples)
    if anomalous:
        raise ValueError(f"{anomalous} of {len(samples)} images are anomalous: fit on normal ones")
    return dataset


@functools.cache
def _available_device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %r: no GPU is available here, running on the CPU", name)
        return torch.device("cpu")
    return torch.device(name)
