"""Draw the pictures of the documents: toy patches in two dimensions, one SVG a picture.

    python docs/pictures.py

The selection is written out here in a few lines of NumPy, so that the pictures show the algorithm
and not this package.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse

FOLDER = Path(__file__).parent / "pictures"
COLORS = ("#1b5e9e", "#b3541e", "#2f7d4f")  # a client each
INK, MUTED, DEFECT = "#1c2430", "#8a94a3", "#b00058"
STYLE = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "path",  # the same picture on every machine
    "svg.hashsalt": "fedpatchcore",  # and the same bytes
    "figure.facecolor": "white",
}


def farthest_first(points: np.ndarray, count: int, start: int = 0) -> list[int]:
    """Indices of `count` of the points [N, 2]: each is the farthest from those before it."""
    picks, distances = [start], np.linalg.norm(points - points[start], axis=1)
    while len(picks) < count:
        picks.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(points - points[picks[-1]], axis=1))
    return picks


def nearest(points: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Distance [N] of each point to its nearest bank row."""
    return np.linalg.norm(points[:, None] - bank[None], axis=2).min(axis=1)


def toy_client(number: int, count: int = 70) -> np.ndarray:
    """Patches [count, 2] of one client: a dense part of its own, a band that all clients share."""
    rng = np.random.default_rng(number)
    centre = [(0.9, 2.9), (3.1, 3.2), (2.1, 1.0)][number]
    own = rng.normal(centre, 0.36, (count - 22, 2))
    along = rng.uniform(0, 1, (22, 1))
    band = (0.6, 1.9) + along * (2.9, 0.25) + rng.normal(0, 0.13, (22, 2))
    return np.concatenate([own, band])


def plain(ax: Axes, title: str = "") -> Axes:
    """Axes without ticks, for points whose coordinates mean nothing by themselves."""
    ax.set(xticks=[], yticks=[], aspect="equal", title=title)
    for spine in ax.spines.values():
        spine.set_color("#d5dae1")
    return ax


def dots(ax: Axes, points: np.ndarray, color: str = MUTED) -> None:
    """Patches, as small dots."""
    ax.scatter(*points.T, s=9, color=color, alpha=0.45, linewidths=0)


def rows(ax: Axes, points: np.ndarray, color: str = INK) -> None:
    """Bank rows, as large dots."""
    ax.scatter(*points.T, s=46, color=color, edgecolors="white", linewidths=0.9, zorder=3)


def circles(ax: Axes, centres: np.ndarray, radius: float, color: str) -> None:
    """What lies within the radius of the centres."""
    for centre in centres:
        ax.add_patch(Circle(centre, radius, color=color, alpha=0.09, linewidth=0))


def arrow(ax: Axes, start: np.ndarray, end: np.ndarray, color: str = INK, style: str = "-") -> None:
    """A line with its length to be read off."""
    ax.plot(*np.transpose([start, end]), color=color, linestyle=style, linewidth=1.5, zorder=2)


def draw_round() -> Figure:
    """Clients select, the server merges, every client scores with the merged bank."""
    figure = plt.figure(figsize=(9.6, 4.3))
    grid = figure.add_gridspec(
        3, 3, width_ratios=[1.25, 2.5, 2.5], wspace=0.3, hspace=0.12, left=0.02, right=0.98,
        top=0.88, bottom=0.03,
    )  # fmt: skip
    clients = [toy_client(number) for number in range(3)]
    banks = [patches[farthest_first(patches, 9)] for patches in clients]
    frame = {"xlim": (-0.4, 4.4), "ylim": (-0.1, 4.4)}
    for number, (patches, bank) in enumerate(zip(clients, banks, strict=True)):
        ax = plain(figure.add_subplot(grid[number, 0]), "1  Clients select" if not number else "")
        dots(ax, patches, COLORS[number])
        rows(ax, bank, COLORS[number])
        ax.set(**frame)
    union, owner = np.concatenate(banks), np.repeat(range(3), 9)
    merged = farthest_first(union, 15)
    ax = plain(figure.add_subplot(grid[:, 1]), "2  The server merges")
    ax.scatter(*union.T, s=46, facecolors="none", edgecolors=MUTED, linewidths=0.8)
    for number in range(3):
        rows(ax, union[[i for i in merged if owner[i] == number]], COLORS[number])
    ax.set(**frame)
    ax.text(-0.25, 4.1, "filled: kept   hollow: covered by these", color=INK, fontsize=9)
    ax = plain(figure.add_subplot(grid[:, 2]), "3  Every client scores with it")
    rows(ax, union[merged], INK)
    normal, defect = np.array([2.15, 2.75]), np.array([3.95, 1.0])
    for point, color, label in ((normal, COLORS[2], "normal"), (defect, DEFECT, "defect")):
        closest = union[merged][np.linalg.norm(union[merged] - point, axis=1).argmin()]
        arrow(ax, point, closest, color)
        ax.scatter(*point, marker="X", s=80, color=color, edgecolors="white", zorder=4)
        place = {"xytext": (0, -17), "textcoords": "offset points", "ha": "center"}
        ax.annotate(label, point, color=color, weight="bold", **place)
    ax.set(**frame)
    for x in (0.232, 0.605):
        figure.text(x, 0.45, "\N{RIGHTWARDS ARROW}", fontsize=20, color=INK, ha="center")
    return figure


def draw_bank() -> Figure:
    """A bank of patches, and the distance that scores a new one."""
    patches = np.concatenate([toy_client(0), toy_client(1), toy_client(2)])
    bank = patches[farthest_first(patches, 16)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    dots(plain(axes[0], "Normal patches, and the bank kept of them"), patches)
    rows(axes[0], bank)
    plain(axes[1], "A new patch scores its distance to the bank")
    rows(axes[1], bank)
    for point, color, label in (
        (np.array([1.15, 3.15]), COLORS[2], "normal"),
        (np.array([3.55, 0.8]), DEFECT, "defect"),
    ):
        arrow(axes[1], point, bank[np.linalg.norm(bank - point, axis=1).argmin()], color)
        axes[1].scatter(*point, marker="X", s=90, color=color, edgecolors="white", zorder=4)
        distance = nearest(point[None], bank)[0]
        axes[1].annotate(
            f"{label}: {distance:.2f}", point, (8, 8), textcoords="offset points", color=color
        )
    for ax in axes:
        ax.set(xlim=(-0.4, 4.8), ylim=(-0.2, 4.4))
    return figure


def draw_coreset() -> Figure:
    """Twelve rows by greedy selection and twelve at random, with what they leave uncovered."""
    rng = np.random.default_rng(5)
    patches = np.concatenate(
        [
            rng.normal((1.4, 1.5), 0.34, (170, 2)),
            rng.normal((3.2, 2.5), 0.20, (50, 2)),
            [(0.5, 3.3), (0.7, 3.5), (3.9, 0.6), (4.1, 3.9), (2.3, 3.7)],
        ]
    )
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    chosen = {
        "Greedy": farthest_first(patches, 12),
        "Random": rng.choice(len(patches), 12, replace=False),
    }
    reach = nearest(patches, patches[chosen["Greedy"]]).max()
    for ax, (name, picks) in zip(axes, chosen.items(), strict=True):
        distances = nearest(patches, patches[picks])
        worst = patches[distances.argmax()]
        plain(ax, f"{name}: covering radius {distances.max():.2f}")
        circles(ax, patches[picks], reach, COLORS[0])
        dots(ax, patches)
        rows(ax, patches[picks], COLORS[0])
        away = np.linalg.norm(patches[picks] - worst, axis=1).argmin()
        arrow(ax, worst, patches[picks][away], DEFECT)
        ax.scatter(*patches[distances > reach].T, s=26, color=DEFECT, zorder=4)
        ax.scatter(*worst, s=26, color=DEFECT, zorder=4)
        ax.set(xlim=(-0.1, 4.8), ylim=(-0.1, 4.5))
    return figure


def draw_radius() -> Figure:
    """The certificate: client within r_i of its rows, these within rho of the merged bank."""
    patches = toy_client(0)
    others = np.concatenate([toy_client(1), toy_client(2)])
    sent = patches[farthest_first(patches, 9)]
    union = np.concatenate([sent, others[farthest_first(others, 14)]])
    merged = union[farthest_first(union, 9, start=12)]
    r, rho = nearest(patches, sent).max(), nearest(union, merged).max()
    measured = nearest(patches, merged)
    patch = patches[measured.argmax()]
    row = sent[np.linalg.norm(sent - patch, axis=1).argmin()]
    kept = merged[np.linalg.norm(merged - row, axis=1).argmin()]
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.9), layout="constrained")
    plain(axes[0], f"Client: r = {r:.2f}")
    circles(axes[0], sent, r, COLORS[0])
    plain(axes[1], f"Merge: ρ = {rho:.2f}")
    circles(axes[1], merged, rho, INK)
    plain(axes[2], f"{measured.max():.2f} measured ≤ {r + rho:.2f} = r + ρ")
    for ax in axes[[0, 2]]:
        dots(ax, patches, COLORS[0])
    for ax in axes[:2]:
        rows(ax, sent, COLORS[0])
    for ax in axes[1:]:
        ax.scatter(*merged.T, s=60, marker="s", color=INK, edgecolors="white", zorder=4)
    arrow(axes[2], patch, row, COLORS[0])
    arrow(axes[2], row, kept, INK)
    arrow(axes[2], patch, kept, DEFECT, "--")
    axes[2].scatter(*row, s=46, color=COLORS[0], edgecolors="white", zorder=5)
    axes[2].scatter(*patch, s=34, color=DEFECT, zorder=5)
    for ax in axes:
        ax.set(xlim=(-0.6, 4.4), ylim=(-0.3, 4.6))
    return figure


def draw_exact() -> Figure:
    """One exact round: what is sent, what is not, and which picks are certain."""
    clients = [toy_client(number) for number in range(3)]
    patches, owner = np.concatenate(clients), np.repeat(range(3), 70)
    bank = patches[farthest_first(patches, 6)]
    distances = nearest(patches, bank)
    sent = np.concatenate(
        [np.flatnonzero(owner == number)[np.argsort(-distances[owner == number])[:6]]
         for number in range(3)]
    )  # fmt: skip
    unsent = np.setdiff1d(np.arange(len(patches)), sent)
    bound = distances[unsent].max()
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    plain(axes[0], "Clients send the patches farthest from the bank")
    for number in range(3):
        dots(axes[0], clients[number], COLORS[number])
        axes[0].scatter(
            *patches[sent[owner[sent] == number]].T, s=46, facecolors="none",
            edgecolors=COLORS[number], linewidths=1.5,
        )  # fmt: skip
    axes[0].scatter(*bank.T, s=60, marker="s", color=INK, edgecolors="white", zorder=4)
    axes[0].set(xlim=(-0.4, 4.5), ylim=(-0.2, 4.4))
    order = sent[np.argsort(-distances[sent])]
    ax = axes[1]
    ax.bar(range(len(order)), distances[order], color=[COLORS[owner[i]] for i in order])
    ax.axhline(bound, color=DEFECT, linestyle="--")
    ax.text(
        len(order) - 0.4, bound + 0.06, "farthest patch\nthat nobody sent", color=DEFECT, ha="right"
    )
    ax.set(title="Rows above the line are safe to pick", xticks=[], ylabel="distance to the bank")
    ax.set_ylim(0.6, 1.15)
    ax.set_xlabel("rows sent, by distance; a color is a client")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_privacy() -> Figure:
    """A raw bank holds an image's patches; a noisy Gaussian hardly changes with it."""
    rng = np.random.default_rng(3)
    others = rng.multivariate_normal((2.2, 2.1), [[0.42, 0.2], [0.2, 0.3]], 240)
    image = rng.normal((3.9, 3.3), 0.13, (5, 2))
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    patches = np.concatenate([others, image])
    bank = farthest_first(patches, 22)
    plain(axes[0], "Raw bank: the image's patches are in it")
    dots(axes[0], others)
    rows(axes[0], patches[[i for i in bank if i < len(others)]])
    rows(axes[0], patches[[i for i in bank if i >= len(others)]], DEFECT)
    plain(axes[1], "Private bank: a Gaussian from noisy sums")
    dots(axes[1], others)
    for points, color, label, style in (
        (patches, DEFECT, "with the image", "-"),
        (others, INK, "without it", "--"),
    ):
        mean = points.mean(axis=0) + rng.normal(0, 0.05, 2)
        values, vectors = np.linalg.eigh(np.cov(points.T))
        angle = float(np.degrees(np.arctan2(*vectors[::-1, 1])))
        for scale in (2.0, 4.0):
            width, height = scale * np.sqrt(values[::-1])
            axes[1].add_patch(
                Ellipse(mean, width, height, angle=angle, fill=False, color=color, ls=style, lw=1.4,
                        label=label if scale == 2.0 else None)
            )  # fmt: skip
    for ax in axes:
        ax.scatter(*image.T, s=22, marker="x", color=DEFECT, zorder=4, linewidths=1.2)
        ax.annotate(
            "patches of one image", image.mean(axis=0), (0, 16), textcoords="offset points",
            color=DEFECT, ha="center",
        )  # fmt: skip
        ax.set(xlim=(0.2, 5.0), ylim=(0.2, 4.2))
    axes[1].legend(frameon=False, loc="lower right")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "round": draw_round,
    "bank": draw_bank,
    "coreset": draw_coreset,
    "radius": draw_radius,
    "exact": draw_exact,
    "privacy": draw_privacy,
}


def main() -> None:
    """Write every picture."""
    mpl.use("agg")
    FOLDER.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in PICTURES.items():
            figure = draw()
            path = FOLDER / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.12)
            plt.close(figure)


if __name__ == "__main__":
    main()
