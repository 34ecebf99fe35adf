"""PatchCore (Roth et al., CVPR 2022): a memory bank of normal patches, and distances to it."""

import functools
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.models.coreset.streaming import BoundedRows, Selection
from src.models.coreset.types import Progress
from src.models.extraction import PatchGrid, PatchGrids, Preparation, Size, extract, runs
from src.models.feature_cache import FeatureCache, through_cache
from src.models.feature_transform import Frame
from src.models.features import FeatureExtractor
from src.models.memory_bank import FileError, MemoryBank
from src.models.model_file import ModelFile
from src.models.scoring import (
    CodedRows,
    anomaly_maps,
    image_scores,
    leave_out_own,
    without_border,
)

log = logging.getLogger(__name__)

CACHED_TOGETHER = 32  # images from the cache that are scored together on a GPU


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        score: image score, Euclidean, larger is more anomalous.
        distances: [h, w] float32, of each patch to the bank; `PatchCore.draw` makes the map of it.
        image_size: (H, W) of the image.
    """

    score: float
    distances: np.ndarray
    image_size: Size


class PatchCore:
    """Anomaly detector that is fitted on normal images only.

    Args:
        backbone: wide_resnet50_2, resnet50, efficientnet_b4, efficientnet_lite0 or a timm name;
            or a FeatureExtractor, which models may share. It brings its own layers and weights:
            `layers`, `pretrained` and `weights` do not apply then. It is moved to `device`.
        layers: stages whose features are joined, shallowest first.
        coreset_percentage: the share of patches kept, as a fraction in (0, 1]: 0.1 keeps 10 %.
        device: "cuda", "cuda:1", "cpu"; a GPU that is not there is replaced by the CPU, said once.
        pretrained: False takes random weights, the same on every machine.
        weights: a local state dict (.safetensors, .pth) in place of the published weights.
        image_size: side of a square, or (H, W), that images are resized to; None keeps each
            image's own size.
        scale: with image_size None, what each image's own sides are multiplied with.
        even_light: bring brightness and contrast of all images to the same values, where lighting
            differs from image to image and is no defect.
        crop: side of a centre crop after resizing.
        patch_size: side of the neighbourhood each patch feature averages.
        neighbors: b of the score's re-weighting; 1 turns it off.
        border: rows of patches along each side of an image that do not count in its score; a
            backbone pads with zeros there. Maps show them all the same.
        seed: start of the coreset selection.
        batch_size: images a batch on a GPU; 6.4 megapixels when left out.
        workers: threads that decode images for a GPU; at most 8 when left out.
        memory_limit: bytes that features may take while fitting; beyond it they are reduced by
            greedy selection on the way. None for 2 GiB on a CPU, and 60 % of a GPU's free memory.
        cache: a folder in which patch features are kept and looked up, for datasets whose
            `samples` carry paths. They are in half precision then.

    Attributes:
        backbone: the feature extractor, an nn.Module.
        memory_bank: the MemoryBank, empty until `fit` or `set_memory_bank`.
        frame: the coordinates in which the bank lies, or None for the features' own.
        threshold: image score from which on an image is called anomalous, or None; see `calibrate`.

    Raises:
        ValueError: an argument out of range.
        WeightsError: backbone weights that cannot be had here.
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
        even_light: bool = False,
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
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.device = _device(str(device))
        if isinstance(backbone, str):
            backbone = FeatureExtractor(backbone, layers, pretrained, weights=weights)
        self.backbone = backbone.to(self.device)
        self.coreset_percentage = coreset_percentage
        self.neighbors, self.border = neighbors, border
        self.seed = seed
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.workers = _workers(self.device) if workers is None else workers
        self.memory_limit = memory_limit
        self.threshold: float | None = None
        self.memory_bank = MemoryBank(self.backbone.get_feature_dim(), device=self.device)
        self.frame: Frame | None = None
        if not 0 < scale <= 4 or (size is not None and scale != 1):
            raise ValueError(f"scale is {scale}: above 0, at most 4, and without an image_size")
        fixed = None if size is None else (size[0], size[1])
        self.preparation = Preparation(fixed, crop, self.backbone.interpolation, scale, even_light)
        self.cache = None if cache is None else FeatureCache(cache, self._signature())

    def fit(self, dataset: Iterable) -> "PatchCore":
        """Fill the memory bank from normal images; returns self.

        Args:
            dataset: items are images [3, H, W] in [0, 1], or tuples (image, label, ...).

        Raises:
            ValueError: no images, or images labelled anomalous.
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
        extracting: Progress | None = None,
        selecting: Progress | None = None,
    ) -> Selection:
        """Greedy coreset of a dataset's patches, within the memory bound; the bank stays as it is.

        Args:
            dataset: as for `fit`.
            fraction: of all patches to keep, in (0, 1]; at least one is.
            existing: [M, D] rows of a bank from which the selection continues.
            squared_distances: squared distances of all patches to it, if known.
            extracting, selecting: called with (done, total) as the two steps go on.
        """
        rows: BoundedRows | None = None
        for grids in self.embed(_normal_only(dataset), extracting):
            patches = grids.features.flatten(0, 2)
            if rows is None:
                expected = operator.length_hint(dataset) * len(patches) // len(grids.features)
                rows = BoundedRows(self.memory_limit, self.seed, self.device, expected)
            rows.add(patches)
        if rows is None:
            raise ValueError("there are no features to select from")
        return rows.select(
            max(1, round(fraction * rows.seen)), selecting, existing, squared_distances
        )

    def predict(self, dataset: Iterable) -> list[np.ndarray]:
        """Anomaly maps, one [H, W] float32 array an image, at the image's own size."""
        return [
            anomaly_map
            for sizes, _, distances in self._judge(dataset)
            for anomaly_map in self._maps(distances, sizes)
        ]

    def predict_single(self, image: Tensor) -> np.ndarray:
        """Anomaly map [H, W] of one image [3, H, W] in [0, 1]."""
        return self.predict([image])[0]

    def score(
        self,
        dataset: Iterable,
        *,
        without_own: bool = False,
        coded: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Score and patch distances of each image, in order.

        Args:
            dataset: as for `fit`, labels of any kind.
            without_own: score as if the bank held no row of the image itself; for normal images
                that helped to fill it. The patch distances are to the whole bank all the same.
            coded: rows [n, D] of these images as they were, and as they are where the bank holds
                them, if coding has changed them; without_own finds them by this.
            progress: called with (done, total).

        Raises:
            ValueError: an empty memory bank.
        """
        for sizes, scores, distances in self._judge(dataset, without_own, coded, progress):
            shown = distances.cpu().numpy()
            for score, of_image, size in zip(scores.tolist(), shown, sizes, strict=True):
                yield Prediction(score, of_image, size)

    def draw(self, prediction: Prediction) -> np.ndarray:
        """Anomaly map [H, W] float32 of a prediction, at the image's own size."""
        distances = torch.as_tensor(prediction.distances, device=self.device)
        return next(self._maps(distances[None], [prediction.image_size]))

    def calibrate(self, dataset: Iterable, false_alarm_rate: float = 0.01) -> float:
        """Set the threshold from normal images, so that about this share of them lies above it.

        Images that helped to fill the bank are scored without their own rows.

        Raises:
            ValueError: no images, images labelled anomalous, an empty bank, or one that is all
                of a single image's rows.
        """
        scores = [p.score for p in self.score(_normal_only(dataset), without_own=True)]
        if not np.isfinite(scores).all() or not scores:
            raise ValueError(
                "calibrate needs images, and a bank that does not come from just one of them"
            )
        self.threshold = float(np.quantile(scores, 1 - false_alarm_rate))
        return self.threshold

    def embed(self, dataset: Iterable, progress: Progress | None = None) -> Iterator[PatchGrids]:
        """Patch grids of a dataset's images in order, from the cache where it has them.

        They come by the batch; on a CPU a batch is one image.
        """
        total, samples = operator.length_hint(dataset), getattr(dataset, "samples", None)
        if self.cache is None or samples is None:
            batches = self._extract(dataset)
        else:
            paths = [Path(sample.path) for sample in samples]
            grids = through_cache(self.cache, dataset, paths, self._extract)
            batches = _together(grids, 1 if self.device.type == "cpu" else CACHED_TOGETHER)
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.features)
            if progress:
                progress(done, total)

    def get_memory_bank(self) -> np.ndarray:
        """The bank's rows [N, D]."""
        return self.memory_bank.features

    def set_memory_bank(self, features: np.ndarray | Tensor, frame: Frame | None = None) -> None:
        """Install rows [N, D] as the bank, in place of what it held; the threshold goes with that.

        Args:
            features: the rows; of a bank that lies in a frame [N, d].
            frame: its coordinates, in which patches are then compared.

        Raises:
            ValueError: not [N, D] of the backbone's dimension, N at least 1, all values finite; a
                frame of another dimension.
        """
        dim = self.backbone.get_feature_dim()
        bank = MemoryBank(frame.dim(dim) if frame else dim, device=self.device)
        bank.add(features)
        if not len(bank):
            raise ValueError("a memory bank needs at least one row")
        self.memory_bank, self.frame, self.threshold = bank, frame, None

    def save(self, path: str | Path) -> None:
        """Write the backbone's configuration, the bank and the threshold as safetensors."""
        thresholds = {} if self.threshold is None else {"bank": self.threshold}
        frames = {} if self.frame is None else {"bank": self.frame}
        self.as_file({"bank": self.get_memory_bank()}, thresholds, frames).write(path)

    def as_file(
        self,
        banks: Mapping[str, np.ndarray],
        thresholds: Mapping[str, float],
        frames: Mapping[str, Frame] = {},
    ) -> ModelFile:
        """A model file of banks whose features were made as this model makes them."""
        return ModelFile(self._config(), self.backbone.fingerprint, banks, thresholds, frames)

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
        """Read a model that `save`, or a run, wrote.

        Args:
            path: the .safetensors file.
            device: as for the constructor.
            weights: the local weights file, where the model was made from one.
            bank: which bank to install, where the file holds several (a run's objects).
            options: further arguments of the constructor, e.g. batch_size.

        Raises:
            FileNotFoundError: no such file.
            FileError: truncated, of another version, made with other weights, or no such bank.
        """
        file = ModelFile.read(path)
        name = file.bank_named(bank, path)
        config: dict[str, Any] = dict(file.config)
        made_with = str(config.pop("weights"))
        if weights is None and made_with not in ("published", "random"):
            raise FileError(f"{path} was made with the weights file {made_with}: name it, weights=")
        pretrained = made_with != "random"
        model = cls(device=device, weights=weights, pretrained=pretrained, **{**config, **options})
        if model.backbone.fingerprint != file.fingerprint:
            raise FileError(
                f"{path} was made with other {config['backbone']} weights (fingerprint "
                f"{file.fingerprint}) than these ({model.backbone.fingerprint})"
            )
        model.set_memory_bank(file.banks[name], file.frames.get(name))
        model.threshold = file.thresholds.get(name)
        return model

    def _judge(
        self,
        dataset: Iterable,
        without_own: bool = False,
        coded: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[list[Size], Tensor, Tensor]]:
        """Images by the batch: their sizes, scores [B] and patch distances [B, h, w].

        All of it stays on the device.
        """
        if not len(self.memory_bank):
            raise ValueError("the memory bank is empty: call fit or set_memory_bank first")
        known = None
        if coded:
            rows = (torch.tensor(each, device=self.device) for each in coded)
            known = CodedRows(self.memory_bank, *rows)
        for batch in self.embed(dataset, progress):
            grids = batch.features.to(self.device)
            yield batch.image_sizes, *self._scores(grids, without_own, known)

    def _scores(
        self, grids: Tensor, without_own: bool, coded: CodedRows | None
    ) -> tuple[Tensor, Tensor]:
        """Image scores [B] and patch distances [B, h, w] of grids [B, h, w, D]."""
        grids = grids if self.frame is None else self.frame.place(grids)
        bank, patches, own = self.memory_bank, grids.flatten(1, 2), None
        distances, indices = (
            each.view(patches.shape[:2]) for each in bank.neighbours(patches.flatten(0, 1))
        )
        shown = distances.view(grids.shape[:3])
        if without_own:
            distances, indices, own = leave_out_own(bank, patches, distances, indices, coded)
        inside = without_border(distances.view(grids.shape[:3]), self.border).flatten(1)
        return image_scores(bank, patches, inside, indices, self.neighbors, own), shown

    def _maps(self, distances: Tensor, sizes: Sequence[Size]) -> Iterator[np.ndarray]:
        """Anomaly maps [H, W] of patch distances [B, h, w], by runs of images of one size."""
        numbered = enumerate(sizes)
        for run in runs(numbered, lambda item: item[1], len(sizes)):
            (first, size), last = run[0], run[-1][0]
            part, frames = distances[first : last + 1], self.preparation.frames(size)
            yield from anomaly_maps(part, size, *frames).cpu().numpy()

    def _extract(self, dataset: Iterable) -> Iterator[PatchGrids]:
        return extract(
            self.backbone,
            dataset,
            self.preparation,
            patch_size=self.patch_size,
            batch_size=self.batch_size,
            workers=self.workers,
        )

    def _config(self) -> dict[str, object]:
        return {
            "backbone": self.backbone.backbone_name,
            "layers": self.backbone.layers,
            "coreset_percentage": self.coreset_percentage,
            "weights": self.backbone.weights,
            "image_size": self.preparation.size,
            "scale": self.preparation.scale,
            "even_light": self.preparation.even_light,
            "crop": self.preparation.crop,
            "patch_size": self.patch_size,
            "neighbors": self.neighbors,
            "border": self.border,
        }

    def _signature(self) -> dict[str, object]:
        shaping = ("backbone", "layers", "image_size", "crop", "patch_size")
        scale = self.preparation.scale
        return {
            **{key: self._config()[key] for key in shaping},
            **({} if scale == 1 else {"scale": scale}),
            **({"even_light": True} if self.preparation.even_light else {}),
            "fingerprint": self.backbone.fingerprint,
            "precision": "float32" if self.device.type == "cpu" else "bfloat16 convolutions",
        }


def _together(grids: Iterable[PatchGrid], most: int) -> Iterator[PatchGrids]:
    for run in runs(grids, lambda grid: grid.features.shape, most):
        features = torch.stack([grid.features for grid in run])
        yield PatchGrids(features, [grid.image_size for grid in run])


def _normal_only(dataset: Iterable) -> Iterable:
    samples = getattr(dataset, "samples", None)
    if samples is not None:
        anomalous = sum(sample.label != 0 for sample in samples)
        if anomalous:
            raise ValueError(
                f"{anomalous} of {len(samples)} images are anomalous: fit on normal ones"
            )
    return dataset


@functools.cache
def _device(name: str) -> torch.device:
    if name.startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %r: no GPU is available here, running on the CPU", name)
        return torch.device("cpu")
    return torch.device(name)


def _workers(device: torch.device) -> int:
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
