"""Attacks: what scores of images tell of which of them a bank, or sums with noise, was made from.

Each gives numbers to what `audit` makes bounds of. The attacker knows all that is public: the
bank, the questions that were asked, the answers with their noise, and the images in question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from src.data import InspectionDataset
from src.models.feature_transform import FeatureTransform
from src.models.patchcore import PatchCore, Progress
from src.models.scoring import image_scores
from src.privacy.attacks.auditing import membership, one_run_epsilon
from src.privacy.ledger import Release
from src.privacy.queries import Ask, Scores, contribution, unit_patches
from src.privacy.records import patches_of, records_of
from src.privacy.runner import Answer, Noise, Step, Sums, released

CANARY_PATCHES = 16  # of the image of one patch all over; their number does not matter
TOLD_EVERY = 500  # runs

Bank = tuple[np.ndarray, FeatureTransform | None]  # rows [K, d], and their coordinates


@dataclass(frozen=True)
class Attack:
    """Scores [M] of members and [N] of others by which they are told apart, small for members."""

    members: np.ndarray
    others: np.ndarray

    def figures(self) -> dict[str, float]:
        """Areas and rates, by the keys of audit.json."""
        found = membership(self.members, self.others)
        return {
            "auc": found.auc,
            "tpr_at_1_percent": found.at_1_percent,
            "tpr_at_0.1_percent": found.at_01_percent,
            "members": len(self.members),
            "others": len(self.others),
        }


def patch_distances(
    model: PatchCore, bank: Bank, images: InspectionDataset, progress: Progress | None = None
) -> list[np.ndarray]:
    """Distances [h, w] of each image's patches to a bank, in its frame."""
    model.set_memory_bank(*bank)
    return [prediction.distances for prediction in model.score(images, progress=progress)]


def contributions(
    model: PatchCore, images: InspectionDataset, ask: Ask, progress: Progress | None = None
) -> list[np.ndarray]:
    """What each image gives to an ask as a record of its own: for each block [N, size]."""
    given = [
        contribution(ask, record)
        for record in records_of(model, images, ask, "image", progress=progress)
    ]
    return [np.stack(vectors) for vectors in zip(*given, strict=True)]


class Tracing:
    """Which of some candidates are in sums that were released with noise.

    A sum is Σ b_i x_i + N(0, σ²), where b_i tells whether candidate i was in, with the same
    probability p each. The best linear estimate of b from all sums is that of ridge regression:
    p (1 − p) (I + p (1 − p) K)⁻¹ y, with K_ij = Σ x_i x_j / σ² and y_i = Σ x_i (S − E S) / σ² over
    all blocks. It takes off what the other candidates would explain.

    Args:
        candidates: how many.
        share: p.
    """

    def __init__(self, candidates: int, share: float) -> None:
        self.share = share
        self.gram = np.zeros((candidates, candidates))
        self.match = np.zeros(candidates)

    def add(
        self, vectors: Sequence[np.ndarray], answer: Answer, known: Sequence[np.ndarray] = ()
    ) -> None:
        """Take in one step.

        Args:
            vectors: for each block what the candidates would give [N, size].
            answer: what was released.
            known: for each block the sum over records that are in for certain.
        """
        for number, (block, total, sigma) in enumerate(
            zip(vectors, answer.sums, answer.sigmas, strict=True)
        ):
            scaled = block / sigma
            left = total - known[number] if known else total
            self.gram += scaled @ scaled.T
            self.match += scaled @ (left / sigma - self.share * scaled.sum(0))

    def scores(self) -> np.ndarray:
        """Scores [N], the larger the likelier in; about 0 where nothing is known."""
        spread = self.share * (1 - self.share)
        return spread * np.linalg.solve(np.eye(len(self.match)) + spread * self.gram, self.match)


def worst_patches(own: np.ndarray) -> np.ndarray:
    """An image [P, D] that is one patch all over: of unit length, opposite to the mean patch.

    It lies as far from where images lie as a unit patch can, all in one cell.

    Args:
        own: [N, D], mean unit patches of images that the attacker holds.
    """
    away = -own.mean(0)
    length = float(np.linalg.norm(away))
    if length < 1e-9:
        away, length = np.eye(len(away))[0], 1.0
    return np.tile(away / length, (CANARY_PATCHES, 1))


def given_by(model: PatchCore, ask: Ask, patches: np.ndarray) -> tuple[np.ndarray, ...]:
    """What an image of these patches [P, D] gives to an ask; its score is the model's."""
    if not isinstance(ask, Scores):
        return contribution(ask, patches)
    frame = FeatureTransform(ask.origin, ask.basis)
    model.set_memory_bank(ask.rows.astype(np.float32), frame)
    bank = model.memory_bank
    at = frame.apply(torch.as_tensor(patches, dtype=torch.float32, device=model.device))
    distances, indices = (each.view(1, -1) for each in bank.neighbours(at))
    score = image_scores(bank, at[None], distances, indices, model.neighbors)
    return contribution(ask, score.double().cpu().numpy())


@dataclass(frozen=True)
class Asked:
    """A step of a run, and what a canary changes of it.

    Attributes:
        step: the question.
        releases: with the noise that the run had.
        without: the sums without the canary.
        given: what it adds, for each block.
    """

    step: Step
    releases: Sequence[Release]
    without: Sums
    given: Sequence[np.ndarray]


def reach(asked: Sequence[Asked]) -> float:
    """What part of the most that a record may move all releases by, the canary moves them by.

    In units of their noise, as releases compose: 1 for the worst case.
    """
    moved = [np.linalg.norm(g) / r.sigma for one in asked for g, r in _pairs(one)]
    most = [r.sensitivity / r.sigma for one in asked for r in one.releases]
    return float(np.linalg.norm(moved) / np.linalg.norm(most))


def _pairs(one: Asked) -> Iterator[tuple[np.ndarray, Release]]:
    return zip(one.given, one.releases, strict=True)


def core_scores(
    asked: Sequence[Asked], noise: Noise, runs: int, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [runs] of a mechanism's releases without a canary and with it, by likelihood ratio.

    The noise is added by `steps.released`, as in a run: what is wrong with it shows. The questions
    stay those of the run.

    Args:
        asked: all steps.
        noise: that the mechanism draws.
        runs: of each kind.
        progress: called with (runs done, runs) now and then.
    """
    scores = np.zeros((2, runs))
    sides = [
        (one, (one.without, _added(one.without, one.given)), one.without.vectors) for one in asked
    ]
    for run in range(runs):
        for one, both, base in sides:
            for side, sums in enumerate(both):
                answer = released(sums, one.step, one.releases, noise)
                scores[side, run] += sum(
                    float((noisy - total) @ moved) / release.sigma**2
                    for noisy, total, moved, release in zip(
                        answer.sums, base, one.given, one.releases, strict=True
                    )
                )
        if progress and (run + 1) % TOLD_EVERY == 0:
            progress(run + 1, runs)
    return scores[0], scores[1]


def _added(sums: Sums, given: Sequence[np.ndarray]) -> Sums:
    return Sums(tuple(t + g for t, g in zip(sums.vectors, given, strict=True)), sums.records)


@dataclass(frozen=True)
class Guesses:
    """How an attacker did who guessed of some canaries whether they were in.

    Attributes:
        canaries, guesses, right: how many.
    """

    canaries: int
    guesses: int
    right: int

    def epsilon(self, delta: float, confidence: float) -> float:
        """Least ε, by `one_run_epsilon`."""
        return one_run_epsilon(self.canaries, self.guesses, self.right, delta, confidence)


def guess(scores: np.ndarray, inside: np.ndarray, part: float) -> Guesses:
    """Guess «in» of the canaries with the largest scores and «out» of as many with the smallest.

    Args:
        scores: [m], larger for canaries that seem to be in.
        inside: [m] bool, which were.
        part: of the canaries that is guessed, chosen before the scores are seen.
    """
    each = round(part * len(scores) / 2)
    order = np.argsort(scores, kind="stable")
    out, in_ = order[:each], order[len(order) - each :]
    right = int((~inside[out]).sum() + inside[in_].sum())
    return Guesses(len(scores), 2 * each, right)


def mean_patches(model: PatchCore, images: InspectionDataset) -> np.ndarray:
    """Mean unit patch of each image [N, D]."""
    return np.stack([unit_patches(rows).mean(0) for rows in patches_of(model, images)])
