"""fedpatchcore audit: attack a finished simulation run, and compare the result with its claim.

Every lower bound on ε is measured on the run's own data. It holds with its confidence, whatever the
mechanism is. The largest of several bounds is reported, so each gets a share of the error
probability (Bonferroni).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl.audit.attacks import (
    canary_audit,
    distance_attack,
    image_auroc,
    noisy_rows_audit,
    one_run_audit,
    tracing_attack,
)
from fl.audit.inversion import invert_bank
from fl.audit.subject import FinishedRun, Subject
from src.federated.candidates import Stage
from src.privacy.attacks.auditing import CONFIDENCE
from src.privacy.attacks.embedding_noise import NO_GUARANTEE
from src.privacy.attacks.membership import Attack
from src.reporting.audit.page import Finding, write_audit_page
from src.storage.atomic import write_whole

AUDIT, PAGE = "audit.json", "audit.html"
EMBEDDING_NOISE = "embedding_noise"


def audit_run(
    run: FinishedRun, subjects: Sequence[Subject], runs: int, seed: int, stage: Stage
) -> tuple[dict[str, Any], list[Finding]]:
    """Audit the banks of a run: the content of audit.json, and a finding for each bank.

    A many-run audit makes `runs` runs with the canary and as many without it; `seed` chooses the
    canaries.

    Raises:
        ConfigError: what the run left does not belong together.
    """
    confidence = 1 - (1 - CONFIDENCE) / sum(len(subject.audits) for subject in subjects)
    findings = []
    for number, subject in enumerate(subjects):
        random = np.random.default_rng([seed, number])
        try:
            findings.append(_audit_bank(run, subject, runs, confidence, random, stage))
        except ValueError as error:
            raise run.refusal(error) from error
    return _combine(findings), findings


def _audit_bank(
    run: FinishedRun,
    subject: Subject,
    runs: int,
    confidence: float,
    random: np.random.Generator,
    stage: Stage,
) -> Finding:
    distance, grids = distance_attack(subject, stage)
    attacks, audits = {"distance": distance}, {}
    mechanism = run.settings.mechanism
    if mechanism:
        attacks["tracing"], steps = tracing_attack(subject, mechanism, stage)
        audits["many_run"] = canary_audit(subject, steps, runs, confidence, stage)
    elif subject.noise_epsilon:
        audits["many_run"] = noisy_rows_audit(subject, runs, confidence, random, stage)
    if "one_run" in subject.audits:
        audits["one_run"] = one_run_audit(subject, confidence, random, stage)
    inversion, shown = invert_bank(subject, grids, random, stage)
    metrics = _metrics(run, subject, attacks, audits) | {"inversion": inversion}
    scores = {name: (attack.members, attack.others) for name, attack in attacks.items()}
    return Finding(subject.name, metrics | {"verdict": verdict(metrics)}, scores, shown)


def _metrics(
    run: FinishedRun, subject: Subject, attacks: Mapping[str, Attack], audits: Mapping[str, dict]
) -> dict[str, Any]:
    by_attack = {name: attack.metrics() for name, attack in attacks.items()}
    distance = by_attack["distance"]
    largest = max(audits, key=lambda name: audits[name]["epsilon_lower_bound"])
    metrics = {
        "mechanism": run.settings.privacy_mechanism,
        "guarantee": run.metrics.privacy.guarantee,
        "claimed_epsilon": run.ledger.epsilon if run.ledger else None,
        "delta": subject.delta,
        "epsilon_lower_bound": audits[largest]["epsilon_lower_bound"],
        "confidence": CONFIDENCE,
        "membership_auc": distance["auc"],
        "tpr_at_1_percent": distance["tpr_at_1_percent"],
        "tpr_at_0.1_percent": distance["tpr_at_0.1_percent"],
        "tracing_auc": by_attack["tracing"]["auc"] if "tracing" in by_attack else None,
        "attacks": by_attack,
        "audits": {**audits, "largest": largest},
    }
    if subject.noise_epsilon:
        metrics |= {
            "mechanism": EMBEDDING_NOISE,
            "guarantee": NO_GUARANTEE,
            "claimed_epsilon": subject.noise_epsilon,
            "image_auroc": image_auroc(subject),
        }
    return metrics


def verdict(metrics: Mapping[str, Any]) -> str:
    """What the lower bound says of the claim, in one sentence."""
    bound, claimed = metrics["epsilon_lower_bound"], metrics["claimed_epsilon"]
    shown = f"ε ≥ {bound:.2f} for an image"
    confidence = f"with {100 * metrics['confidence']:.0f} % confidence"
    if claimed is None:
        return f"No claim was made; the bank gives away at least {shown}, {confidence}."
    claim = f"the claim of ε = {claimed:.4g}"
    if metrics["mechanism"] == EMBEDDING_NOISE:
        claim += " for each vector"
    if bound <= claimed:
        return f"The audit is consistent with {claim}: it shows {shown}, {confidence}."
    return f"The audit shows that {claim} is false: {shown}, {confidence}."


def _combine(findings: Sequence[Finding]) -> dict[str, Any]:
    """The worst bank's metrics; with several banks, also the metrics of each by name."""
    worst = max(findings, key=lambda finding: finding.figures["epsilon_lower_bound"]).figures
    leakiest = max(findings, key=lambda finding: finding.figures["membership_auc"]).figures
    keys = ("membership_auc", "tpr_at_1_percent", "tpr_at_0.1_percent", "tracing_auc")
    combined = {**worst, **{key: leakiest[key] for key in keys}}
    if len(findings) > 1:
        combined["banks"] = {finding.name: finding.figures for finding in findings}
    return combined


def write_audit(
    out: Path, folder: Path, metrics: Mapping[str, Any], findings: Sequence[Finding]
) -> Path:
    """Write audit.json and audit.html of a run into a folder; returns the page's path."""
    write_audit_page(out / PAGE, metrics, findings, folder.absolute().name)
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(out / AUDIT, text + "\n")
    return out / PAGE
