"""A test set as a bank scored it: what figures, maps and the report are made from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data import Defect, InspectionDataset, Sample
from src.evaluation.metrics import image_metrics
from src.evaluation.pixel import pixel_metrics
from src.models.patchcore import PatchCore, Prediction
from src.storage.tensor_file import read_tensors, write_tensors

FORMAT = "fedpatchcore-scored-1"


@dataclass(frozen=True)
class ScoreSet:
    """Predictions by image key, in a fixed order."""

    keys: tuple[str, ...]  # of the samples
    predictions: tuple[Prediction, ...]  # one for each key

    @classmethod
    def of(cls, samples: Sequence[Sample], predictions: Iterable[Prediction]) -> "ScoreSet":
        """Predictions of these samples, in their order."""
        return cls(tuple(sample.key for sample in samples), tuple(predictions))

    @classmethod
    def join(cls, parts: Iterable["ScoreSet"]) -> "ScoreSet":
        """Parts of a test set as one, by key."""
        pairs = [pair for part in parts for pair in zip(part.keys, part.predictions, strict=True)]
        pairs.sort(key=lambda pair: pair[0])
        return cls(tuple(k for k, _ in pairs), tuple(p for _, p in pairs))

    def by_key(self) -> dict[str, Prediction]:
        """Predictions by sample key."""
        return dict(zip(self.keys, self.predictions, strict=True))

    def save(self, path: Path) -> None:
        """Write as safetensors, folders made as needed."""
        header = {
            "keys": self.keys,
            "scores": [p.score for p in self.predictions],
            "sizes": [p.image_size for p in self.predictions],
        }
        grids = {f"{i:06d}": p.distances for i, p in enumerate(self.predictions)}
        write_tensors(path, FORMAT, header, grids)

    @classmethod
    def load(cls, path: Path) -> "ScoreSet":
        """Read what `save` wrote."""
        header, grids = read_tensors(path, FORMAT)
        rows = zip(header["scores"], sorted(grids), header["sizes"], strict=True)
        predictions = (Prediction(score, grids[name], tuple(size)) for score, name, size in rows)
        return cls(tuple(header["keys"]), tuple(predictions))


class AnomalyMaps(Sequence[np.ndarray]):
    """The maps of predictions, drawn when asked for: a test set of them would not fit in memory."""

    def __init__(self, model: PatchCore, predictions: Sequence[Prediction]) -> None:
        self.model, self.predictions = model, predictions

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return self.model.anomaly_map(self.predictions[i])


class _Defects(Sequence[list[Defect] | None]):
    """Ground truth of a dataset, read when asked for."""

    def __init__(self, dataset: InspectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> list[Defect] | None:  # type: ignore[override]
        return self.dataset.defects(i)


def compute_metrics(model: PatchCore, dataset: InspectionDataset, scored: ScoreSet) -> dict:
    """Image and pixel metrics of a scored test set; a metric that is undefined is absent.

    Args:
        model: draws the maps; its bank does not matter.
        dataset: the test images and their ground truth.
        scored: predictions for all of them.
    """
    by_key = scored.by_key()
    predictions = [by_key[sample.key] for sample in dataset.samples]
    labels = [sample.label for sample in dataset.samples]
    metrics: dict = dict(image_metrics([p.score for p in predictions], labels))
    if any(sample.masks for sample in dataset.samples):
        metrics |= pixel_metrics(AnomalyMaps(model, predictions), _Defects(dataset))
    return metrics


def mean_metrics(metrics: Sequence[dict]) -> dict:
    """Mean over objects, metric by metric; a metric that one of them lacks is left out."""
    means = {}
    for key, first in (metrics[0] if metrics else {}).items():
        if all(key in other for other in metrics):
            values = [each[key] for each in metrics]
            means[key] = mean_metrics(values) if isinstance(first, dict) else float(np.mean(values))
    return means
