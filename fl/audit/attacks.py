"""Attacks on one bank, and lower bounds on its ε."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from fl.audit.subject import Subject
from src.data import InspectionDataset
from src.evaluation.metrics import image_metrics
from src.federated.candidates import Stage
from src.models.coreset.streaming import BoundedRows
from src.privacy.attacks.auditing import guess, many_run_bound, many_run_epsilon, one_run_epsilon
from src.privacy.attacks.canary import (
    CanaryStep,
    canary_patches,
    canary_reach,
    canary_scores,
    canary_vectors,
    likelihood_threshold,
)
from src.privacy.attacks.embedding_noise import (
    add_embedding_noise,
    noisy_row_scores,
    outlier_patches,
    unit_rows,
)
from src.privacy.attacks.membership import (
    Attack,
    Tracing,
    image_vectors,
    mean_patches,
    patch_distances,
    smallest_distances,
)
from src.privacy.mechanisms.config import MechanismConfig
from src.privacy.noise import system_noise
from src.privacy.queries import SumQuery, add_sums, clipped_vectors
from src.privacy.records import client_sums, read_records
from src.privacy.runner import NoisySums, Sums, run_mechanisms

MAX_CANARIES = 600  # training images of which the one-run audit guesses
# part of the canaries that is guessed, fixed before any score is seen: a raw bank gives away half
# of them for certain; tracing is right, if at all, about the most outlying ones
GUESSED_BY_DISTANCE, GUESSED_BY_TRACING = 1 / 2, 1 / 3
FIRST_ROWS = 64  # of a noisy bank, in the order picked, that the many-run audit looks at
OUTLIERS = 256  # patches of the canary against them; more than FIRST_ROWS


def distance_attack(subject: Subject, stage: Stage) -> tuple[Attack, list[np.ndarray]]:
    """Membership by smallest distance to the bank; and all distances [h, w] of the members."""
    model, bank = subject.model, subject.bank
    grids = patch_distances(model, bank, subject.members, stage("distances"))
    others = smallest_distances(model, bank, subject.others, stage("of others"))
    return Attack(np.array([grid.min() for grid in grids]), others), grids


def tracing_attack(
    subject: Subject, mechanism: MechanismConfig, stage: Stage
) -> tuple[Attack, list[CanaryStep]]:
    """Membership by tracing in the noisy sums; and the steps with a canary, for `canary_audit`."""
    model, members, others = subject.model, subject.members, subject.others
    assert subject.params
    count = len(members)
    tracing = Tracing(count + len(others), count / (count + len(others)))
    canary = canary_patches(mean_patches(model, subject.own))
    steps = []
    for step, noisy in subject.steps:
        query = step.query
        of_members = image_vectors(model, members, query, stage(step.name))
        of_others = image_vectors(model, others, query)
        blocks = zip(of_members, of_others, strict=True)
        tracing.add([np.concatenate(block) for block in blocks], noisy)
        if mechanism.unit == "image":
            sums = Sums(tuple(block.sum(0) for block in of_members), count)
        else:
            unit, group = mechanism.unit, subject.settings.privacy_group
            parts = [client_sums(model, share, query, unit, group) for share in subject.train]
            vectors = add_sums(part.vectors for part in parts)
            sums = Sums(vectors, sum(part.records for part in parts))
        change = canary_vectors(model, query, canary)
        if mechanism.adjacency == "replace":
            removed = _first_record(subject, query)
            change = tuple(new - old for new, old in zip(change, removed, strict=True))
        releases = [
            replace(release, sigma=sigma)  # the noise that the run drew, whatever it claims
            for release, sigma in zip(subject.params.releases(step), noisy.sigmas, strict=True)
        ]
        steps.append(CanaryStep(step, releases, sums, change))
    scores = -tracing.scores()
    return Attack(scores[:count], scores[count:]), steps


def image_auroc(subject: Subject) -> float | None:
    """Image AUROC of the bank over its test images; None without defects."""
    subject.model.set_memory_bank(*subject.bank)
    scores = [prediction.score for prediction in subject.model.score(subject.test)]
    labels = [sample.label for sample in subject.test.samples]
    return image_metrics(scores, labels).get("image_auroc")


def canary_audit(
    subject: Subject, steps: Sequence[CanaryStep], runs: int, confidence: float, stage: Stage
) -> dict:
    """Many runs of a private mechanism's releases, with a worst-case canary and without it.

    The likelihood ratio's threshold follows from the noise and is fixed before any run, so that
    all runs are judged.
    """
    scores = canary_scores(steps, system_noise, runs, stage("many runs"))
    threshold = likelihood_threshold(steps)
    return {
        "epsilon_lower_bound": many_run_epsilon(*scores, threshold, subject.delta, confidence),
        "confidence": confidence,
        "of": "the run's questions and noise, on its images with and without one canary image",
        "runs": 2 * runs,
        "canary_reach": canary_reach(steps),
    }


def noisy_rows_audit(
    subject: Subject, runs: int, confidence: float, random: np.random.Generator, stage: Stage
) -> dict:
    """Many runs of the noise on a bank's first rows, selected with a canary and without it."""
    model, seed = subject.model, subject.settings.seed
    selection, norm = BoundedRows(model.memory_limit, seed, model.device), 0.0
    for batch in model.embed(subject.members, stage("canary")):
        patches = batch.features.flatten(0, 2)
        selection.add(patches)
        norm = max(norm, float(patches.float().norm(dim=1).max()))
    count = min(FIRST_ROWS, selection.seen)
    without = unit_rows(selection.select(count).features.float().numpy())
    canary = outlier_patches(2 * norm, patches.shape[1], OUTLIERS, random)
    selection.add(torch.from_numpy(canary).to(patches))
    given = unit_rows(selection.select(count).features.float().numpy())
    scores = noisy_row_scores(without, given, subject.noise_sigma, system_noise, runs)
    return {
        "epsilon_lower_bound": many_run_bound(*scores, subject.delta, confidence),
        "confidence": confidence,
        "of": f"the noise on the bank's first {count} rows, selected with and without one canary "
        "image",
        "runs": 2 * runs,
        "changed_rows": int((without != given).any(1).sum()),
    }


def one_run_audit(
    subject: Subject, confidence: float, random: np.random.Generator, stage: Stage
) -> dict:
    """Run the mechanism again on a random half of the canaries, and guess which half."""
    members = subject.members
    order = random.permutation(len(members))
    canaries, rest = (members.select(part) for part in (order[:MAX_CANARIES], order[MAX_CANARIES:]))
    inside = random.random(len(canaries)) < 1 / 2
    mechanism = subject.settings.mechanism
    if mechanism:
        scores = _trace_again(subject, mechanism, canaries, rest, inside, stage)
        part, by = GUESSED_BY_TRACING, "tracing"
    else:
        scores = _measure_again(subject, canaries, rest, inside, stage)
        part, by = GUESSED_BY_DISTANCE, "distance"
    guesses = guess(scores, inside, part)
    return {
        "epsilon_lower_bound": one_run_epsilon(guesses, subject.delta, confidence),
        "confidence": confidence,
        "by": by,
        **asdict(guesses),
    }


def _trace_again(
    subject: Subject,
    mechanism: MechanismConfig,
    canaries: InspectionDataset,
    rest: InspectionDataset,
    inside: np.ndarray,
    stage: Stage,
) -> np.ndarray:
    """Tracing scores of the canaries in a fresh run of a private mechanism."""
    model, name = subject.model, subject.name
    assert subject.params
    tracing = Tracing(len(canaries), 1 / 2)
    count = max(1, len(canaries) // 2) + len(rest)  # public, so not how many canaries are in
    exchanges: list[tuple[list[np.ndarray], tuple[np.ndarray, ...]]] = []

    def ask(queries: Mapping[str, SumQuery]) -> dict[str, Sums]:
        query = queries[name]
        vectors = image_vectors(model, canaries, query, stage(f"one run {len(exchanges) + 1}"))
        known = client_sums(model, rest, query, "image").vectors if len(rest) else ()
        exchanges.append((vectors, known))
        sums = tuple(block[inside].sum(0) for block in vectors)
        return {name: Sums(add_sums([sums, known]) if known else sums, count)}

    def trace(replies: Mapping[str, NoisySums]) -> None:
        vectors, known = exchanges[-1]
        tracing.add(vectors, replies[name], known)

    fresh = mechanism.start(model.backbone.get_feature_dim(), subject.public)
    run_mechanisms(
        {name: fresh}, ask, subject.params, system_noise, lambda releases: None, record=trace
    )
    return tracing.scores()


def _measure_again(
    subject: Subject,
    canaries: InspectionDataset,
    rest: InspectionDataset,
    inside: np.ndarray,
    stage: Stage,
) -> np.ndarray:
    """Minus the smallest distance of each canary to a fresh bank of those that are in."""
    model = subject.model
    included = canaries.select(np.flatnonzero(inside))
    included.samples = [*included.samples, *rest.samples]
    selection = model.select(included, model.coreset_percentage, progress=stage("coreset"))
    rows = selection.features.float().numpy()
    if subject.noise_epsilon:
        rows = add_embedding_noise(unit_rows(rows), subject.noise_sigma, system_noise)
    return -smallest_distances(model, (rows, subject.bank[1]), canaries, stage("one run"))


def _first_record(subject: Subject, query: SumQuery) -> tuple[np.ndarray, ...]:
    """The clipped vectors of the first record."""
    unit, group = subject.settings.privacy_unit, subject.settings.privacy_group
    records = read_records(subject.model, subject.train[0], query, unit, group)
    return clipped_vectors(query, next(records))
