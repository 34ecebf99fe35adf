"""The figures of a study, for page and paper: matplotlib, as SVG and PNG.

A figure is None where its data are absent or do not vary. Marker, line and hatch tell apart what
colour does, so that print in grey says the same. Two runs of this code write the same bytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from src.reporting.formats import byte_size, difference, duration
from src.reporting.study.study import (
    Group,
    Study,
    bytes_by_stage,
    client_figures,
    seconds_by_stage,
    stage_sums,
)

AUROC = "Image AUROC"
WIDTH = 6.7  # inches: the page shows it at this size, and so does a column of A4
ROW, LINE = 0.42, 0.19  # inches that a group takes, and a line of a legend
DPI = 200  # of the PNG
LEGEND = 84  # characters across
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fedpatchcore",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same file everywhere
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
}
SIDES = {  # name -> key, marker, colour, filled
    "local mean": ("local.mean.image_auroc", "s", "#6b7280", False),
    "federated": ("federated.image_auroc", "o", "#145c9e", True),
    "centralized": ("centralized.image_auroc", "D", "#9a4a00", False),
}
MARKERS = "osD^vP*X<>hp"
COLOURS = ("#145c9e", "#9a4a00", "#2b7a4b", "#7b3f98", "#b0306a", "#4d5660")
FILLS = (  # colour and hatch of a stage; a hatch needs a light ground to be seen in grey
    ("#145c9e", ""),
    ("#f0c38e", "///"),
    ("#a8d5ba", "..."),
    ("#d9dce0", "\\\\\\"),
    ("#d39a6f", "xxx"),
    ("#ffffff", "---"),
    ("#c9b1d6", "+++"),
)
BYTES = FuncFormatter(lambda value, _: byte_size(value).replace(".0", ""))
VARIES = {"uploads": 1.2, "measure": 0.01, "radius": 0.005}  # below that, nothing to plot against
MEASURES = {
    "feature_shift": "feature shift",
    "value_skew": "value skew",
    "size_skew": "size skew",
}


@dataclass(frozen=True)
class Drawing:
    """A figure in both formats, what it shows in words, and what a reader sees in it."""

    name: str
    title: str
    alt: str
    caption: str
    svg: bytes
    png: bytes


def drawings(study: Study) -> list[Drawing]:
    """All figures that the runs have data for, in the order of the page."""
    makers = (
        compared,
        against_upload,
        against_heterogeneity,
        against_radius,
        by_client,
        seconds_bars,
        bytes_bars,
    )
    with plot_style():
        return [drawn for drawn in (make(study) for make in makers) if drawn]


@contextmanager
def plot_style() -> Iterator[None]:
    """The look of all figures, for as long as they are drawn."""
    with mpl.rc_context():
        mpl.rcParams.update(STYLE)
        yield


def compared(study: Study) -> Drawing | None:
    """A client alone, federated and centralized, by group."""
    sides = [side for side in SIDES if any(_mean(g, side) is not None for g in study.groups)]
    if len(sides) < 2:
        return None
    figure, axes = _rows(study.groups)
    for place, side in zip(_beside(len(sides)), sides, strict=True):
        _dots(axes, study.groups, side, place)
    axes.set_xlabel(AUROC)
    put_legend(figure, axes)
    several = any(len(group.runs) > 1 for group in study.groups)
    bars = " Bars are 95 % intervals over the seeds." if several else ""
    alt = f"Image AUROC of {_and(sides)}, by group; the first table holds the figures"
    caption = f"{_seen_compared(study)}{bars}"
    return saved_drawing("compared", "Alone, federated, centralized", alt, caption, figure)


def _dots(axes: Axes, groups: Sequence[Group], side: str, place: float) -> None:
    key, marker, colour, filled = SIDES[side]
    found = [(row, g.estimate(key)) for row, g in enumerate(groups)]
    points = [(row + place, e) for row, e in found if e]
    for y, e in points:
        if e.half is not None:
            axes.errorbar(e.mean, y, xerr=e.half, ecolor=colour, elinewidth=1.2, capsize=2.5)
    x = [e.mean for _, e in points]
    axes.plot(x, [y for y, _ in points], marker, label=side, **mark_style(colour, filled))


def _seen_compared(study: Study) -> str:
    parts = []
    for name, other in (("local", "a client alone"), ("centralized", "centralized")):
        means = (g.mean(f"difference.{name}.image_auroc") for g in study.groups)
        found = [v for v in means if v is not None]
        if found and len(study.groups) > 1:
            above = sum(v > 0 for v in found)
            parts.append(
                f"above {other} in {above} of {len(found)} groups "
                f"({difference(min(found))} to {difference(max(found))})"
            )
    return f"Federated lies {' and '.join(parts)}." if parts else "Image AUROC of each side."


def against_upload(study: Study) -> Drawing | None:
    """Federated image AUROC against what all clients send together."""
    points = points_of(study.groups, "traffic.upload_bytes", "federated.image_auroc")
    sizes = [x for _, x, _ in points]
    if len(points) < 2 or not min(sizes) or max(sizes) / min(sizes) < VARIES["uploads"]:
        return None
    figure, axes = square_axes(study.groups)
    for number, (group, x, y) in enumerate(points):
        marker, colour = marker_of(number, len(study.groups))
        axes.plot([x], [y], marker, label=group.label, **mark_style(colour, filled=True))
    axes.set_xscale("log")
    middle, reach = np.sqrt(min(sizes) * max(sizes)), max(sizes) / min(sizes)
    room = max(1.3 * np.sqrt(reach), 2.0)
    axes.set_xlim(middle / room, middle * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach < 100 else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(BYTES)
    axes.set_xlabel("sent by all clients together, log scale")
    axes.set_ylabel(f"federated {AUROC.lower().replace('auroc', 'AUROC')}")
    put_legend(figure, axes)
    caption = f"{_seen_upload(points)}{_unnamed(study)}"
    alt = "Federated image AUROC against bytes sent, a mark a group; the tables hold the figures"
    return saved_drawing("upload", "Quality and upload", alt, caption, figure)


def _seen_upload(points: Sequence[tuple[Group, float, float]]) -> str:
    least = min(points, key=lambda point: point[1])
    best = max(points, key=lambda point: point[2])
    cheap = f"The cheapest group, {least[0].label}, sends {byte_size(least[1])} and reaches"
    if best[2] <= least[2]:
        return f"{cheap} {least[2]:.3f}, the best figure of all."
    return (
        f"{cheap} {least[2]:.3f}; the best, {best[0].label}, sends {byte_size(best[1])} and "
        f"reaches {best[2]:.3f}."
    )


def against_heterogeneity(study: Study) -> Drawing | None:
    """Image AUROC of the three sides against each measure of heterogeneity that varies."""
    keys = [key for key in MEASURES if _spans(study, f"heterogeneity.{key}", VARIES["measure"])]
    sides = [side for side in SIDES if any(_mean(g, side) is not None for g in study.groups)]
    if not keys or "federated" not in sides:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        for side in sides:
            _, marker, colour, filled = SIDES[side]
            points = points_of(study.groups, f"heterogeneity.{key}", SIDES[side][0])
            x, y = [p[1] for p in points], [p[2] for p in points]
            axes.plot(x, y, marker, label=side, **mark_style(colour, filled))
        axes.set_xlabel(MEASURES[key])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12)
    panels[0].set_ylabel(AUROC)
    put_legend(figure, panels[0])
    names = _and([MEASURES[key] for key in keys])
    alt = f"Image AUROC of {_and(sides)} against {names}, a mark a group"
    caption = f"{_seen_heterogeneity(study, keys)} 0 is no heterogeneity, 1 the most there can be."
    return saved_drawing("heterogeneity", "Quality and heterogeneity", alt, caption, figure)


def _seen_heterogeneity(study: Study, keys: Sequence[str]) -> str:
    ends = []
    for key in keys:
        points = points_of(study.groups, f"heterogeneity.{key}", "federated.image_auroc")
        low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])
        ends.append(
            f"from {low[2]:.3f} at the least {MEASURES[key]} ({low[0].label}) to {high[2]:.3f} at "
            f"the most ({high[0].label})"
        )
    return f"Federated goes {_and(ends)}."


def against_radius(study: Study) -> Drawing | None:
    """Image AUROC against the covering radius, a mark a run: federated filled, centralized not."""
    sides = ("bank.radius", "federated", True), ("centralized.radius", "centralized", False)
    marks = [
        (number, run.figures[radius], run.figures[f"{side}.image_auroc"], filled)
        for radius, side, filled in sides
        for number, group in enumerate(study.groups)
        for run in group.runs
        if radius in run.figures and f"{side}.image_auroc" in run.figures
    ]
    radii = [radius for _, radius, _, _ in marks]
    if len(study.runs) < 2 or not marks or np.ptp(radii) <= VARIES["radius"] * max(radii):
        return None
    figure, axes = square_axes(study.groups)
    named: set[int] = set()
    for number, radius, auroc, filled in marks:
        marker, colour = marker_of(number, len(study.groups))
        name = _once(study.groups[number].label, number not in named)
        named.add(number)
        axes.plot([radius], [auroc], marker, label=name, **mark_style(colour, filled))
    axes.set_xlabel("covering radius (Euclidean distance of features)")
    axes.set_ylabel(AUROC)
    put_legend(figure, axes)
    alt = "Image AUROC against covering radius, a mark a run; the table of costs holds the radii"
    hollow = " Filled: federated; hollow: centralized." if not all(m[3] for m in marks) else ""
    compare = "Radii compare within one backbone and one dataset only."
    caption = f"A mark a run.{hollow}{_unnamed(study)} {compare}"
    return saved_drawing("radius", "Quality and covering radius", alt, caption, figure)


def by_client(study: Study) -> Drawing | None:
    """The merged bank on each client's own test images, the worst of each group marked."""
    served = [[client_figures(run.metrics) for run in group.runs] for group in study.groups]
    kept = [
        (group, values)
        for group, runs in zip(study.groups, served, strict=True)
        if len(values := [v for run in runs for v in run.values()]) > 1
    ]
    if not kept:
        return None
    figure, axes = _rows([group for group, _ in kept])
    for row, (_, values) in enumerate(kept):
        first = row == 0
        faint = mark_style("#145c9e", filled=False) | {"markersize": 5, "alpha": 0.7}
        axes.plot(values, _spread(row, len(values)), "o", label=_once("a client", first), **faint)
        worst = mark_style("#8a1c1c", filled=True) | {"markersize": 8}
        axes.plot([min(values)], [row], "v", label=_once("the worst", first), **worst)
        axes.plot([np.mean(values)] * 2, [row - 0.36, row + 0.36], "-k", label=_once("mean", first))
    axes.set_xlabel(f"{AUROC} of the merged bank on a client's own test images")
    put_legend(figure, axes)
    group, values = min(kept, key=lambda each: min(each[1]))
    where = f", in {group.label}" if len(kept) > 1 else ""
    caption = f"The worst served client reaches {min(values):.3f}{where}."
    if any(len(g.runs) > 1 for g, _ in kept):
        caption += " The clients of all seeds are shown."
    alt = "Image AUROC of each client, by group, the worst marked; the table holds the figures"
    return saved_drawing("clients", "Fairness", alt, caption, figure)


def seconds_bars(study: Study) -> Drawing | None:
    """Seconds by stage, of the slowest client."""
    sums = [stage_sums(group.runs, seconds_by_stage) for group in study.groups]
    drawn = _stacked(study.groups, [("seconds", sums)], FuncFormatter(lambda v, _: f"{v:g}"))
    if not drawn:
        return None
    most = _largest(sums)
    caption = (
        f"Of the slowest client in each stage. Most time goes to {most[0]}: up to "
        f"{duration(most[1])}. Kept features and kept baselines take next to none."
    )
    alt = "Stacked bars of seconds by stage and group; the table of stages holds the figures"
    return saved_drawing("seconds", "Time by stage", alt, caption, drawn)


def bytes_bars(study: Study) -> Drawing | None:
    """Bytes by stage, up and down."""
    up = [stage_sums(g.runs, lambda m: bytes_by_stage(m, "up")) for g in study.groups]
    down = [stage_sums(g.runs, lambda m: bytes_by_stage(m, "down")) for g in study.groups]
    panels = [("up, from all clients", up), ("down, to each client", down)]
    drawn = _stacked(study.groups, panels, BYTES)
    if not drawn:
        return None
    most = _largest(up)
    caption = f"Over all rounds. Of what clients send, most are {most[0]}: up to "
    alt = "Stacked bars of bytes by stage and group, up and down; the table holds the figures"
    return saved_drawing("bytes", "Bytes by stage", alt, f"{caption}{byte_size(most[1])}.", drawn)


def _stacked(
    groups: Sequence[Group],
    panels: Sequence[tuple[str, Sequence[Mapping[str, float]]]],
    form: FuncFormatter,
) -> Figure | None:
    sums = [found for _, rows in panels for found in rows]
    names = list(dict.fromkeys(name for found in sums for name, v in found.items() if v > 0))
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, _height(groups)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (title, rows) in zip(axes, panels, strict=True):
        _bars(panel, rows, names)
        panel.set_xlabel(title)
        panel.xaxis.set_major_locator(MaxNLocator(4 if len(panels) > 1 else 7))
        panel.xaxis.set_major_formatter(form)
    _name_rows(axes[0], groups)
    put_legend(figure, axes[0])
    return figure


def _bars(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    left = np.zeros(len(rows))
    for number, name in enumerate(names):
        colour, hatch = FILLS[number % len(FILLS)]
        width = np.array([found.get(name, 0.0) for found in rows])
        look: dict[str, Any] = {
            "facecolor": colour,
            "hatch": hatch,
            "edgecolor": "black",
            "linewidth": 0.7,
        }
        axes.barh(range(len(rows)), width, 0.6, left, label=name, **look)
        left += width
    axes.grid(visible=False, axis="y")


def _largest(sums: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    return max(((k, v) for found in sums for k, v in found.items()), key=lambda item: item[1])


def _rows(groups: Sequence[Group]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, _height(groups)), layout="constrained")
    axes = figure.subplots()
    _name_rows(axes, groups)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _height(groups: Sequence[Group]) -> float:
    return 1.25 + ROW * max(len(groups), 2)


def _name_rows(axes: Axes, groups: Sequence[Group]) -> None:
    """A group a row, the first on top."""
    axes.set_yticks(range(len(groups)), [_broken(group.label) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _broken(text: str, most: int = 26) -> str:
    """Over at most two lines: long names would leave the axes no room."""
    if len(text) <= most or ", " not in text:
        return text
    parts = text.split(", ")
    middle = min(range(1, len(parts)), key=lambda i: abs(len(", ".join(parts[:i])) - len(text) / 2))
    return f"{', '.join(parts[:middle])},\n{', '.join(parts[middle:])}"


def square_axes(groups: Sequence[Group]) -> tuple[Figure, Axes]:
    """Room for axes, and above them for a legend of the groups where these are told apart."""
    names = [group.label for group in groups]
    lines = -(-len(names) // _columns(names)) if 1 < len(names) <= len(MARKERS) else 0
    figure = Figure(figsize=(WIDTH, 3.7 + LINE * lines), layout="constrained")
    return figure, figure.subplots()


def marker_of(number: int, groups: int) -> tuple[str, str]:
    """Marker and colour of a group; all look alike where there are more groups than markers."""
    number = number if groups <= len(MARKERS) else 0
    return MARKERS[number], COLOURS[number % len(COLOURS)]


def _unnamed(study: Study) -> str:
    most = len(MARKERS)
    return "" if len(study.groups) <= most else " The table holds each group's figures."


def mark_style(colour: str, filled: bool) -> dict:
    """How a mark looks, as matplotlib's keywords."""
    face = colour if filled else "none"
    return {"markersize": 7, "mec": colour, "mfc": face, "mew": 1.4, "clip_on": False, "zorder": 3}


def put_legend(figure: Figure, axes: Axes) -> None:
    """Above the axes, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if 1 < len(names) <= len(MARKERS):
        place: dict[str, Any] = {"loc": "outside upper left", "frameon": False}
        shown = [_broken(name, LEGEND) for name in names]
        figure.legend(handles, shown, ncols=_columns(names), **place)


def _columns(names: Sequence[str]) -> int:
    return max(1, min(len(names), LEGEND // (max(map(len, names)) + 6)))


def points_of(groups: Sequence[Group], x: str, y: str) -> list[tuple[Group, float, float]]:
    """The groups that have both figures, and their means."""
    means = [(group, group.mean(x), group.mean(y)) for group in groups]
    return [(g, a, b) for g, a, b in means if a is not None and b is not None]


def _spans(study: Study, key: str, least: float) -> bool:
    points = points_of(study.groups, key, "federated.image_auroc")
    return len(points) > 1 and float(np.ptp([x for _, x, _ in points])) >= least


def _mean(group: Group, side: str) -> float | None:
    return group.mean(SIDES[side][0])


def _beside(number: int) -> list[float]:
    return [0.22 * (i - (number - 1) / 2) for i in range(number)]


def _spread(row: int, number: int) -> list[float]:
    """Heights that keep the dots of a row apart; the same for every run of this code."""
    return [row + 0.11 * ((i * 2) % 5 - 2) for i in range(number)]


def _once(name: str, first: bool) -> str:
    return name if first else f"_{name}"  # matplotlib leaves names with _ out of a legend


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def saved_drawing(name: str, title: str, alt: str, caption: str, figure: Figure) -> Drawing:
    """A figure in both formats."""
    return Drawing(name, title, alt, caption, _saved(figure, "svg"), _saved(figure, "png"))


def _saved(figure: Figure, form: str) -> bytes:
    """SVG on no ground, for a page of any colour; PNG on white. No dates, no versions."""
    metadata: Mapping[str, None]
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=DPI, metadata=dict(metadata), transparent=form == "svg")
    return file.getvalue()
