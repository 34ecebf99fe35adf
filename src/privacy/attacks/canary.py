"""Canaries: how noisy sums change when a worst-case image is added to a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from src.models.feature_transform import FeatureTransform
from src.models.patchcore import PatchCore, Progress
from src.models.scoring import image_scores
from src.privacy.ledger import Release
from src.privacy.noise import Noise
from src.privacy.queries import ScoreQuery, SumQuery, add_sums, clipped_vectors
from src.privacy.runner import Step, Sums, release_sums

CANARY_PATCHES = 16  # identical ones; their number does not matter
REPORT_EVERY = 500  # runs


def canary_patches(means: np.ndarray) -> np.ndarray:
    """An image [P, D] of identical unit patches opposite to the mean patch of real images.

    No unit patch lies farther from where images lie.

    Args:
        means: [N, D], mean unit patches of images that the attacker holds.
    """
    direction = -means.mean(0)
    length = float(np.linalg.norm(direction))
    if length < 1e-9:
        direction, length = np.eye(len(direction))[0], 1.0
    return np.tile(direction / length, (CANARY_PATCHES, 1))


def canary_vectors(
    model: PatchCore, query: SumQuery, patches: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The clipped vectors of an image of these patches [P, D]; the model gives its score."""
    if not isinstance(query, ScoreQuery):
        return clipped_vectors(query, patches)
    transform = FeatureTransform(query.origin, query.basis)
    model.set_memory_bank(query.rows.astype(np.float32), transform)
    bank = model.memory_bank
    placed = transform.apply(torch.as_tensor(patches, dtype=torch.float32, device=model.device))
    distances, indices = (each.view(1, -1) for each in bank.neighbours(placed))
    score = image_scores(bank, placed[None], distances, indices, model.neighbors)
    return clipped_vectors(query, score.double().cpu().numpy())


@dataclass(frozen=True)
class CanaryStep:
    """A step of a run, and how a canary changes it."""

    step: Step  # the query
    releases: Sequence[Release]  # with the noise that the run drew
    sums: Sums  # without the canary
    change: tuple[np.ndarray, ...]  # what the canary adds to each block

    @property
    def shifts(self) -> list[float]:
        """How far the canary moves each block, in standard deviations of its noise."""
        pairs = zip(self.change, self.releases, strict=True)
        return [float(np.linalg.norm(change)) / release.sigma for change, release in pairs]


def canary_reach(steps: Sequence[CanaryStep]) -> float:
    """How far the canary moves all releases, as a part of the most that a record may."""
    shifts = [shift for step in steps for shift in step.shifts]
    limits = [release.mu for step in steps for release in step.releases]
    return float(np.linalg.norm(shifts) / np.linalg.norm(limits))


def likelihood_threshold(steps: Sequence[CanaryStep]) -> float:
    """The middle between the mean scores of `canary_scores` without a canary and with it."""
    return sum(shift**2 for step in steps for shift in step.shifts) / 2


def canary_scores(
    steps: Sequence[CanaryStep], noise: Noise, runs: int, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [runs] of a mechanism's releases without a canary and with it, by likelihood ratio.

    `release_sums` adds the noise as in a run, so errors in it show. The queries stay those of the
    run.

    Args:
        steps: all steps of the run.
        noise: as the mechanism draws it.
        runs: of each kind.
        progress: called with (runs done, runs) now and then.
    """
    scores = np.zeros((2, runs))
    sides = [
        (step, (step.sums, replace(step.sums, vectors=add_sums([step.sums.vectors, step.change]))))
        for step in steps
    ]
    for run in range(runs):
        for step, both in sides:
            for side, sums in enumerate(both):
                noisy = release_sums(sums, step.step, step.releases, noise).vectors
                blocks = zip(noisy, step.sums.vectors, step.change, step.releases, strict=True)
                scores[side, run] += sum(
                    float((vector - base) @ change) / release.sigma**2
                    for vector, base, change, release in blocks
                )
        if progress and (run + 1) % REPORT_EVERY == 0:
            progress(run + 1, runs)
    return scores[0], scores[1]
