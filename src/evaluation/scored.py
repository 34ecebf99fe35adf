"""A test set as a bank scored it: what figures, maps and the report are made from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from src.data import Defect, InspectionDataset, Sample
from src.evaluation.metrics import image_metrics
from src.evaluation.pixel import pixel_metrics
from src.models.patchcore import PatchCore, Prediction


@dataclass(frozen=True)
class Scored:
    """Predictions by image key, in a fixed order.

    Attributes:
        keys: the samples' keys.
        predictions: one for each key.
    """

    keys: tuple[str, ...]
    predictions: tuple[Prediction, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], predictions: Iterable[Prediction]) -> "Scored":
        """Predictions of these samples, in their order."""
        return cls(tuple(sample.key for sample in samples), tuple(predictions))

    @classmethod
    def join(cls, parts: Iterable["Scored"]) -> "Scored":
        """Parts of a test set as one, by key."""
        pairs = [pair for part in parts for pair in zip(part.keys, part.predictions, strict=True)]
        pairs.sort(key=lambda pair: pair[0])
        return cls(tuple(k for k, _ in pairs), tuple(p for _, p in pairs))

    def by_key(self) -> dict[str, Prediction]:
        """Predictions by sample key."""
        return dict(zip(self.keys, self.predictions, strict=True))

    def save(self, path: Path) -> None:
        """Write as safetensors, folders made as needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{i:06d}": np.ascontiguousarray(p.distances) for i, p in enumerate(self.predictions)
        }
        meta = {
            "keys": json.dumps(self.keys),
            "scores": json.dumps([p.score for p in self.predictions]),
            "sizes": json.dumps([p.image_size for p in self.predictions]),
        }
        save_file(arrays, str(path), meta)

    @classmethod
    def load(cls, path: Path) -> "Scored":
        """Read what `save` wrote."""
        with safe_open(path, framework="np") as file:
            keys, scores, sizes = (
                json.loads(file.metadata()[k]) for k in ("keys", "scores", "sizes")
            )
            grids = [file.get_tensor(f"{i:06d}") for i in range(len(keys))]
        made = zip(scores, grids, sizes, strict=True)
        return cls(tuple(keys), tuple(Prediction(s, g, tuple(z)) for s, g, z in made))


class AnomalyMaps(Sequence[np.ndarray]):
    """The maps of predictions, drawn when asked for: a test set of them would not fit in memory."""

    def __init__(self, model: PatchCore, predictions: Sequence[Prediction]) -> None:
        self.model, self.predictions = model, predictions

    def __len__(self) -> int:
        return len(self.predictions)

    def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
        return self.model.draw(self.predictions[i])


class _Defects(Sequence[list[Defect] | None]):
    """Ground truth of a dataset, read when asked for."""

    def __init__(self, dataset: InspectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> list[Defect] | None:  # type: ignore[override]
        return self.dataset.defects(i)


def evaluate(model: PatchCore, dataset: InspectionDataset, scored: Scored) -> dict:
    """Image and pixel figures of a scored test set; a figure that cannot be had is absent.

    Args:
        model: draws the maps; its bank does not matter.
        dataset: the test images and their ground truth.
        scored: predictions for all of them.
    """
    found = scored.by_key()
    predictions = [found[sample.key] for sample in dataset.samples]
    labels = [sample.label for sample in dataset.samples]
    figures: dict = dict(image_metrics([p.score for p in predictions], labels))
    if any(sample.masks for sample in dataset.samples):
        figures |= pixel_metrics(AnomalyMaps(model, predictions), _Defects(dataset))
    return figures


def mean_figures(figures: Sequence[dict]) -> dict:
    """Mean over objects, figure by figure; a figure that one of them lacks is left out."""
    if not figures:
        return {}
    shared = [key for key in figures[0] if all(key in other for other in figures)]
    return {
        key: mean_figures([f[key] for f in figures])
        if isinstance(figures[0][key], dict)
        else float(np.mean([f[key] for f in figures]))
        for key in shared
    }
