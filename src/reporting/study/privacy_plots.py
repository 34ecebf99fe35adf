"""The plots of private runs: quality against the budget, the number of images, and attacks."""

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from src.reporting.plots import (
    AUROC,
    BROWN,
    GREY,
    STYLE,
    Plot,
    finished_plot,
    mark_style,
    marker_of,
    new_figure,
)
from src.reporting.study.groups import Estimate, Group, Study, label
from src.reporting.study.plots import PLAIN_TICKS, group_marks, points_of, square_axes

EPSILON, IMAGES, MECHANISM = "privacy.epsilon", "data.train-images", "privacy.mechanism"
REFERENCES = (  # bank, name, colour and dashes of its horizontal line
    ("centralized", "centralized, not private", BROWN, (0, (6, 2))),
    ("comparators.k-means without noise", "k-means, no noise", "#2b7a4b", (0, (1, 2))),
    ("comparators.public images alone", "public images alone", GREY, (0, (3, 2))),
    ("comparators.Gaussian of public images", "public images, Gaussian", GREY, (0, (1, 1))),
)
ASIDE = 1.03  # factor between the marks of neighbouring lines, so that no bar hides another

Line = list[tuple[float, Estimate]]


@rc_context(STYLE)
def privacy_plots(study: Study) -> list[Plot]:
    """All plots of privacy that the runs have data for."""
    images = "training images of each object"
    plots = (
        against_setting(study, EPSILON, "epsilon", "Quality and budget", "ε of the budget"),
        against_setting(study, IMAGES, "images", "Quality and number of images", images),
        against_attack(study),
    )
    return [plot for plot in plots if plot]


def against_setting(study: Study, key: str, name: str, title: str, x: str) -> Plot | None:
    """Image AUROC against a setting, a line a mechanism, and what needs no privacy across."""
    lines = _lines(study, key)
    if not lines:
        return None
    figure, axes = new_figure()
    for number, (line, points) in enumerate(lines.items()):
        marker, colour = marker_of(number, len(lines))
        aside = ASIDE ** (number - (len(lines) - 1) / 2)
        at, means = [p[0] * aside for p in points], [p[1].mean for p in points]
        halves = [p[1].half or 0.0 for p in points]
        bars: dict[str, Any] = {"ecolor": colour, "elinewidth": 1.2, "capsize": 2.5}
        axes.errorbar(at, means, yerr=halves, fmt="none", **bars)
        style = mark_style(colour, filled=True)
        axes.plot(at, means, f"{marker}-", color=colour, label=line, **style)
    _draw_references(axes, study.groups)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({p[0] for ps in lines.values() for p in ps})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN_TICKS)
    axes.set(xlabel=f"{x} (log scale)", ylabel=AUROC)
    alt = f"Image AUROC against {x}, a line a mechanism; the tables hold the values"
    caption = (
        "Bars: 95 % intervals over the seeds. Lines across: means over all runs, none private."
    )
    return finished_plot(figure, name, title, alt, caption)


def _lines(study: Study, key: str) -> dict[str, Line]:
    """Name -> points by the setting `key`, of private groups that differ in nothing else."""
    lines: dict[str, Line] = {}
    for group in study.groups:
        mechanism = group.runs[0].settings.get(MECHANISM, "none")
        quality = group.estimate("federated.image_auroc")
        if mechanism == "none" or not quality or key not in group.settings:
            continue
        rest = {k: v for k, v in group.settings.items() if k != key}
        name = label(rest, {k: k.rpartition(".")[2] for k in rest}) or str(mechanism)
        lines.setdefault(name, []).append((float(group.settings[key]), quality))
    lines = {name: sorted(points, key=lambda p: p[0]) for name, points in lines.items()}
    return lines if max(map(len, lines.values()), default=0) > 1 else {}


def _draw_references(axes: Axes, groups: Sequence[Group]) -> None:
    for bank, name, colour, dashes in REFERENCES:
        values = [v for group in groups for v in group.values(f"{bank}.image_auroc")]
        if values:
            mean = sum(values) / len(values)
            axes.axhline(mean, color=colour, linestyle=dashes, linewidth=1.4, label=name)


def against_attack(study: Study) -> Plot | None:
    """Image AUROC against the AUC of membership inference, a mark a group."""
    points = points_of(study.groups, "audit.membership_auc", "federated.image_auroc")
    if len(points) < 2:
        return None
    figure, axes = square_axes(study.groups)
    axes.axvline(0.5, color="black", linewidth=0.8)
    group_marks(axes, points)
    axes.set(xlabel="AUC of membership inference (0.5: chance)", ylabel="federated image AUROC")
    alt = "Image AUROC against AUC of membership inference, a mark a group"
    caption = "Up and to the left is better."
    return finished_plot(figure, "attack", "Quality and attack", alt, caption)
