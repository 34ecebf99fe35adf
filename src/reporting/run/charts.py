"""Geometry of the report's charts; templates/charts.html.j2 draws it as SVG.

Coordinates are SVG user units, y downwards. The page's style sheet gives the colours, so that
one chart serves the light and the dark scheme.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from src.evaluation.metrics import roc_curve_points
from src.reporting.formats import figure

BINS = 30
MIDDLE = 142.0  # the line that the two histograms share


@dataclass(frozen=True)
class Axis:
    """A linear scale from values [low, high] to coordinates [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + float(part) * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """At most about `most` round values on the axis: coordinate and text."""
        round_values = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        values = [float(v) for v in round_values if self.holds(float(v))]
        digits = _digits(values)
        return [(self.at(v), figure(v, digits)) for v in values]

    def holds(self, value: float) -> bool:
        slack = 1e-9 * (self.high - self.low)
        return self.low - slack <= value <= self.high + slack


def _digits(values: Sequence[float]) -> int:
    step = float(min(np.diff(values), default=1.0))
    return max(0, -int(np.floor(np.log10(step) + 1e-9)))


@dataclass(frozen=True)
class RocCurve:
    kind: str  # "local", "centralized" or "federated": decides the line's style
    points: str  # an SVG polyline's


ROC_X = Axis(0, 1, 42, 312)
ROC_Y = Axis(0, 1, 278, 8)


def roc_line(kind: str, scores: Sequence[float | None], labels: Sequence[int]) -> RocCurve | None:
    """The ROC curve of the images that have a score; None unless both classes do."""
    scored = zip(scores, labels, strict=True)
    known = [(s, label) for s, label in scored if s is not None and np.isfinite(s)]
    if len({label for _, label in known}) < 2:
        return None
    false_alarms, found = roc_curve_points([s for s, _ in known], [label for _, label in known])
    points = [(ROC_X.at(x), ROC_Y.at(y)) for x, y in zip(false_alarms, found, strict=True)]
    return RocCurve(kind, " ".join(f"{x},{y}" for x, y in dict.fromkeys(points)))


@dataclass(frozen=True)
class Histogram:
    """Two histograms back to back: normal images upwards, anomalous downwards.

    A bar's length is the share of its class, so that classes of unequal size compare.
    """

    x: Axis
    normal: list[tuple[float, float, float, float]]  # x, y, width, height
    anomalous: list[tuple[float, float, float, float]]
    shares: list[tuple[float, str]]  # gridlines, both ways
    threshold: float | None  # x coordinate


def histogram(
    scores: Sequence[float], labels: Sequence[int], threshold: float | None = None
) -> Histogram | None:
    """None where no image has a finite score."""
    values = np.asarray(scores, float)  # [N]
    anomalous = np.asarray(labels) == 1  # [N]
    finite = np.isfinite(values)
    if not finite.any():
        return None
    edges = _edges([*values[finite], *([] if threshold is None else [threshold])])
    up, down = (_shares(values[finite & (anomalous == a)], edges) for a in (False, True))
    tallest = float(max(up.max(), down.max()))
    x = Axis(float(edges[0]), float(edges[-1]), 50, 512)
    lengths = Axis(0, tallest, 0, 124)
    return Histogram(
        x=x,
        normal=_bars(x, edges, up, lengths, upwards=True),
        anomalous=_bars(x, edges, down, lengths, upwards=False),
        shares=[(y, f"{100 * share:.0f} %") for y, share in _gridlines(lengths)],
        threshold=None if threshold is None else x.at(threshold),
    )


def _edges(values: Sequence[float]) -> np.ndarray:
    """[BINS + 1], over all values; one unit wide where they hardly differ."""
    low, high = min(values), max(values)
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values, edges)[0] / max(1, len(values))


def _gridlines(lengths: Axis) -> list[tuple[float, float]]:
    ticks = MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(0, lengths.high)
    return [(lengths.at(v), float(v)) for v in ticks if v > 0 and lengths.holds(float(v))]


def _bars(
    x: Axis, edges: np.ndarray, shares: np.ndarray, lengths: Axis, upwards: bool
) -> list[tuple[float, float, float, float]]:
    bars = []
    for left, right, share in zip(edges[:-1], edges[1:], shares, strict=True):
        if share > 0:
            width, height = round(x.at(right) - x.at(left) - 1, 1), lengths.at(share)
            bars.append((x.at(left), MIDDLE - height if upwards else MIDDLE, width, height))
    return bars


@dataclass(frozen=True)
class Strip:
    """Image AUROC on one line: every client alone, then federated and centralized."""

    x: Axis
    clients: list[float]  # x coordinates
    marks: list[tuple[str, float]]  # row name of the comparison, x coordinate


def strip(clients: Sequence[float], marks: dict[str, float]) -> Strip | None:
    """None unless a client alone and federated are there to compare."""
    if not clients or "federated" not in marks:
        return None
    low = min([*clients, *marks.values()])
    x = Axis(np.floor(20 * low - 0.1) / 20, 1.0, 24, 616)
    return Strip(x, [x.at(v) for v in clients], [(name, x.at(v)) for name, v in marks.items()])
