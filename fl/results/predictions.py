"""Use a model file: maps, overlays and scores of images, and figures on a labelled dataset."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data import DataError, InspectionDataset, Sample
from src.data.layout import list_images
from src.evaluation.score_set import mean_metrics
from src.federated.bank_set import SHARED, split_by_object
from src.federated.scoring import metrics_by_object, score
from src.models import PatchCore
from src.models.model_file import ModelFile
from src.reporting.maps import overlay, save_anomaly_map

SAMPLED = 40  # maps that the overlays' common scale is read from


def find_images(places: Sequence[Path]) -> InspectionDataset:
    """Images named one by one or by their folders.

    Raises:
        DataError: a place that does not exist, or a folder without images.
    """
    paths: list[Path] = []
    for place in places:
        if not place.exists():
            raise DataError(f"{place} does not exist")
        found = list_images(place) if place.is_dir() else [place]
        if not found:
            raise DataError(f"{place} holds no images")
        paths += found
    samples = [Sample(p.resolve(), str(p), "", "test", 0, "") for p in dict.fromkeys(paths)]
    return InspectionDataset("images", Path.cwd(), samples)


def write_predictions(model: PatchCore, images: InspectionDataset, out: Path) -> list[dict]:
    """Score images; write out/maps/*.png (16 bit, one scale), out/overlays/*.png, out/scores.csv.

    Returns:
        a row an image: image, map (its file), score, and, where the model has a
        threshold, threshold and anomalous.
    """
    predictions = list(model.score(images))
    names = _file_names([sample.path for sample in images.samples])
    low, high = _common_scale(model, predictions)
    rows = []
    for i, (prediction, name) in enumerate(zip(predictions, names, strict=True)):
        drawn = model.anomaly_map(prediction)
        save_anomaly_map(drawn, out / "maps" / f"{name}.png")
        _save_overlay(images[i][0].numpy(), drawn, (low, high), out / "overlays" / f"{name}.png")
        rows.append(_row(images.samples[i].key, name, prediction.score, model.threshold))
    with (out / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return rows


def evaluate_model(path: Path, test: InspectionDataset, options: dict) -> dict:
    """Metrics of a model file on a labelled test set: {"mean": ..., "objects": {name: ...}}.

    Raises:
        FileError: the file cannot be used, or has no bank for an object.
    """
    file = ModelFile.read(path)
    alone = next(iter(file.banks)) if len(file.banks) == 1 else None
    metrics: dict[str, dict] = {}
    for name, images in split_by_object(test).items():
        bank = SHARED if SHARED in file.banks else (alone or name)
        model = PatchCore.load(path, bank=bank, **options)
        metrics |= metrics_by_object(model, images, {name: score(model, images)})
    return {"mean": mean_metrics(list(metrics.values())), "objects": metrics}


def _row(image: str, name: str, score: float, threshold: float | None) -> dict:
    row: dict = {"image": image, "map": f"{name}.png", "score": round(score, 6)}
    if threshold is not None:
        row |= {"threshold": round(threshold, 6), "anomalous": score >= threshold}
    return row


def _file_names(paths: Sequence[Path]) -> list[str]:
    """A file name for each image: its stem, numbered where two share one."""
    taken: set[str] = set()
    names = []
    for path in paths:
        candidates = itertools.chain([path.stem], (f"{path.stem}-{n}" for n in itertools.count(2)))
        names.append(next(name for name in candidates if name not in taken))
        taken.add(names[-1])
    return names


def _common_scale(model: PatchCore, predictions: Sequence) -> tuple[float, float]:
    """From the median of the maps to almost their maximum, and at least to the threshold."""
    step = max(1, len(predictions) // SAMPLED)
    values = np.concatenate([p.distances.ravel() for p in predictions[::step]])
    low, high = np.quantile(values, (0.5, 0.998))
    return float(low), float(max(high, model.threshold or 0, low + 1e-6))


def _save_overlay(
    image: np.ndarray, drawn: np.ndarray, scale: tuple[float, float], path: Path
) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay(image, drawn, *scale)).save(path)
