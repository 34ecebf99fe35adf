"""Score images with the banks of a federation."""

from collections.abc import Mapping
from typing import Any, TypeVar

from src.data import InspectionDataset
from src.evaluation.score_set import ScoreSet, compute_metrics
from src.federated.bank_set import BankSet, split_by_object
from src.federated.candidates import Stage, silent
from src.federated.types import Bank
from src.models.patchcore import PatchCore

B = TypeVar("B", bound=Bank)


def install(model: PatchCore, bank: Bank) -> None:
    """Install a bank in a model, in place of the one it has."""
    model.set_memory_bank(bank.features, bank.transform)


def score_test_set(
    model: PatchCore, banks: BankSet[B], test: InspectionDataset, progress: Stage = silent
) -> dict[str, ScoreSet]:
    """Score test images object by object, each with its bank; objects without one are left out.

    Returns:
        object -> scores of its images. The model keeps the bank installed last.
    """
    scores, installed = {}, None
    for name, images in split_by_object(test).items():
        bank = banks.for_object(name)
        if bank is None:
            continue
        if bank is not installed:
            install(model, bank)
            installed = bank
        scores[name] = score(model, images, progress)
    return scores


def score(model: PatchCore, images: InspectionDataset, progress: Stage = silent) -> ScoreSet:
    """Score images with the bank that is installed."""
    return ScoreSet.of(images.samples, model.score(images, progress=progress("scoring")))


def metrics_by_object(
    model: PatchCore, test: InspectionDataset, scores: Mapping[str, ScoreSet]
) -> dict[str, dict[str, Any]]:
    """Image and pixel metrics of each object that has been scored."""
    return {
        name: compute_metrics(model, images, scores[name])
        for name, images in split_by_object(test).items()
        if name in scores
    }
