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
from fl.setup.inputs import Split
from src.evaluation.score_set import ScoreSet, compute_metrics
from src.federated.candidates import (
    Stage,
    by_bank,
    by_object,
    extract_features,
    find_candidates,
    score_with,
)
from src.models import PatchCore
from src.storage.tensor_file import read_tensors, write_tensors

FORMAT = "fedpatchcore-baseline-1"
CONTENT, LOCK = "baseline.safetensors", "lock"


@dataclass(frozen=True)
class Baseline:
    """What centralizing reaches.

    Attributes:
        scored: object -> its test images as the centralized bank scores them.
        figures: object -> figures of those.
        radius: covering radius of the centralized bank; of several the largest.
        means: [N, D] mean patch feature of each training image, in the dataset's order.
    """

    scored: dict[str, ScoreSet]
    figures: dict[str, dict]
    radius: float
    means: np.ndarray


def centralized(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> Baseline:
    """The baseline, from the folder that the settings name or computed, and then kept there."""
    if not settings.evaluate_baseline_dir:
        return centralize(model, data, settings, progress)
    folder = Path(settings.evaluate_baseline_dir) / _name(model, data, settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK):  # another run may be computing it just now
        if not (folder / CONTENT).exists():
            _write(folder, centralize(model, data, settings, progress))
        return _read(folder)


def centralize(model: PatchCore, data: Split, settings: Settings, progress: Stage) -> Baseline:
    """Do what a client does, with all images."""
    extract_features(model, data.train, progress("features"))
    found = {
        name: find_candidates(model, images, progress=progress)
        for name, images in by_bank(data.train, settings.model_scope).items()
    }
    own = {name: candidates.own() for name, candidates in found.items()}
    only = next(iter(own.values()))  # the shared one, where objects have none of their own
    scored, figures = {}, {}
    for name, images in by_object(data.test).items():
        scored[name] = score_with(model, own.get(name, only).rows, images, progress)
        figures[name] = compute_metrics(model, images, scored[name])
    means = [
        grid.float().mean((0, 1)).cpu().numpy()
        for batch in model.embed(data.train)
        for grid in batch.features
    ]
    return Baseline(scored, figures, max(bank.radius for bank in own.values()), np.array(means))


def _name(model: PatchCore, data: Split, settings: Settings) -> str:
    """What the baseline depends on, in short."""
    images = [*data.train.samples, *data.test.samples]
    states = [(sample.key, sample.path.stat()) for sample in images]
    depends = {
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
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def _write(folder: Path, baseline: Baseline) -> None:
    for i, scored in enumerate(baseline.scored.values()):
        scored.save(folder / f"scored-{i}.safetensors")
    header = {
        "objects": list(baseline.scored),
        "figures": baseline.figures,
        "radius": baseline.radius,
    }
    write_tensors(folder / CONTENT, FORMAT, header, {"means": baseline.means})  # last: all is there


def _read(folder: Path) -> Baseline:
    header, tensors = read_tensors(folder / CONTENT, FORMAT)
    scored = {
        name: ScoreSet.load(folder / f"scored-{i}.safetensors")
        for i, name in enumerate(header["objects"])
    }
    return Baseline(scored, header["figures"], header["radius"], tensors["means"])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
