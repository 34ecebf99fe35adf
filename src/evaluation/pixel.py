"""Pixel-level metrics: pixel AUROC, AUPRO and AU-sPRO over a whole test set.

All three are areas under one kind of curve, the weighted ROC curve of `curve.py`, with the
false-positive rate pooled over the normal pixels of all images. Only the weights differ:

    pixel AUROC   every defective pixel weighs the same
    AUPRO         a pixel weighs 1 / area of its connected region (Bergmann et al., IJCV 2021)
    AU-sPRO       the s highest pixels of a defect weigh 1 / s each, the others nothing, where s
                  is its saturation area: min(TP area / s, 1) (Bergmann et al., IJCV 2022)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from src.evaluation.curve import WeightedCurve, sorted_chunks

if TYPE_CHECKING:
    from src.data.dataset import Defect

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
MOST_SCORES = 1 << 15  # of a region; a larger one is represented by that many


def pixel_metrics(
    maps: Sequence[np.ndarray],
    defects: Sequence["list[Defect] | None"],
    limits: Sequence[float] = LIMITS,
) -> dict[str, float | dict[str, float]]:
    """Pixel AUROC, AUPRO and AU-sPRO of a test set's anomaly maps.

    Args:
        maps: one [H, W] float array per image, larger is more anomalous; sizes may differ. A
            sequence that loads at indexing is read at most twice, one map at a time.
        defects: per image the list of its defects, empty for a normal image, None where the
            ground truth is unknown. An image of unknown ground truth is left out, and so is one
            whose masks are all empty: it has a defect that nobody marked.
        limits: false-positive rates up to which AU-sPRO is integrated, in (0, 1].

    Returns:
        pixel_auroc, aupro (up to a false-positive rate of 0.3), aupro_0.05 and
        au_spro {"0.01": ...} for each of `limits`; every area is divided by its limit, and within
        1e-4 of exact. Empty if no image has a defect, or no pixel is normal.

    Raises:
        ValueError: a map is not finite, not [H, W] or not of its masks' size.
    """
    if len(maps) != len(defects):
        raise ValueError(f"{len(maps)} maps, but the defects of {len(defects)} images")
    if not all(0 < limit <= 1 for limit in limits):
        raise ValueError(f"limits are false-positive rates in (0, 1], got {list(limits)}")
    defective = _find_defective_pixels(maps, defects)
    if not defective.masks:
        return {}
    pixel, region, defect = defective.curves()
    for chunk in sorted_chunks(_normal_pixels(maps, defective)):
        for curve in (pixel, region, defect):
            curve.add_normals(chunk)
    if not pixel.normals:
        return {}
    return {
        "pixel_auroc": pixel.area(),
        "aupro": region.area(0.3),
        "aupro_0.05": region.area(0.05),
        "au_spro": {str(float(limit)): defect.area(limit) for limit in limits},
    }


@dataclass
class _DefectivePixels:
    """Scores and weights of all defective pixels; one list entry per region or defect."""

    region_scores: list[np.ndarray] = field(default_factory=list)
    pixel_weights: list[np.ndarray] = field(default_factory=list)  # a region's sum to its area
    region_weights: list[np.ndarray] = field(default_factory=list)  # a region's sum to 1
    defect_scores: list[np.ndarray] = field(default_factory=list)
    defect_weights: list[np.ndarray] = field(default_factory=list)  # a defect's sum to its sPRO
    masks: dict[int, np.ndarray] = field(default_factory=dict)  # image -> packed union mask
    unknown: set[int] = field(default_factory=set)  # images to leave out

    def add_region(self, scores: np.ndarray) -> None:
        area = scores.size
        scores, weights = _thin(np.sort(scores), np.ones(area))
        self.region_scores.append(scores)
        self.pixel_weights.append(weights)
        self.region_weights.append(weights / area)

    def add_defect(self, scores: np.ndarray, saturation: float) -> None:
        highest = np.sort(scores)[::-1][: int(np.ceil(saturation))]
        spro = np.minimum(np.arange(highest.size + 1) / saturation, 1.0)  # by pixels found
        scores, weights = _thin(highest, np.diff(spro))
        self.defect_scores.append(scores)
        self.defect_weights.append(weights)

    def curves(self) -> tuple[WeightedCurve, WeightedCurve, WeightedCurve]:
        regions, defects = np.concatenate(self.region_scores), np.concatenate(self.defect_scores)
        pixel_weights = np.concatenate(self.pixel_weights)
        return (
            WeightedCurve(regions, pixel_weights / pixel_weights.sum()),
            WeightedCurve(regions, np.concatenate(self.region_weights) / len(self.region_scores)),
            WeightedCurve(defects, np.concatenate(self.defect_weights) / len(self.defect_scores)),
        )


def _thin(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted scores in at most MOST_SCORES equal groups: the middle score and weight of each."""
    if scores.size <= MOST_SCORES:
        return scores, weights
    bounds = np.linspace(0, scores.size, MOST_SCORES + 1).astype(np.int64)
    return scores[(bounds[:-1] + bounds[1:]) // 2], np.add.reduceat(weights, bounds[:-1])


def _find_defective_pixels(
    maps: Sequence[np.ndarray], defects: Sequence["list[Defect] | None"]
) -> _DefectivePixels:
    defective = _DefectivePixels()
    for i in range(len(maps)):
        known = defects[i]
        marked = [defect for defect in known or [] if defect.mask.any()]
        if marked:
            _add_image(defective, i, _finite_map(maps, i), marked)
        elif known is None or known:
            defective.unknown.add(i)
    return defective


def _add_image(
    defective: _DefectivePixels, i: int, anomaly_map: np.ndarray, defects: "list[Defect]"
) -> None:
    for defect in defects:
        if defect.mask.shape != anomaly_map.shape:
            raise ValueError(
                f"map {i} is {anomaly_map.shape}, but its ground truth is {defect.mask.shape}; "
                "bring the map to its image's size first"
            )
        if not defect.saturation > 0:
            raise ValueError(f"a defect of image {i} has saturation {defect.saturation}, not > 0")
        defective.add_defect(anomaly_map[defect.mask], defect.saturation)
    union = np.logical_or.reduce([defect.mask for defect in defects])
    for scores in _split_by_region(anomaly_map, union):
        defective.add_region(scores)
    defective.masks[i] = np.packbits(union)


def _split_by_region(anomaly_map: np.ndarray, union: np.ndarray) -> list[np.ndarray]:
    """The scores of each 8-connected region of `union`."""
    regions, _ = ndimage.label(union, structure=np.ones((3, 3)))
    inside = regions[union]  # from 1
    ends = np.cumsum(np.bincount(inside)[1:])
    return np.split(anomaly_map[union][np.argsort(inside, kind="stable")], ends[:-1])


def _normal_pixels(maps: Sequence[np.ndarray], defective: _DefectivePixels) -> Iterator[np.ndarray]:
    """The scores outside every defect, an array an image of known ground truth."""
    for i in range(len(maps)):
        if i in defective.unknown:
            continue
        scores = _finite_map(maps, i).reshape(-1)
        if i in defective.masks:
            scores = scores[np.unpackbits(defective.masks[i], count=scores.size) == 0]
        yield scores


def _finite_map(maps: Sequence[np.ndarray], i: int) -> np.ndarray:
    anomaly_map = np.asarray(maps[i])
    if anomaly_map.ndim != 2:
        raise ValueError(f"map {i} has shape {anomaly_map.shape}; expected [H, W]")
    if not np.isfinite(anomaly_map).all():
        raise ValueError(f"map {i} holds values that are not finite (NaN or infinity)")
    return anomaly_map
