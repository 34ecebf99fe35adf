"""What a client does in a round: select a bank from its images, and score with a bank it is given.

Nothing here knows of messages. The centralized baseline is the same two functions, called by a
client that holds everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from src.data import InspectionDataset
from src.evaluation.score_set import ScoreSet
from src.federated.allocation import CURVE_POINTS, curve_counts
from src.federated.codec import Coding, Parts, decode, encode, slip
from src.federated.types import QUANTILES, Calibration, ClientBank, Holding, Survey
from src.models.feature_transform import Frame
from src.models.patchcore import PatchCore, Progress

SHARED = "shared"  # the bank's name where all objects share one

Stage = Callable[[str], Progress]


def silent(stage: str) -> Progress:
    """Progress that nobody watches."""
    return lambda done, total: None


def by_bank(dataset: InspectionDataset, scope: str) -> dict[str, InspectionDataset]:
    """A dataset's images by the bank they belong to: one an object, or one for all ("shared")."""
    if scope == "shared":
        return {SHARED: dataset} if len(dataset) else {}
    return by_object(dataset)


def by_object(dataset: InspectionDataset) -> dict[str, InspectionDataset]:
    """A dataset's images by object."""
    names = [sample.object for sample in dataset.samples]
    return {
        name: dataset.select([i for i, other in enumerate(names) if other == name])
        for name in dataset.objects
    }


def extract_features(model: PatchCore, dataset: InspectionDataset, progress: Progress) -> None:
    """Put the features of all images into the model's cache."""
    for _ in model.embed(dataset, progress):
        pass


@dataclass(frozen=True)
class Candidates:
    """What a client could send of one bank: a coreset, or (`exact`) the farthest patches.

    Attributes:
        rows: [k, D] in the order picked, in the features' precision.
        radii: [k] covering radius of the client's patches by the first t + 1 of them and the bank
            that is there already; of the farthest patches: of those that are left, by that bank.
        before: the same by none of them: by the bank that is there already, else infinite.
        holding: what is behind them.
    """

    rows: np.ndarray
    radii: np.ndarray
    before: float
    holding: Holding

    def survey(self, points: int = CURVE_POINTS) -> Survey:
        """How many rows cover how much, at about so many points."""
        first = 0 if np.isfinite(self.before) else 1
        counts = curve_counts(len(self.rows), first, points)
        return Survey(self.holding, counts, np.array([self.radius(n) for n in counts]))

    def radius(self, count: int) -> float:
        """Covering radius of the client's patches by its first `count` rows."""
        return float(self.radii[count - 1]) if count else self.before

    def own(self) -> "OwnBank":
        """The bank that the client would keep by itself."""
        rows = self.rows[: self.holding.share]
        return OwnBank(rows, self.radius(len(rows)))


@dataclass(frozen=True)
class OwnBank:
    """The bank that a client would keep by itself: rows [share, D], their covering radius."""

    rows: np.ndarray
    radius: float


@dataclass(frozen=True)
class Known:
    """Rows [n, D] that a client sent: as its images gave them, and as the coding left them."""

    sources: np.ndarray
    decoded: np.ndarray


def find_candidates(
    model: PatchCore,
    train: InspectionDataset,
    reach: float = 1.0,
    covered: np.ndarray | None = None,
    squared: np.ndarray | None = None,
    progress: Stage = silent,
) -> Candidates:
    """Greedy coreset of a client's patches, from which it can send as many rows as it may.

    Args:
        model: features, coreset percentage and seed.
        train: the client's normal images.
        reach: rows to pick, as a multiple of the client's share; never more than it has.
        covered: [M, D] rows that are there already and need not be sent.
        squared: squared distances to those of the client's patches, where they are known.
        progress: who to tell how far it is.
    """
    fraction = model.coreset_percentage
    picked = model.select(
        train,
        min(1.0, reach * fraction),
        existing=covered,
        squared_distances=squared,
        selecting=progress("coreset"),
    )
    held = holding(len(train), picked.seen, fraction)
    return Candidates(picked.features.numpy(), picked.radii.numpy(), picked.initial_radius, held)


def holding_of(model: PatchCore, train: InspectionDataset) -> Holding:
    """How much a client holds, without any selection."""
    patches = sum(batch.features[..., 0].numel() for batch in model.embed(train))
    return holding(len(train), patches, model.coreset_percentage)


def holding(images: int, patches: int, fraction: float) -> Holding:
    """How much a client holds that keeps this fraction of its patches, one at least."""
    return Holding(images, patches, max(1, round(fraction * patches)))


@dataclass(frozen=True)
class CodedBank:
    """A bank as it goes on the wire, and as it comes out of the decoder."""

    parts: Parts
    bank: ClientBank


def code_bank(found: Candidates, rows: int, coding: Coding, share_radius: float) -> CodedBank:
    """The first rows of what a client could send, coded; what that does to them is in the radius.

    Raises:
        ValueError: features that the coding cannot hold.
    """
    sent = found.rows[:rows]
    parts = encode(sent, coding)
    decoded = decode(parts, coding, sent.shape[1])
    radius = found.radius(len(sent)) + slip(sent, decoded)
    if len(sent) and not np.isfinite(radius):
        raise ValueError(f"features do not fit {coding.encoding}: set merge.encoding to float32")
    return CodedBank(parts, ClientBank(decoded, radius, share_radius, found.holding))


def score_with(
    model: PatchCore,
    bank: np.ndarray,
    dataset: InspectionDataset,
    progress: Stage = silent,
    frame: Frame | None = None,
) -> ScoreSet:
    """Install a bank, in its frame if it has one, and score a dataset's images with it."""
    model.set_memory_bank(bank, frame)
    return ScoreSet.of(dataset.samples, model.score(dataset, progress=progress("scoring")))


def calibrate_with(
    model: PatchCore,
    bank: np.ndarray,
    train: InspectionDataset,
    known: Known | None = None,
    progress: Stage = silent,
) -> Calibration:
    """Install a bank and see how the client's own normal images stand to it.

    Args:
        model: features and scores.
        bank: [N, D].
        train: the client's normal images.
        known: rows the client sent, by which an image's own rows are found in the bank; without,
            they are those that equal one of its patches.
        progress: who to tell how far it is.
    """
    model.set_memory_bank(bank)
    scores, radius = [], 0.0
    coded = (known.sources, known.decoded) if known else None
    watching = progress("calibration")
    for prediction in model.score(train, without_own=True, coded=coded, progress=watching):
        scores.append(prediction.score)
        radius = max(radius, float(prediction.distances.max()))
    judged = np.array(scores)[np.isfinite(scores)]  # infinite where the bank is all the image's own
    quantiles = np.quantile(judged, np.linspace(0, 1, QUANTILES)) if len(judged) else np.empty(0)
    return Calibration(quantiles, len(judged), radius)


def pooled_threshold(calibrations: Mapping[int, Calibration], false_alarm_rate: float) -> float:
    """Score above which about `false_alarm_rate` of all clients' normal images lie.

    The quantile of the mixture of the clients' score distributions, each given by its quantiles
    and weighted by its images.

    Raises:
        ValueError: no client judged an image.
    """
    calibrations = {client: c for client, c in calibrations.items() if c.images}
    if not calibrations:
        raise ValueError("a threshold needs the scores of normal images")
    scores = np.concatenate([c.quantiles for c in calibrations.values()])
    weights = np.concatenate(
        [np.full(QUANTILES, c.images / QUANTILES) for c in calibrations.values()]
    )
    order = np.argsort(scores)
    share = np.cumsum(weights[order]) / weights.sum()
    at = min(int(np.searchsorted(share, 1 - false_alarm_rate)), len(scores) - 1)
    return float(scores[order[at]])
