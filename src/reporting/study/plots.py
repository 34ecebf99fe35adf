"""The plots of a study. One is left out where its data are absent or do not vary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from src.reporting.formats import byte_size
from src.reporting.plots import (
    AUROC,
    BLUE,
    BROWN,
    GREY,
    MARKERS,
    RED,
    STYLE,
    WIDTH,
    Plot,
    finished_plot,
    legend_columns,
    mark_style,
    marker_of,
    new_figure,
    two_lines,
)
from src.reporting.study.groups import Group, Study
from src.reporting.study.stages import BYTES, SECONDS, Amounts, stage_means

ROW, LINE = 0.42, 0.19  # inches that a group takes, and a line of a legend
SIDES = {  # name -> key, marker, colour, filled
    "local mean": ("local.mean.image_auroc", "s", GREY, False),
    "federated": ("federated.image_auroc", "o", BLUE, True),
    "centralized": ("centralized.image_auroc", "D", BROWN, False),
}
FILLS = (  # colour and hatch of a stage; a hatch needs a light background to be seen in grey
    (BLUE, ""),
    ("#f0c38e", "///"),
    ("#a8d5ba", "..."),
    ("#d9dce0", "\\\\\\"),
    ("#d39a6f", "xxx"),
    ("#ffffff", "---"),
    ("#c9b1d6", "+++"),
)
BYTE_TICKS = FuncFormatter(lambda value, _: byte_size(value).replace(".0", ""))
PLAIN_TICKS = FuncFormatter(lambda value, _: f"{value:g}")
VARIES = {"uploads": 1.2, "measure": 0.01, "radius": 0.005}  # below that there is no axis to plot
MEASURES = ("feature_shift", "value_skew", "size_skew")


@rc_context(STYLE)
def study_plots(study: Study) -> list[Plot]:
    """All plots that the runs have data for, in the order of the page."""
    plots = (
        compared(study),
        against_upload(study),
        against_heterogeneity(study),
        against_radius(study),
        by_client(study),
        seconds_bars(study),
        bytes_bars(study),
    )
    return [plot for plot in plots if plot]


def compared(study: Study) -> Plot | None:
    """Local, federated and centralized image AUROC by group."""
    sides = _sides(study)
    if len(sides) < 2:
        return None
    figure, axes = _row_axes(study.groups)
    for number, side in enumerate(sides):
        key, marker, colour, filled = SIDES[side]
        place = 0.22 * (number - (len(sides) - 1) / 2)
        means = [(row + place, e) for row, g in enumerate(study.groups) if (e := g.estimate(key))]
        for y, e in means:
            if e.half is not None:
                axes.errorbar(e.mean, y, xerr=e.half, ecolor=colour, elinewidth=1.2, capsize=2.5)
        x, heights = [e.mean for _, e in means], [y for y, _ in means]
        axes.plot(x, heights, marker, label=side, **mark_style(colour, filled))
    axes.set_xlabel(AUROC)
    alt = f"Image AUROC, {', '.join(sides)}, by group; the first table holds the values"
    title, caption = "Local, federated, centralized", "Bars: 95 % intervals over the seeds."
    return finished_plot(figure, "compared", title, alt, caption if study.several_seeds else "")


def against_upload(study: Study) -> Plot | None:
    """Federated image AUROC against what all clients send together."""
    points = points_of(study.groups, "traffic.upload_bytes", "federated.image_auroc")
    sizes = [x for _, x, _ in points]
    if len(points) < 2 or not min(sizes) or max(sizes) / min(sizes) < VARIES["uploads"]:
        return None
    figure, axes = square_axes(study.groups)
    group_marks(axes, points)
    middle, reach = np.sqrt(min(sizes) * max(sizes)), max(sizes) / min(sizes)
    room = max(1.3 * np.sqrt(reach), 2.0)
    axes.set(xscale="log", xlim=(middle / room, middle * room))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if reach < 100 else (1,)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(BYTE_TICKS)
    axes.set(xlabel="sent by all clients together, log scale", ylabel="federated image AUROC")
    alt = "Federated image AUROC against bytes sent, a mark a group; the tables hold the values"
    return finished_plot(figure, "upload", "Quality and upload", alt)


def against_heterogeneity(study: Study) -> Plot | None:
    """Image AUROC of the three sides against each measure of heterogeneity that varies."""
    keys = [key for key in MEASURES if _varies(study, f"heterogeneity.{key}")]
    sides = _sides(study)
    if not keys or "federated" not in sides:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        for side in sides:
            metric, marker, colour, filled = SIDES[side]
            points = points_of(study.groups, f"heterogeneity.{key}", metric)
            x, y = [p[1] for p in points], [p[2] for p in points]
            axes.plot(x, y, marker, label=side, **mark_style(colour, filled))
        axes.set_xlabel(key.replace("_", " "))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.margins(x=0.12)
    panels[0].set_ylabel(AUROC)
    names = ", ".join(keys).replace("_", " ")
    alt = f"Image AUROC, {', '.join(sides)}, against {names}, a mark a group"
    caption = "0: the clients' images are alike; 1: as different as they can be."
    return finished_plot(figure, "heterogeneity", "Quality and heterogeneity", alt, caption)


def against_radius(study: Study) -> Plot | None:
    """Image AUROC against the covering radius, a mark a run: federated filled, centralized not."""
    sides = ("bank.radius", "federated", True), ("centralized.radius", "centralized", False)
    marks = [
        (number, run.values[radius], run.values[f"{side}.image_auroc"], filled)
        for radius, side, filled in sides
        for number, group in enumerate(study.groups)
        for run in group.runs
        if radius in run.values and f"{side}.image_auroc" in run.values
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
    axes.set(xlabel="covering radius (Euclidean distance of features)", ylabel=AUROC)
    alt = "Image AUROC against covering radius, a mark a run; the table of costs holds the radii"
    caption = (
        "A mark a run. Filled: federated; hollow: centralized. "
        "Radii compare within one backbone and one dataset only."
    )
    return finished_plot(figure, "radius", "Quality and covering radius", alt, caption)


def by_client(study: Study) -> Plot | None:
    """The merged bank on each client's own test images, the worst of each group marked."""
    served = [
        (group, [c.image_auroc for run in group.runs for c in run.metrics.fairness.clients])
        for group in study.groups
    ]
    kept = [(group, values) for group, values in served if len(values) > 1]
    if not kept:
        return None
    figure, axes = _row_axes([group for group, _ in kept])
    for row, (_, values) in enumerate(kept):
        first = row == 0
        faint = mark_style(BLUE, filled=False) | {"markersize": 5, "alpha": 0.7}
        heights = [row + 0.11 * ((i * 2) % 5 - 2) for i in range(len(values))]  # keeps them apart
        axes.plot(values, heights, "o", label=_once("a client", first), **faint)
        worst = mark_style(RED, filled=True) | {"markersize": 8}
        axes.plot([min(values)], [row], "v", label=_once("the worst", first), **worst)
        axes.plot([np.mean(values)] * 2, [row - 0.36, row + 0.36], "-k", label=_once("mean", first))
    axes.set_xlabel(f"{AUROC} of the merged bank on a client's own test images")
    alt = "Image AUROC of each client, by group, the worst marked; the table holds the values"
    caption = "The clients of all seeds." if study.several_seeds else ""
    return finished_plot(figure, "clients", "Fairness", alt, caption)


def seconds_bars(study: Study) -> Plot | None:
    """Seconds by stage, of the slowest client."""
    figure = _stacked(study, {"seconds": SECONDS["slowest client"]}, PLAIN_TICKS)
    alt = "Stacked bars of seconds by stage and group; the table of stages holds the values"
    caption = "Of the slowest client in each stage."
    title = "Time by stage"
    return finished_plot(figure, "seconds", title, alt, caption) if figure else None


def bytes_bars(study: Study) -> Plot | None:
    """Bytes by stage over all rounds, up and down."""
    figure = _stacked(study, BYTES, BYTE_TICKS)
    alt = "Stacked bars of bytes by stage and group, up and down; the table holds the values"
    title, caption = "Bytes by stage", "Over all rounds."
    return finished_plot(figure, "bytes", title, alt, caption) if figure else None


def _stacked(study: Study, sources: Mapping[str, Amounts], ticks: FuncFormatter) -> Figure | None:
    """A panel a source, a bar a group, a part of it a stage."""
    panels = [[stage_means(g.runs, amounts) for g in study.groups] for amounts in sources.values()]
    bars = [stages for rows in panels for stages in rows]
    names = list(dict.fromkeys(name for stages in bars for name, v in stages.items() if v > 0))
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, _height(study.groups)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, title, rows in zip(axes, sources, panels, strict=True):
        _bars(panel, rows, names)
        panel.set_xlabel(title)
        panel.xaxis.set_major_locator(MaxNLocator(4 if len(panels) > 1 else 7))
        panel.xaxis.set_major_formatter(ticks)
    _name_rows(axes[0], study.groups)
    return figure


def _bars(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
    left = np.zeros(len(rows))
    for number, name in enumerate(names):
        colour, hatch = FILLS[number % len(FILLS)]
        width = np.array([stages.get(name, 0.0) for stages in rows])
        style: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": "black"}
        axes.barh(range(len(rows)), width, 0.6, left, label=name, linewidth=0.7, **style)
        left += width
    axes.grid(visible=False, axis="y")


def _row_axes(groups: Sequence[Group]) -> tuple[Figure, Axes]:
    figure, axes = new_figure(height=_height(groups))
    _name_rows(axes, groups)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _height(groups: Sequence[Group]) -> float:
    return 1.25 + ROW * max(len(groups), 2)


def _name_rows(axes: Axes, groups: Sequence[Group]) -> None:
    """A group a row, the first on top."""
    axes.set_yticks(range(len(groups)), [two_lines(group.label, 26) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def square_axes(groups: Sequence[Group]) -> tuple[Figure, Axes]:
    """Axes, with room above for a legend of the groups where these are told apart."""
    names = [group.label for group in groups]
    lines = -(-len(names) // legend_columns(names)) if 1 < len(names) <= len(MARKERS) else 0
    return new_figure(height=3.7 + LINE * lines)


def group_marks(axes: Axes, points: Sequence[tuple[Group, float, float]]) -> None:
    """Draw a mark a group, named by it."""
    for number, (group, x, y) in enumerate(points):
        marker, colour = marker_of(number, len(points))
        axes.plot([x], [y], marker, label=group.label, **mark_style(colour, filled=True))


def points_of(groups: Sequence[Group], x: str, y: str) -> list[tuple[Group, float, float]]:
    """The groups that have both values, and their means."""
    means = [(group, group.estimate(x), group.estimate(y)) for group in groups]
    return [(group, a.mean, b.mean) for group, a, b in means if a and b]


def _varies(study: Study, key: str) -> bool:
    points = points_of(study.groups, key, "federated.image_auroc")
    return len(points) > 1 and float(np.ptp([x for _, x, _ in points])) >= VARIES["measure"]


def _sides(study: Study) -> list[str]:
    return [side for side, (key, *_) in SIDES.items() if any(g.values(key) for g in study.groups)]


def _once(name: str, first: bool) -> str:
    return name if first else f"_{name}"  # matplotlib leaves names with _ out of a legend
