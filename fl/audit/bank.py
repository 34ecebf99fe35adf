"""Audits of one bank: is a training image known by it, is its claim true, what does it show?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fl.config import Settings
from src.data import InspectionDataset
from src.evaluation.metrics import image_metrics
from src.federated.candidates import Stage
from src.models import PatchCore
from src.models.coreset.streaming import BoundedRows
from src.privacy.attacks.auditing import many_run_bound, many_run_epsilon
from src.privacy.attacks.embedding_noise import (
    add_embedding_noise,
    noisy_row_scores,
    outlier_patches,
    sigma_for_vector,
    unit_rows,
)
from src.privacy.attacks.membership import (
    Asked,
    Attack,
    Bank,
    Tracing,
    contributions,
    core_scores,
    given_by,
    guess,
    mean_patches,
    patch_distances,
    reach,
    worst_patches,
)
from src.privacy.mechanisms.config import Plan
from src.privacy.queries import Ask, added, contribution
from src.privacy.records import records_of, sums_of
from src.privacy.runner import Answer, Step, Sums, Terms, run_mechanism, system_noise

CANARIES = 600  # training images of which the one-run audit guesses, at most
# part of them that is guessed, fixed before anything is seen: half of those «in» are known for
# certain by a raw bank, and tracing is right, if at all, about the most outlying
GUESSED_BY_DISTANCE, GUESSED_BY_TRACING = 1 / 2, 1 / 3
FIRST_ROWS = 64  # of a bank with noise that the many-run audit looks at, in the order picked
CANARY_PATCHES = 256  # of the canary against it; more than FIRST_ROWS


@dataclass(frozen=True)
class Subject:
    """One bank of a run, and what it takes to attack it.

    Attributes:
        name: of the bank.
        settings, model: of the run.
        train: by client, the images that helped to make the bank, and no empty share.
        test: all test images.
        others: the normal ones of them.
        own: images that the attacker holds.
        public: whether those are public ones; else they are normal test images too.
        bank: as it was released.
        delta: δ that bounds are for.
        terms: of a private mechanism.
        pairs: steps of a private mechanism, and the answers that were released.
        start: public patches that it began with, or None.
        noise_epsilon: ε that noise on the bank's vectors claims for each; 0 without such noise.
    """

    name: str
    settings: Settings
    model: PatchCore
    train: Sequence[InspectionDataset]
    test: InspectionDataset
    others: InspectionDataset
    own: InspectionDataset
    public: bool
    bank: Bank
    delta: float
    terms: Terms | None = None
    pairs: Sequence[tuple[Step, Answer]] = ()
    start: np.ndarray | None = None
    noise_epsilon: float = 0.0

    @property
    def members(self) -> InspectionDataset:
        """All images that helped to make the bank."""
        first = self.train[0]
        whole = first.select([])
        whole.samples = [sample for share in self.train for sample in share.samples]
        return whole

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the noise on the bank's vectors."""
        return sigma_for_vector(self.noise_epsilon, self.delta)

    @property
    def kinds(self) -> list[str]:
        """The audits that can be made of it: one run leaves images out, and guesses which."""
        plan = self.settings.plan
        if plan is None:
            return ["many_run", "one_run"] if self.noise_epsilon else ["one_run"]
        left_out = (plan.unit, plan.adjacency) == ("image", "null")
        return ["many_run", "one_run"] if left_out else ["many_run"]


def by_distance(subject: Subject, stage: Stage) -> tuple[Attack, list[np.ndarray]]:
    """Membership by the least distance of an image's patches; and all distances [h, w] of members.

    An image that owns a row of a raw bank lies at 0.
    """
    model, bank = subject.model, subject.bank
    of_members = patch_distances(model, bank, subject.members, stage("distances"))
    of_others = patch_distances(model, bank, subject.others, stage("of others"))
    nearest = [np.array([d.min() for d in grids]) for grids in (of_members, of_others)]
    return Attack(*nearest), of_members


def by_tracing(subject: Subject, plan: Plan, stage: Stage) -> tuple[Attack, list[Asked]]:
    """Membership by what the released sums say; and what was asked, for `core_audit`."""
    model, members, terms = subject.model, subject.members, subject.terms
    assert terms is not None
    count = len(members)
    tracing = Tracing(count + len(subject.others), count / (count + len(subject.others)))
    canary = worst_patches(mean_patches(model, subject.own))
    asked = []
    for step, answer in subject.pairs:
        vectors = contributions(model, members, step.ask, stage(step.name))
        others = contributions(model, subject.others, step.ask)
        both = zip(vectors, others, strict=True)
        tracing.add([np.concatenate(block) for block in both], answer)
        if plan.unit == "image":
            sums = Sums(tuple(block.sum(0) for block in vectors), count)
        else:
            sums = _sums(subject, step.ask)
        given = given_by(model, step.ask, canary)
        if plan.adjacency == "replace":
            taken = _first(subject, step.ask)
            given = tuple(new - old for new, old in zip(given, taken, strict=True))
        releases = [
            replace(release, sigma=sigma)  # as the run drew it, whatever it says
            for release, sigma in zip(terms.releases(step), answer.sigmas, strict=True)
        ]
        asked.append(Asked(step, releases, sums, given))
    scores = -tracing.scores()
    return Attack(scores[:count], scores[count:]), asked


def image_auroc(subject: Subject) -> float | None:
    """Image AUROC of the bank over the test images; None where there are no defects."""
    subject.model.set_memory_bank(*subject.bank)
    scores = [prediction.score for prediction in subject.model.score(subject.test)]
    labels = [sample.label for sample in subject.test.samples]
    return image_metrics(scores, labels).get("image_auroc")


def core_audit(
    subject: Subject, asked: Sequence[Asked], runs: int, confidence: float, stage: Stage
) -> dict:
    """Many runs of a private mechanism's releases, with a worst-case canary and without it.

    The likelihood ratio's middle is the threshold, from what the run claims of its noise: fixed
    before any run, so that all of them judge.
    """
    scores = core_scores(asked, system_noise, runs, stage("many runs"))
    middle = sum(
        float(g @ g) / r.sigma**2 / 2
        for one in asked
        for g, r in zip(one.given, one.releases, strict=True)
    )
    return {
        "epsilon_lower_bound": many_run_epsilon(*scores, subject.delta, confidence, middle),
        "confidence": confidence,
        "of": "the run's questions and noise, on its images with and without one canary image",
        "runs": 2 * runs,
        "canary_reach": reach(asked),
    }


def rows_audit(
    subject: Subject, runs: int, confidence: float, random: np.random.Generator, stage: Stage
) -> dict:
    """Many runs of the noise on a bank's first rows, selected with a canary and without it."""
    model, seed = subject.model, subject.settings.seed
    held, norm = BoundedRows(model.memory_limit, seed, model.device), 0.0
    for batch in model.embed(subject.members, stage("canary")):
        patches = batch.features.flatten(0, 2)
        held.add(patches)
        norm = max(norm, float(patches.float().norm(dim=1).max()))
    count = min(FIRST_ROWS, held.seen)
    without = unit_rows(held.select(count).features.float().numpy())
    canary = outlier_patches(2 * norm, patches.shape[1], CANARY_PATCHES, random)
    held.add(torch.from_numpy(canary).to(patches))
    given = unit_rows(held.select(count).features.float().numpy())
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
    """The mechanism once more, on a random half of the canaries; who was in is then guessed."""
    members = subject.members
    order = random.permutation(len(members))
    canaries, rest = members.select(order[:CANARIES]), members.select(order[CANARIES:])
    inside = random.random(len(canaries)) < 1 / 2
    plan = subject.settings.plan
    if plan:
        scores = _traced(subject, plan, canaries, rest, inside, stage)
        part, by = GUESSED_BY_TRACING, "tracing"
    else:
        scores = _far(subject, canaries, rest, inside, stage)
        part, by = GUESSED_BY_DISTANCE, "distance"
    found = guess(scores, inside, part)
    return {
        "epsilon_lower_bound": found.epsilon(subject.delta, confidence),
        "confidence": confidence,
        "by": by,
        "canaries": found.canaries,
        "guesses": found.guesses,
        "right": found.right,
    }


def _traced(
    subject: Subject,
    plan: Plan,
    canaries: InspectionDataset,
    rest: InspectionDataset,
    inside: np.ndarray,
    stage: Stage,
) -> np.ndarray:
    model = subject.model
    tracing = Tracing(len(canaries), 1 / 2)
    count = max(1, len(canaries) // 2)  # public, so not how many are in
    told: list[tuple[list[np.ndarray], tuple[np.ndarray, ...]]] = []

    def asking(ask: Ask) -> Sums:
        vectors = contributions(model, canaries, ask, stage(f"one run {len(told) + 1}"))
        known = sums_of(model, rest, ask, "image") if len(rest) else Sums((), 0)
        sums = tuple(block[inside].sum(0) for block in vectors)
        total = added([sums, known.vectors]) if known.records else sums
        told.append((vectors, known.vectors))
        return Sums(total, count + known.records)

    def keep(answer: Answer) -> None:
        vectors, known = told[-1]
        tracing.add(vectors, answer, known)

    assert subject.terms is not None
    fresh = plan.start(model.backbone.get_feature_dim(), subject.start)
    run_mechanism(fresh, asking, subject.terms, system_noise, lambda releases: None, keep=keep)
    return tracing.scores()


def _far(
    subject: Subject,
    canaries: InspectionDataset,
    rest: InspectionDataset,
    inside: np.ndarray,
    stage: Stage,
) -> np.ndarray:
    """Minus the least distance of each canary to a bank made anew of those that are in."""
    model = subject.model
    included = canaries.select(np.flatnonzero(inside))
    included.samples = [*included.samples, *rest.samples]
    picked = model.select(included, model.coreset_percentage, progress=stage("coreset"))
    rows = picked.features.float().numpy()
    if subject.noise_epsilon:
        rows = add_embedding_noise(unit_rows(rows), subject.noise_sigma, system_noise)
    bank = rows, subject.bank[1]
    return -np.array([d.min() for d in patch_distances(model, bank, canaries, stage("one run"))])


def _sums(subject: Subject, ask: Ask) -> Sums:
    """The sums of the run's own records."""
    settings, model = subject.settings, subject.model
    unit, group = settings.privacy_unit, settings.privacy_group
    parts = [sums_of(model, images, ask, unit, group) for images in subject.train]
    return Sums(added(part.vectors for part in parts), sum(part.records for part in parts))


def _first(subject: Subject, ask: Ask) -> tuple[np.ndarray, ...]:
    """What the first record gives."""
    settings = subject.settings
    unit, group = settings.privacy_unit, settings.privacy_group
    return contribution(ask, next(records_of(subject.model, subject.train[0], ask, unit, group)))
