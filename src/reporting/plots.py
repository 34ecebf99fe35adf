"""How every plot is drawn: matplotlib, one style, SVG for pages and PNG for papers.

Marker, line style and hatch tell apart what colour does, so that a print in grey says the same.
The same data give the same bytes. Plots have no background: a page inverts them in dark mode.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

AUROC = "Image AUROC"
WIDTH = 6.7  # inches: a column of A4
DPI = 200  # of the PNG
LEGEND = 84  # characters in a line of a legend of full width
BLUE, BROWN, GREY, RED = "#145c9e", "#9a4a00", "#6b7280", "#8a1c1c"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "fedpatchcore",
    "text.parse_math": False,  # names come from users
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
MARKERS = "osD^vP*X<>hp"
COLOURS = (BLUE, BROWN, "#2b7a4b", "#7b3f98", "#b0306a", "#4d5660")
PERCENT = FuncFormatter(lambda value, _: f"{100 * abs(value):g} %")
BINS = 30


@dataclass(frozen=True)
class Plot:
    """A figure drawn in STYLE, and what it shows in words."""

    figure: Figure
    name: str
    title: str
    alt: str
    caption: str = ""

    @cached_property
    def svg(self) -> bytes:
        """For a page."""
        return self._saved("svg", transparent=True, metadata={"Date": None, "Creator": None})

    @cached_property
    def png(self) -> bytes:
        """For a paper."""
        return self._saved("png", metadata={"Software": None})

    def _saved(self, form: str, **options: Any) -> bytes:
        """Neither date nor version goes into the file: they would change its bytes."""
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(file, format=form, dpi=DPI, **options)
        return file.getvalue()

    @property
    def uri(self) -> str:
        """The SVG as a data URI."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def new_figure(width: float = WIDTH, height: float = 3.7) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def mark_style(colour: str, filled: bool) -> dict[str, Any]:
    """Keywords of a mark."""
    face = colour if filled else "none"
    return {"markersize": 7, "mec": colour, "mfc": face, "mew": 1.4, "clip_on": False, "zorder": 3}


def marker_of(number: int, groups: int) -> tuple[str, str]:
    """Marker and colour of a group; all look alike where there are more groups than markers."""
    number = number if groups <= len(MARKERS) else 0
    return MARKERS[number], COLOURS[number % len(COLOURS)]


def finished_plot(figure: Figure, name: str, title: str, alt: str, caption: str = "") -> Plot:
    """A figure as a plot, with a legend of its first axes above them; none for a single name."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if 1 < len(names) <= len(MARKERS):
        room = round(LEGEND * figure.get_figwidth() / WIDTH)
        lines, columns = [two_lines(name, room) for name in names], legend_columns(names, room)
        figure.legend(handles, lines, ncols=columns, loc="outside upper left", frameon=False)
    return Plot(figure, name, title, alt, caption)


def legend_columns(names: Sequence[str], room: int = LEGEND) -> int:
    """How many names stand beside each other in a line of `room` characters."""
    return max(1, min(len(names), room // (max(map(len, names)) + 6)))


def two_lines(text: str, most: int) -> str:
    """A text longer than `most` characters broken at the comma nearest to its middle."""
    if len(text) <= most or ", " not in text:
        return text
    parts = text.split(", ")
    middle = min(range(1, len(parts)), key=lambda i: abs(len(", ".join(parts[:i])) - len(text) / 2))
    return f"{', '.join(parts[:middle])},\n{', '.join(parts[middle:])}"


def two_histograms(
    axes: Axes, up: tuple[str, np.ndarray], down: tuple[str, np.ndarray], extra: float | None = None
) -> None:
    """Draw two named samples back to back, each bar the share of its own sample.

    The bins span both samples, and the value `extra`.
    """
    values = np.concatenate([up[1], down[1], [] if extra is None else [extra]])
    low, high = values.min(), values.max()
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    for (name, sample), sign, face, edge in ((up, 1, "#b9cfe2", BLUE), (down, -1, BROWN, "white")):
        shares = np.histogram(sample, edges)[0] / max(1, len(sample))
        if len(sample):
            bars = axes.bar(edges[:-1], sign * shares, np.diff(edges), align="edge", label=name)
            for bar in bars:
                bar.set(facecolor=face, edgecolor=edge, linewidth=0.8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(visible=False, axis="x")
