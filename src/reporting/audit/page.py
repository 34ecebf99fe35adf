"""audit.html: the result of an audit on one self-contained page."""

# ruff: noqa: E501

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context

from src.reporting.formats import count, counted, number
from src.reporting.page import picture_uri, render_page
from src.reporting.plots import (
    BLUE,
    GREY,
    PERCENT,
    STYLE,
    Plot,
    finished_plot,
    new_figure,
    two_histograms,
)
from src.reporting.tables import Table
from src.storage.atomic import write_whole

LEAST_RATE = 0.001  # of false positives, where the curves begin
COLUMNS = 6  # patches in a row of a sheet
GAP = 2  # pixels between them
ATTACKS = {"distance": "by distance to the bank", "tracing": "by tracing in the noisy sums"}
AUDITS = {"many_run": "many runs, one canary image", "one_run": "one run, many canary images"}
UNTESTED = (
    "Attackers who see more than what was released, such as the server or a client; "
    "the same images in further runs; decoders better than a linear one; and any canary other "
    "than one given by its patches: whether a picture can have them was not tried. "
    "A small lower bound shows how good these attacks are, not that there is no better one."
)


@dataclass(frozen=True)
class Shown:
    """Patches and an image as a bank reveals them."""

    originals: np.ndarray  # [n, 256], patches of training images
    made: np.ndarray  # [n, 256], what a decoder makes of the bank's rows nearest to them
    image: np.ndarray | None = None  # [H, W], the training image most of which is in the bank
    paint: np.ndarray | None = None  # [H, W], what the bank holds of it, decoded; else NaN
    patches: int = 0  # of that image that lie in the bank verbatim


@dataclass(frozen=True)
class Finding:
    """The audit of one bank."""

    name: str  # of the bank
    figures: Mapping[str, Any]  # as audit.json has them
    # distance, and tracing where there are sums: scores of members and of others, small for members
    attacks: Mapping[str, tuple[np.ndarray, np.ndarray]]
    shown: Shown


def write_audit_page(
    path: Path, figures: Mapping[str, Any], findings: Sequence[Finding], run: str
) -> None:
    """Write the page of one audit.

    Args:
        path: of the page.
        figures: audit.json's content.
        findings: by bank.
        run: the name of the run's directory.
    """
    today = date.today()
    page = render_page(
        PAGE,
        title=f"Privacy audit of {run}",
        facts=[
            f"{today.day} {today:%B %Y}",
            f"mechanism {figures['mechanism']}",
            counted(len(findings), "bank"),
        ],
        verdict=figures["verdict"],
        guarantee=figures["guarantee"],
        banks=[_bank(finding) for finding in findings],
        untested=UNTESTED,
    )
    write_whole(path, page)


def _bank(finding: Finding) -> dict[str, Any]:
    """One bank as the template shows it."""
    shown = finding.shown
    return {
        "name": finding.name,
        "verdict": finding.figures["verdict"],
        "bounds": bounds_table(finding),
        "attacks": attacks_table(finding),
        "plots": [rate_plot(finding), distance_plot(finding)],
        "inversion": inversion_table(finding),
        "originals": picture_uri(tiles(shown.originals)),
        "made": picture_uri(tiles(shown.made)),
        "image": "" if shown.image is None else picture_uri(grey(shown.image)),
        "paint": "" if shown.paint is None else picture_uri(over_paper(shown.paint)),
        "patches": count(shown.patches),
        "shown": count(len(shown.made)),
    }


def bounds_table(finding: Finding) -> Table:
    """The claimed ε and the lower bound of each audit."""
    figures = finding.figures
    claimed = figures["claimed_epsilon"]
    audits = {name: figures["audits"][name] for name in AUDITS if name in figures["audits"]}
    rows = []
    for name, audit in audits.items():
        bounds = number(claimed, 2), number(audit["epsilon_lower_bound"], 2)
        rows.append([AUDITS[name], _evidence(audit), *bounds, f"{100 * audit['confidence']:.4g} %"])
    note = f"ε of one image at δ = {figures['delta']}"
    if figures["mechanism"] == "embedding_noise":
        note += "; the claim is for a single vector"
    elif claimed is None:
        note += "; nothing is claimed"
    if figures["confidence"] < audits[figures["audits"]["largest"]]["confidence"]:
        sure = f"{100 * figures['confidence']:.4g}"
        note += f". All bounds hold together with {sure} % confidence; the largest counts"
    heads = ["audit", "by", "claimed ε", "ε at least", "confidence"]
    return Table("Claim and lower bounds", heads, rows, f"{note}.", words=2)


def _evidence(audit: Mapping[str, Any]) -> str:
    if "runs" in audit:
        reach = audit.get("canary_reach")
        moved = f"; the canary moves the sums by {100 * reach:.1f} % of the bound" if reach else ""
        return f"{count(audit['runs'])} runs of {audit['of']}{moved}"
    guesses = f"{count(audit['right'])} of {count(audit['guesses'])} guesses right"
    canaries = counted(audit["canaries"], "training image")
    return f"{guesses}, by {audit['by']}, on {canaries}"


def attacks_table(finding: Finding) -> Table:
    """How well each attack tells training images from others."""
    attacks = finding.figures["attacks"]
    rows = []
    for name, words in ATTACKS.items():
        if name in attacks:
            rates = (attacks[name][f"tpr_at_{percent}_percent"] for percent in ("1", "0.1"))
            shares = (f"{100 * rate:.1f} %" for rate in rates)
            rows.append([words, number(attacks[name]["auc"]), *shares])
    heads = ["attack", "AUC (0.5: chance)", "found at 1 % false positives", "at 0.1 %"]
    note = "Tracing needs all the images in question." if "tracing" in attacks else ""
    return Table("Membership inference", heads, rows, note)


def inversion_table(finding: Finding) -> Table:
    """How much the linear decoder recovers."""
    i = finding.figures["inversion"]
    rows = [
        ["decoder learnt from", f"{count(i['learnt_patches'])} patches of {i['learnt_from']}"],
        ["median correlation with the nearest training patch", number(i["median_correlation"], 2)],
        ["with other training patches", number(i["shuffled"], 2)],
        ["training patches in the bank verbatim", count(i["verbatim_patches"])],
        ["training images they are from", count(i["verbatim_images"])],
    ]
    return Table("Inversion by a linear decoder", [], rows, words=2)


@rc_context(STYLE)
def rate_plot(finding: Finding) -> Plot:
    """Members found against others mistaken for members, a curve an attack."""
    figure, axes = new_figure(3.8, 4.1)
    rates = np.geomspace(LEAST_RATE, 1, 61)
    axes.plot(rates, rates, ":", color=GREY, linewidth=1)
    styles = {"distance": (BLUE, "-", 2.6), "tracing": ("black", "--", 1.2)}
    for name, scores in finding.attacks.items():
        colour, dashes, width = styles[name]
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": width}
        axes.step(*rate_curve(*scores), where="post", label=ATTACKS[name], **style)
    axes.set(xscale="log", xlim=(LEAST_RATE, 1), ylim=(0, 1))
    axes.set(xlabel="other images taken for training images", ylabel="training images found")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
    alt = f"Training images of {finding.name} found against other images taken for them"
    return finished_plot(figure, "rates", "", alt)


def rate_curve(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False positive rates, and the share of members found from each on; small scores are found.

    Returns:
        rates: [N + 2], ascending, N the number of others; the first stands for none.
        found: [N + 2].
    """
    cuts = np.append(np.sort(others), np.inf)
    found = np.searchsorted(np.sort(members), cuts, "left") / len(members)
    rates = np.arange(len(cuts)) / len(others)
    rates[0] = min(LEAST_RATE, 1 / len(others) / 2)  # a logarithmic axis has no zero
    return np.append(rates, 1.0), np.append(found, found[-1])


@rc_context(STYLE)
def distance_plot(finding: Finding) -> Plot:
    """Least distances to the bank, of training images and of others."""
    members, others = finding.attacks["distance"]
    figure, axes = new_figure(5.0, 4.1)
    names = (
        counted(len(members), "training image", " ↑"),
        counted(len(others), "normal test image", " ↓"),
    )
    two_histograms(axes, (names[0], np.asarray(members)), (names[1], np.asarray(others)))
    axes.set(xlabel="least distance of an image's patches to the bank", ylabel="share")
    alt = f"Histogram of least distances to the bank {finding.name}: {names[0]}, {names[1]}"
    return finished_plot(figure, "distances", "", alt)


def tiles(patches: np.ndarray) -> np.ndarray:
    """Patches [n, side²] side by side as an image [H, W, 4], each stretched to full contrast."""
    side = round(patches.shape[1] ** 0.5)
    rows, columns = -(-len(patches) // COLUMNS), min(COLUMNS, len(patches))
    step = side + GAP
    sheet = np.zeros((rows * step - GAP, columns * step - GAP, 4), np.uint8)
    for i, patch in enumerate(patches):
        row, column = (step * at for at in divmod(i, COLUMNS))
        square = sheet[row : row + side, column : column + side]
        square[..., :3] = stretched(patch.reshape(side, side))[..., None]
        square[..., 3] = 255
    return sheet


def stretched(values: np.ndarray) -> np.ndarray:
    """Values as uint8, the least black and the largest white; NaN stays black."""
    low, high = np.nanmin(values), np.nanmax(values)
    parts = (values - low) / max(high - low, 1e-6)
    return (255 * np.nan_to_num(parts)).round().astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """An image [H, W] in [0, 1] as uint8."""
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def over_paper(paint: np.ndarray) -> np.ndarray:
    """An image [H, W] as [H, W, 4], transparent where it is NaN."""
    there = np.isfinite(paint)
    values = grey(np.where(there, paint, 0))
    return np.dstack([values, values, values, 255 * there.astype(np.uint8)])


PAGE: Final = r"""
{% from "parts.html" import show_plot, show_table %}
<p class="lead">{{ verdict }}</p>
<p class="note">{{ guarantee }}</p>

{% set level = "h3" if banks | length > 1 else "h2" %}
{% for bank in banks %}
{% if banks | length > 1 %}
<h2>{{ bank.name }}</h2>
<p>{{ bank.verdict }}</p>
{% endif %}
<section>
<{{ level }}>{{ bank.bounds.title }}</{{ level }}>
{{ show_table(bank.bounds) }}
</section>

<section>
<{{ level }}>{{ bank.attacks.title }}</{{ level }}>
{{ show_table(bank.attacks) }}
<div class="plots">
{% for plot in bank.plots %}{{ show_plot(plot) }}{% endfor %}
</div>
</section>

<section>
<{{ level }}>{{ bank.inversion.title }}</{{ level }}>
{{ show_table(bank.inversion) }}
<div class="sheets">
<figure><img class="pixels" src="{{ bank.originals }}" alt="{{ bank.shown }} training patches nearest to rows of the bank"><figcaption>Training patches nearest to rows of the bank: {{ bank.shown }} at random</figcaption></figure>
<figure><img class="pixels" src="{{ bank.made }}" alt="The same patches as decoded from the bank's rows"><figcaption>What the decoder makes of the bank's rows. Each square is stretched to full contrast</figcaption></figure>
</div>
{% if bank.image %}
<div class="sheets">
<figure><img src="{{ bank.image }}" alt="The training image of which most patches lie in the bank"><figcaption>The training image of which most lies in the bank</figcaption></figure>
<figure><img class="sheet" src="{{ bank.paint }}" alt="The same image as far as the bank's rows give it, decoded"><figcaption>What the bank holds of it: {{ bank.patches }} patches, decoded; nothing elsewhere</figcaption></figure>
</div>
{% endif %}
</section>
{% endfor %}

<section>
<h2>What was not tested</h2>
<p>{{ untested }}</p>
</section>
"""
