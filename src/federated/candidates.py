"""What a client selects from its images: the rows it can send, and the bank it keeps.

Nothing here knows of messages. The centralized baseline calls the same functions, as a client that
holds all images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.data import InspectionDataset
from src.federated.allocation import CURVE_POINTS, curve_counts
from src.federated.codec import Encoding, Parts, decode, encode, reconstruction_error
from src.federated.types import ClientBank, ClientStats, LocalBank, RadiusCurve
from src.models.patchcore import PatchCore, Progress

Stage = Callable[[str], Progress]  # name of a stage -> where to report its progress


def silent(stage: str) -> Progress:
    """Report progress to nobody."""
    return lambda done, total: None


def extract_features(model: PatchCore, dataset: InspectionDataset, progress: Progress) -> None:
    """Put the features of all images into the model's cache."""
    for _ in model.embed(dataset, progress):
        pass


@dataclass(frozen=True)
class Candidates:
    """Rows a client can send for one bank: a coreset, or in exact rounds its farthest patches."""

    rows: np.ndarray  # [k, D] in the order picked, in the features' precision
    # [k] covering radius of the client's patches by the first t + 1 rows and the merged bank; in
    # exact rounds, largest distance to the merged bank of any patch not yet sent
    radii: np.ndarray
    initial_radius: float  # the same by no row: by the merged bank, or infinite if there is none
    stats: ClientStats  # how much the client holds

    def curve(self, points: int = CURVE_POINTS) -> RadiusCurve:
        """The radius curve, at about so many points."""
        first = 0 if np.isfinite(self.initial_radius) else 1
        counts = curve_counts(len(self.rows), first, points)
        return RadiusCurve(self.stats, counts, np.array([self.radius(n) for n in counts]))

    def radius(self, count: int) -> float:
        """Covering radius of the client's patches by its first `count` rows."""
        return float(self.radii[count - 1]) if count else self.initial_radius

    def local_bank(self) -> LocalBank:
        """The bank the client keeps for itself: the first rows, as many as its share."""
        rows = self.rows[: self.stats.share]
        return LocalBank(rows, radius=self.radius(len(rows)))


def find_candidates(
    model: PatchCore,
    train: InspectionDataset,
    reach: float = 1.0,
    *,
    covered: np.ndarray | None = None,
    squared_distances: np.ndarray | None = None,
    progress: Stage = silent,
) -> Candidates:
    """Select a greedy coreset of a client's patches.

    Args:
        model: features, coreset percentage and seed.
        train: the client's normal images.
        reach: rows to select as a multiple of the client's share; never more than it has.
        covered: [M, D] rows that exist already and need not be sent.
        squared_distances: [P] squared distances of the client's patches to `covered`, if known.
        progress: where to report progress.
    """
    fraction = model.coreset_percentage
    selection = model.select(
        train,
        min(1.0, reach * fraction),
        existing=covered,
        squared_distances=squared_distances,
        progress=progress("coreset"),
    )
    stats = stats_of(len(train), selection.seen, fraction)
    return Candidates(
        selection.features.numpy(), selection.radii.numpy(), selection.initial_radius, stats
    )


def client_stats(model: PatchCore, train: InspectionDataset) -> ClientStats:
    """Count what a client holds, without selecting."""
    patches = sum(batch.features[..., 0].numel() for batch in model.embed(train))
    return stats_of(len(train), patches, model.coreset_percentage)


def stats_of(images: int, patches: int, fraction: float) -> ClientStats:
    """Stats of a client that keeps this fraction of its patches, one at least."""
    return ClientStats(images, patches, max(1, round(fraction * patches)))


@dataclass(frozen=True)
class EncodedBank:
    """A bank as it travels, and as the server decodes it."""

    parts: Parts
    bank: ClientBank


def encode_bank(
    candidates: Candidates, count: int, encoding: Encoding, share_radius: float
) -> EncodedBank:
    """Encode a client's first `count` rows; the radius includes the reconstruction error.

    Raises:
        ValueError: features that do not fit the encoding.
    """
    rows = candidates.rows[:count]
    parts = encode(rows, encoding)
    decoded = decode(parts, encoding, rows.shape[1])
    radius = candidates.radius(len(rows)) + reconstruction_error(rows, decoded)
    if len(rows) and not np.isfinite(radius):
        raise ValueError(f"features do not fit {encoding}: set merge.encoding to float32")
    return EncodedBank(parts, ClientBank(decoded, radius, share_radius, candidates.stats))
