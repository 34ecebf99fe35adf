"""fedpatchcore audit: attack a finished simulation run, and hold what it claims against that.

Every lower bound on ε is measured with the data here; it holds with its confidence whatever the
mechanism is. The best of several is reported, each then with a share of the doubt (Bonferroni).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl.audit.bank import (
    Subject,
    by_distance,
    by_tracing,
    core_audit,
    image_auroc,
    one_run_audit,
    rows_audit,
)
from fl.audit.inversion import invert_bank
from fl.client.node import PARTITION
from fl.config import ConfigError, Settings, check_settings, default_settings, read_config
from fl.server.checkpoint import MODEL
from fl.server.ledger_store import ANSWERS, read_answers
from fl.server.ledger_store import LEDGER as LEDGER_FILE
from fl.setup.data import Split, open_split
from fl.setup.model import build_model
from fl.setup.public import images_below, public_patches
from fl.workspace.directory import CONFIG, METRICS
from src.data import DataError
from src.data.partition import Partition
from src.federated.bank_set import split_by_bank
from src.federated.candidates import Stage
from src.models import FileError, PatchCore
from src.models.feature_transform import FeatureTransform
from src.models.model_file import ModelFile
from src.privacy.attacks.auditing import CONFIDENCE
from src.privacy.attacks.embedding_noise import (
    NO_GUARANTEE,
    add_embedding_noise,
    sigma_for_vector,
    unit_rows,
)
from src.privacy.attacks.membership import Attack, Bank
from src.privacy.ledger import Ledger, read_ledger
from src.privacy.mechanisms.config import Plan
from src.privacy.runner import replayed, system_noise
from src.reporting.audit.page import Finding, write_audit_page
from src.storage.atomic import write_whole
from src.storage.run_metrics import RunMetrics

AUDIT, PAGE = "audit.json", "audit.html"
EMBEDDING_NOISE = "embedding_noise"
LEAST_OTHERS = 10  # normal test images of a bank
MOST_BYTES = 8_000_000_000  # for what all images give to a step, twice


@dataclass(frozen=True)
class Finished:
    """A run that is over, with its data."""

    folder: Path
    settings: Settings
    model: PatchCore
    data: Split
    partition: Partition
    file: ModelFile
    ledger: Ledger
    metrics: RunMetrics


def open_finished(folder: Path) -> Finished:
    """A run directory and the data that the run was of.

    Raises:
        ConfigError: it is not one of a finished simulation, or its data are not there any more.
    """
    missing = [n for n in (CONFIG, METRICS, PARTITION, MODEL) if not (folder / n).is_file()]
    if missing:
        raise ConfigError(f"{folder} is no finished run: it has no {missing[0]}")
    settings = check_settings(default_settings() | read_config(folder / CONFIG))
    if not settings.data_shared:
        raise ConfigError(
            f"{folder} is of a federation whose data lie with the nodes (data.shared = false): an "
            "audit needs the training images, so it is of simulations"
        )
    try:
        data = open_split(settings)
        partition = Partition.load(folder / PARTITION)
        partition.check(data.train.samples, data.test.samples)
        file = ModelFile.read(folder / MODEL)
        ledger = _ledger(folder, settings)
        metrics = RunMetrics.read(folder / METRICS)
    except (DataError, FileError) as error:
        raise ConfigError(f"{folder} cannot be audited: {error}") from error
    model = build_model(settings)
    if model.backbone.fingerprint != file.fingerprint:
        raise ConfigError(f"{folder} cannot be audited: its model was made with other weights")
    return Finished(folder, settings, model, data, partition, file, ledger, metrics)


def _ledger(folder: Path, settings: Settings) -> Ledger:
    path = Path(settings.privacy_ledger) if settings.privacy_ledger else folder / LEDGER_FILE
    if settings.privacy_mechanism == "none":
        return Ledger()
    if not path.is_file():
        raise ConfigError(f"{folder} cannot be audited: its ledger {path} is not there")
    try:
        return read_ledger(path)
    except ValueError as error:
        raise ConfigError(f"{folder} cannot be audited: {error}") from error


def audit_run(
    run: Finished, subjects: Sequence[Subject], runs: int, seed: int, stage: Stage
) -> tuple[dict[str, Any], list[Finding]]:
    """Audit the banks of a run: audit.json's content, and what is behind it.

    Args:
        run: which.
        subjects: its banks.
        runs: of many-run audits, with the canary and without it each.
        seed: of which images are canaries.
        stage: who to tell how far it is.

    Raises:
        ConfigError: what the run left does not belong together.
    """
    confidence = 1 - (1 - CONFIDENCE) / sum(len(subject.kinds) for subject in subjects)
    findings = []
    for number, subject in enumerate(subjects):
        random = np.random.default_rng([seed, number])
        try:
            findings.append(_audit(run, subject, runs, confidence, random, stage))
        except ValueError as error:
            raise ConfigError(f"{run.folder} cannot be audited: {error}") from error
    return _together(findings), findings


def subjects_of(run: Finished, public: Path | None, seed: int) -> list[Subject]:
    """The banks of a run, and what it takes to attack them.

    Args:
        run: which.
        public: a folder of images that the attacker has; without, half of the normal test images.
        seed: of which half.

    Raises:
        ConfigError: there is too little to audit a bank with.
    """
    settings, model = run.settings, run.model
    merged = [client.client for client in run.metrics.local.clients]
    trained = [run.data.share(run.partition, client).train for client in merged]
    shares = [split_by_bank(train, settings.model_scope) for train in trained]
    tests = split_by_bank(run.data.test, settings.model_scope)
    plan = settings.plan
    found = []
    for number, (name, rows) in enumerate(sorted(run.file.banks.items())):
        test = tests.get(name, run.data.test.select([]))
        others = test.select([i for i, sample in enumerate(test.samples) if not sample.label])
        if len(others) < LEAST_OTHERS:
            raise ConfigError(
                f"{run.folder} cannot be audited: {name} has {len(others)} normal test images, and "
                f"an audit compares with {LEAST_OTHERS} at least"
            )
        half = np.random.default_rng([seed, number, 1]).permutation(len(others))
        own = images_below(public, name, "--public") if public else None
        found.append(
            Subject(
                name,
                settings,
                model,
                [share[name] for share in shares if name in share],
                test,
                others,
                own or others.select(half[: len(others) // 2]),
                bool(public),
                (rows, run.file.transforms.get(name)),
                run.ledger.budget.delta if run.ledger.budget else settings.privacy_delta,
            )
        )
    return [_with_answers(run, plan, subject) for subject in found] if plan else found


def with_embedding_noise(
    run: Finished, subjects: Sequence[Subject], epsilon: float
) -> list[Subject]:
    """The banks of an ordinary run with noise on each vector, for a claim of ε for one vector.

    Raises:
        ConfigError: the run is a private one.
    """
    if run.settings.plan:
        raise ConfigError(
            f"--embedding-noise: {run.folder} is a private run; name one with "
            "privacy.mechanism = none, whose bank holds patches as they are"
        )

    def noisy(subject: Subject) -> Bank:
        sigma = sigma_for_vector(epsilon, subject.delta)
        return add_embedding_noise(
            unit_rows(subject.bank[0]), sigma, system_noise
        ), FeatureTransform()

    return [replace(s, bank=noisy(s), noise_epsilon=epsilon) for s in subjects]


def _with_answers(run: Finished, plan: Plan, subject: Subject) -> Subject:
    """A bank of a private mechanism, with what was asked and answered, which must give that bank.

    Raises:
        ConfigError: it does not, or there are no answers.
    """
    path, name = run.folder / ANSWERS, subject.name
    if not path.is_file():
        raise ConfigError(f"{run.folder} is no finished run: it has no {ANSWERS}")
    public = public_patches(run.settings, run.model, name)
    try:
        kept = read_answers(path)
        answers = [exchange[name] for exchange in kept.exchanges if name in exchange]
        fresh = plan.start(run.model.backbone.get_feature_dim(), public)
        pairs, made = replayed(fresh, answers)
    except (FileError, ValueError) as error:
        raise ConfigError(f"{run.folder} cannot be audited: {error}") from error
    rows, frame = subject.bank
    basis = None if frame is None else frame.basis
    if not (_alike(made.rows, rows) and _alike(made.basis, basis)):
        raise ConfigError(
            f"{run.folder} cannot be audited: the answers in {ANSWERS} do not give the bank "
            f"{name} here; audit it with the settings, and on a machine, like those of the run"
        )
    counts = {answer.records for answer in answers}
    if plan.unit == "image" and counts != {len(subject.members)}:
        raise ConfigError(
            f"{run.folder} cannot be audited: its answers are of {min(counts)} images of {name}, "
            f"and its clients hold {len(subject.members)}: one was lost on the way"
        )
    largest = max(sum(block.size for block in step.ask.blocks) for step, _ in pairs)
    needed = 2 * 8 * largest * (len(subject.members) + len(subject.others))
    if needed > MOST_BYTES:
        raise ConfigError(
            f"{run.folder} cannot be audited: what the images of {name} give would take "
            f"{needed / 1e9:.0f} GB of memory, and an audit takes {MOST_BYTES / 1e9:.0f}"
        )
    terms = plan.terms(kept.mu, len(run.file.banks))
    return replace(subject, terms=terms, pairs=pairs, start=public)


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether arrays are the same but for rounding to single precision."""
    if one is None or other is None:
        return one is other
    scale = max(float(np.abs(one).max()), 1.0)
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)


def _audit(
    run: Finished,
    subject: Subject,
    runs: int,
    confidence: float,
    random: np.random.Generator,
    stage: Stage,
) -> Finding:
    plan = run.settings.plan
    distance, grids = by_distance(subject, stage)
    attacks = {"distance": distance}
    audits: dict[str, dict] = {}
    if plan:
        attacks["tracing"], asked = by_tracing(subject, plan, stage)
        audits["many_run"] = core_audit(subject, asked, runs, confidence, stage)
    elif subject.noise_epsilon:
        audits["many_run"] = rows_audit(subject, runs, confidence, random, stage)
    if "one_run" in subject.kinds:
        audits["one_run"] = one_run_audit(subject, confidence, random, stage)
    inversion, shown = invert_bank(subject, grids, random, stage)
    figures = _figures(run, subject, attacks, audits) | {"inversion": inversion}
    scores = {name: (attack.members, attack.others) for name, attack in attacks.items()}
    return Finding(subject.name, figures | {"verdict": verdict(figures)}, scores, shown)


def _figures(
    run: Finished, subject: Subject, attacks: Mapping[str, Attack], audits: Mapping[str, dict]
) -> dict:
    settings = run.settings
    by_name = {name: attack.figures() for name, attack in attacks.items()}
    shown = max(audits, key=lambda name: audits[name]["epsilon_lower_bound"])
    claimed: float | None = None
    if settings.plan:
        claimed = run.ledger.epsilon if math.isfinite(run.ledger.epsilon) else None
    figures: dict[str, Any] = {
        "mechanism": settings.privacy_mechanism,
        "guarantee": run.metrics.privacy.guarantee,
        "claimed_epsilon": claimed,
        "delta": subject.delta,
        "epsilon_lower_bound": audits[shown]["epsilon_lower_bound"],
        "confidence": CONFIDENCE,
        "membership_auc": by_name["distance"]["auc"],
        "tpr_at_1_percent": by_name["distance"]["tpr_at_1_percent"],
        "tpr_at_0.1_percent": by_name["distance"]["tpr_at_0.1_percent"],
        "tracing_auc": by_name["tracing"]["auc"] if "tracing" in by_name else None,
        "attacks": by_name,
        "audits": {**audits, "largest": shown},
    }
    if subject.noise_epsilon:
        figures |= {
            "mechanism": EMBEDDING_NOISE,
            "guarantee": NO_GUARANTEE,
            "claimed_epsilon": subject.noise_epsilon,
            "image_auroc": image_auroc(subject),
        }
    return figures


def verdict(figures: Mapping) -> str:
    """What the bound says of the claim, in one sentence."""
    bound, claimed = figures["epsilon_lower_bound"], figures["claimed_epsilon"]
    least, sure = f"ε ≥ {bound:.2f}", f"with {100 * figures['confidence']:.0f} % confidence"
    if claimed is None:
        return f"No claim was made; the bank gives away at least {least} for an image, {sure}."
    of_vectors = figures["mechanism"] == EMBEDDING_NOISE
    claim = f"the claim of ε = {claimed:.4g}" + (" for each vector" if of_vectors else "")
    if bound <= claimed:
        return f"The audit is consistent with {claim}: it shows {least} for an image, {sure}."
    if of_vectors:
        return f"The audit shows that {claim} is false for an image: {least}, {sure}."
    return f"The audit shows that {claim} is false: {least} for an image, {sure}."


def _together(findings: Sequence[Finding]) -> dict:
    """The worst bank's figures; and of several all of them, by name."""
    worst = max(findings, key=lambda f: f.figures["epsilon_lower_bound"]).figures
    open_ = max(findings, key=lambda f: f.figures["membership_auc"]).figures
    keys = ("membership_auc", "tpr_at_1_percent", "tpr_at_0.1_percent", "tracing_auc")
    whole = {**worst, **{key: open_[key] for key in keys}}
    if len(findings) > 1:
        whole["banks"] = {finding.name: finding.figures for finding in findings}
    return whole


def write_audit(
    out: Path, folder: Path, figures: Mapping[str, Any], findings: Sequence[Finding]
) -> Path:
    """Write audit.json and audit.html of a run into a folder; returns the page's path."""
    write_audit_page(out / PAGE, figures, findings, folder.absolute().name)
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(out / AUDIT, text + "\n")
    return out / PAGE
