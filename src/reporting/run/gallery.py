"""The report's gallery: the images that a detector got most wrong, and most right.

Each is shown as it is and under its heat map. The colours of one object's images share one
scale, since a scale of its own would make every image's maximum look alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from src.reporting.maps import overlay
from src.reporting.page import picture_uri
from src.reporting.run.scores import ScoreRow

LONGEST_SIDE = 240  # px
SHOWN = 6


class ImageSource(Protocol):
    """Where the gallery gets what it shows of a test image."""

    def image(self, row: ScoreRow) -> np.ndarray: ...  # uint8 [H, W, 3]
    def map(self, row: ScoreRow) -> np.ndarray: ...  # float32 [H, W]
    def mask(self, row: ScoreRow) -> np.ndarray | None: ...  # bool [H, W]


@dataclass(frozen=True)
class Picture:
    row: ScoreRow
    threshold: float | None
    image: str  # data URIs
    heat: str


def choose(
    rows: Sequence[ScoreRow], thresholds: Mapping[str, float], shown: int = SHOWN
) -> dict[str, list[ScoreRow]]:
    """The worst misses, the worst false alarms and the clearest hits among the test images.

    Scores of two objects, each with its own bank, are not on one scale: where the objects'
    thresholds differ, images are ordered by score / threshold.

    Returns:
        misses: anomalous images, lowest score first.
        alarms: normal images, highest score first.
        hits: anomalous images, highest score first; none of the misses.
    """
    known = sorted(rows, key=lambda row: row.federated / (thresholds.get(row.object) or 1.0))
    normal = [row for row in known if row.label == 0]
    anomalous = [row for row in known if row.label == 1]
    low = min(shown, (len(anomalous) + 1) // 2)
    high = min(shown, len(anomalous) - low)
    return {
        "misses": anomalous[:low],
        "alarms": normal[::-1][:shown],
        "hits": anomalous[::-1][:high],
    }


def pictures(
    choice: Mapping[str, Sequence[ScoreRow]], thresholds: Mapping[str, float], source: ImageSource
) -> dict[str, list[Picture]]:
    """`choice` drawn. Holds the small pictures only."""
    shown = [row for rows in choice.values() for row in rows]
    small = {row.key: _small(row, source) for row in shown}
    scales = {
        name: _scale([small[row.key][1] for row in shown if row.object == name])
        for name in {row.object for row in shown}
    }

    def picture(row: ScoreRow) -> Picture:
        image, heat, mask = small[row.key]
        coloured = overlay(image, heat, *scales[row.object], outline=mask)
        uris = picture_uri(image, "jpeg"), picture_uri(coloured, "jpeg")
        return Picture(row, thresholds.get(row.object), *uris)

    return {name: [picture(row) for row in rows] for name, rows in choice.items()}


def _small(row: ScoreRow, source: ImageSource) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image [h, w, 3], map [h, w] and mask [h, w] of one row, none longer than LONGEST_SIDE."""
    picture = Image.fromarray(source.image(row)).convert("RGB")
    part = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * part)), max(1, round(picture.height * part)))
    heat = Image.fromarray(np.asarray(source.map(row), np.float32))
    mask = source.mask(row)
    return (
        np.asarray(picture.resize(size, Image.Resampling.LANCZOS)),
        np.asarray(heat.resize(size, Image.Resampling.BILINEAR)),
        None if mask is None or not mask.any() else _small_mask(mask, size),
    )


def _small_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A pixel is in the small mask if any that it stands for is: thin defects stay."""
    share = Image.fromarray(np.asarray(mask, np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(share) > 0


def _scale(heats: Sequence[np.ndarray]) -> tuple[float, float]:
    """(low, high): from the median of an object's maps to almost their maximum."""
    low, high = np.quantile(np.concatenate([heat.ravel() for heat in heats]), (0.5, 0.998))
    return float(low), float(max(high, low + 1e-6))
