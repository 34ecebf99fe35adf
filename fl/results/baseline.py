"""The centralized baseline: what one client that holds all images would reach.

No federation can have it. It does not depend on the partition, so runs that share a folder for
baselines compute it once.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl.config import Settings
from fl.setup.data import Split
from src.evaluation.score_set import ScoreSet
from src.federated.bank_set import split_by_bank
from src.federated.candidates import Stage, extract_features, find_candidates
from src.federated.scoring import metrics_by_object, score_test_set
from src.models import PatchCore
from src.storage.tensor_file import read_tensors, write_tensors

FORMAT = "fedpatchcore-baseline-2"
CONTENT, LOCK = "baseline.safetensors", "lock"


@dataclass(frozen=True)
class Baseline:
    """What centralizing reaches."""

    scores: dict[str, ScoreSet]  # object -> scores of its test images with the centralized bank
    metrics: dict[str, dict]  # object -> metrics of those
    radius: float  # covering radius of the centralized bank; of several, the largest
    means: np.ndarray  # [N, D] mean patch feature of each training image, in the dataset's order


def centralized(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> Baseline:
    """The baseline; with `evaluate.baseline-dir`, read from there or kept there."""
    if not settings.evaluate_baseline_dir:
        return centralize(model, data, settings, progress)
    folder = Path(settings.evaluate_baseline_dir) / _name(model, data, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK):  # another run may be computing it now
        if not (folder / CONTENT).exists():
            _write(folder, centralize(model, data, settings, progress))
        return _read(folder)


def centralize(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> Baseline:
    """Do what a client does, with all images."""
    extract_features(model, data.train, progress("features"))
    banks = split_by_bank(data.train, settings.model_scope).map(
        lambda images: find_candidates(model, images, progress=progress).local_bank()
    )
    scores = score_test_set(model, banks, data.test, progress)
    means = [
        grid.float().mean((0, 1)).cpu().numpy()
        for batch in model.embed(data.train)
        for grid in batch.features
    ]
    metrics = metrics_by_object(model, data.test, scores)
    return Baseline(scores, metrics, max(b.radius for b in banks.values()), np.array(means))


def _name(model: PatchCore, data: Split, settings: Settings) -> str:
    """A digest of everything the baseline depends on."""
    images = [*data.train.samples, *data.test.samples]
    states = [(sample.key, sample.path.stat()) for sample in images]
    inputs = {
        "features": model.cache.folder.name if model.cache else "",
        "fraction": settings.model_coreset_percentage,
        "neighbors": settings.model_neighbors,
        "border": settings.model_border,
        "memory": settings.model_memory_limit_mb,
        "scope": settings.model_scope,
        "seed": settings.seed,
        "threads": settings.cpus_per_client,
        "images": [[key, state.st_size, state.st_mtime_ns] for key, state in states],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def _write(folder: Path, baseline: Baseline) -> None:
    for i, scores in enumerate(baseline.scores.values()):
        scores.save(folder / f"scored-{i}.safetensors")
    header = {
        "objects": list(baseline.scores),
        "metrics": baseline.metrics,
        "radius": baseline.radius,
    }
    # written last: it vouches for the other files
    write_tensors(folder / CONTENT, FORMAT, header, {"means": baseline.means})


def _read(folder: Path) -> Baseline:
    header, tensors = read_tensors(folder / CONTENT, FORMAT)
    scores = {
        name: ScoreSet.load(folder / f"scored-{i}.safetensors")
        for i, name in enumerate(header["objects"])
    }
    return Baseline(scores, header["metrics"], header["radius"], tensors["means"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
