"""The figures of a study of privacy: what ε buys, what images buy, what attacks still find."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from src.reporting.study.figures import (
    AUROC,
    Drawing,
    mark_style,
    marker_of,
    plot_style,
    put_legend,
    saved_drawing,
    square_axes,
)
from src.reporting.study.study import Estimate, Group, Study, label

EPSILON, IMAGES, MECHANISM = "privacy.epsilon", "data.train-images", "privacy.mechanism"
BESIDE = {  # figure of a run -> how its line looks
    "centralized.image_auroc": ("centralized, not private", "#9a4a00", (0, (6, 2))),
    "comparators.k-means without noise.image_auroc": ("k-means, no noise", "#2b7a4b", (0, (1, 2))),
    "comparators.public images alone.image_auroc": ("public images alone", "#6b7280", (0, (3, 2))),
    "comparators.Gaussian of public images.image_auroc": (
        "public images, Gaussian",
        "#6b7280",
        (0, (1, 1)),
    ),
}
CHANCE = 0.5
APART = 1.03  # times that lines lie apart

Point = tuple[float, Estimate]


def privacy_drawings(study: Study) -> list[Drawing]:
    """All figures of privacy that the runs have data for."""
    makers: tuple[Callable[[Study], Drawing | None], ...] = (
        against_epsilon,
        against_images,
        against_attack,
    )
    with plot_style():
        return [drawn for drawn in (make(study) for make in makers) if drawn]


def against_epsilon(study: Study) -> Drawing | None:
    """Quality against the budget, a line a mechanism, beside what needs no privacy."""
    lines = _lines(study, EPSILON)
    if not lines:
        return None
    alt = "Image AUROC against ε, a line a mechanism; the tables hold the figures"
    caption = _seen(lines, "ε") + _beside_words(study)
    return _plotted("epsilon", "Quality and budget", alt, caption, study, lines, "ε of the budget")


def against_images(study: Study) -> Drawing | None:
    """Quality against the number of training images."""
    lines = _lines(study, IMAGES)
    if not lines:
        return None
    alt = "Image AUROC against the number of training images; the tables hold the figures"
    caption = _seen(lines, "images")
    x = "training images of each object"
    return _plotted("images", "Quality and number of images", alt, caption, study, lines, x)


def against_attack(study: Study) -> Drawing | None:
    """Quality against how well membership inference does, a mark a group."""
    found = [
        (g, g.mean("audit.membership_auc"), g.mean("federated.image_auroc")) for g in study.groups
    ]
    points = [(g, x, y) for g, x, y in found if x is not None and y is not None]
    if len(points) < 2:
        return None
    figure, axes = square_axes(study.groups)
    axes.axvline(CHANCE, color="black", linewidth=0.8)
    for number, (group, x, y) in enumerate(points):
        marker, colour = marker_of(number, len(points))
        axes.plot([x], [y], marker, label=group.label, **mark_style(colour, filled=True))
    axes.set_xlabel("AUC of membership inference (0.5: chance)")
    axes.set_ylabel(f"federated {AUROC[0].lower()}{AUROC[1:]}")
    put_legend(figure, axes)
    worst = max(points, key=lambda point: point[1])
    caption = (
        f"Up and to the left is better. Most is found out about {worst[0].label}: AUC "
        f"{worst[1]:.3f}, at image AUROC {worst[2]:.3f}."
    )
    alt = "Image AUROC against AUC of membership inference, a mark a group"
    return saved_drawing("attack", "Quality and attack", alt, caption, figure)


def _lines(study: Study, key: str) -> dict[str, list[Point]]:
    """Name -> points by the setting `key`, of private groups that differ in nothing else."""
    lines: dict[str, list[Point]] = {}
    for group in study.groups:
        settings = group.runs[0].settings
        quality = group.estimate("federated.image_auroc")
        if settings.get(MECHANISM, "none") == "none" or not quality or key not in group.settings:
            continue
        rest = {k: v for k, v in group.settings.items() if k != key}
        names = {k: k.rpartition(".")[2] for k in rest}
        name = label(rest, names) or settings[MECHANISM]
        lines.setdefault(name, []).append((float(settings[key]), quality))
    lines = {name: sorted(points, key=lambda p: p[0]) for name, points in lines.items()}
    return lines if max(map(len, lines.values()), default=0) > 1 else {}


def _plotted(
    name: str,
    title: str,
    alt: str,
    caption: str,
    study: Study,
    lines: dict[str, list[Point]],
    x: str,
) -> Drawing:
    figure, axes = square_axes([])
    for number, (line, points) in enumerate(lines.items()):
        marker, colour = marker_of(number, len(lines))
        aside = APART ** (number - (len(lines) - 1) / 2)  # so that no bar hides another
        at, means = [p[0] * aside for p in points], [p[1].mean for p in points]
        halves = [p[1].half or 0.0 for p in points]
        axes.errorbar(
            at, means, yerr=halves, ecolor=colour, fmt="none", elinewidth=1.2, capsize=2.5
        )
        style = mark_style(colour, filled=True)
        axes.plot(at, means, f"{marker}-", color=colour, label=line, **style)
    _horizontals(axes, study.groups)
    ticks = sorted({p[0] for points in lines.values() for p in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"{x} (log scale)")
    axes.set_ylabel(AUROC)
    put_legend(figure, axes)
    return saved_drawing(name, title, alt, caption, figure)


def _horizontals(axes: Axes, groups: Sequence[Group]) -> None:
    for key, (name, colour, dashes) in BESIDE.items():
        values = [value for group in groups for value in group.values(key)]
        if values:
            mean = sum(values) / len(values)
            axes.axhline(mean, color=colour, linestyle=dashes, linewidth=1.4, label=name)


def _seen(lines: dict[str, list[Point]], unit: str) -> str:
    name, points = max(lines.items(), key=lambda line: line[1][-1][1].mean)
    (low, first), (high, last) = points[0], points[-1]
    ends = [f"{at:g} {unit}" if unit == "images" else f"{unit} = {at:g}" for at in (low, high)]
    bars = " Bars are 95 % intervals over the seeds." if last.half is not None else ""
    return f"Best is {name}: {first.mean:.3f} at {ends[0]}, {last.mean:.3f} at {ends[1]}.{bars}"


def _beside_words(study: Study) -> str:
    shown = [key for key in BESIDE if any(group.values(key) for group in study.groups)]
    return " Lines across are means over all runs, none of them private." if shown else ""
