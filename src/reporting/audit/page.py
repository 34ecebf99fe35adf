"""audit.html: what an audit found, on one self-contained page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import DictLoader
from PIL import Image

from src.reporting.audit.template import AUDIT, AUDIT_STYLE
from src.reporting.formats import counted, figure
from src.reporting.run.charts import MIDDLE, ROC_X, ROC_Y, Axis, Histogram, histogram
from src.reporting.run.page import HEAD, STYLE
from src.reporting.run.report import environment
from src.storage.atomic import write_whole

LEAST_RATE = 0.001  # of false positives, where the curve begins
RATES = np.geomspace(LEAST_RATE, 1, 61)  # at which the line of chance is drawn
COLUMNS = 6  # patches in a row of the picture
GAP = 2  # pixels between them
LINES = {"distance": "federated", "tracing": "centralized"}  # styles of the report's curves
ATTACKS = {"distance": "by distance to the bank", "tracing": "by tracing in the noisy sums"}
AUDITS = {"many_run": "many runs, one canary image", "one_run": "one run, many canary images"}
UNTESTED = (
    "Attackers who see more than what was released, such as the server or a client; "
    "the same images in further runs; decoders better than a linear one; and any other canary, "
    "which is given by its patches: whether a picture has them was not tried. "
    "A small lower bound shows how good these attacks are, not that there is no better one."
)


@dataclass(frozen=True)
class Shown:
    """Patches and an image as a bank shows them.

    Attributes:
        originals, made: [n, 256], patches of training images and what a decoder made of rows.
        image: [H, W] of the training image of which most lies in the bank verbatim, or None.
        paint: [H, W], what the bank holds of it, decoded; NaN where nothing.
        patches: of that image that lie in the bank.
    """

    originals: np.ndarray
    made: np.ndarray
    image: np.ndarray | None = None
    paint: np.ndarray | None = None
    patches: int = 0


@dataclass(frozen=True)
class Finding:
    """What came of one bank.

    Attributes:
        name: of the bank.
        figures: as audit.json has them.
        attacks: distance, and tracing where there are sums: scores of members and of others,
            small for members.
        shown: what the bank shows.
    """

    name: str
    figures: Mapping[str, Any]
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
    pages = {"audit.html": AUDIT, "head.html": HEAD, "report.css": STYLE + AUDIT_STYLE}
    jinja = environment().overlay(loader=DictLoader(pages))
    today = date.today()
    page = jinja.get_template("audit.html").render(
        title=f"Privacy audit of {run}",
        facts=[
            f"{today.day} {today:%B %Y}",
            f"mechanism {figures['mechanism']}",
            counted(len(findings), "bank"),
        ],
        figures=figures,
        known=membership_sentence(figures),
        banks=[_bank(finding) for finding in findings],
        chance=" ".join(f"{rate_at(rate)},{ROC_Y.at(rate)}" for rate in RATES),
        roc_ticks={"x": rate_ticks(), "y": ROC_Y.ticks()},
        middle=MIDDLE,
        names=ATTACKS,
        audits=AUDITS,
        untested=UNTESTED,
    )
    write_whole(path, page)


def membership_sentence(figures: Mapping[str, Any]) -> str:
    """How well training images are told from others, in a sentence."""
    said = (
        f"By distance to the bank, training images are told from others with an AUC of "
        f"{figure(figures['membership_auc'])} (0.5 is chance), and "
        f"{100 * figures['tpr_at_1_percent']:.0f} % of them at 1 % false positives."
    )
    if figures.get("tracing_auc") is None:
        return said
    return (
        f"{said} By tracing in the noisy sums, for which the attacker must hold all the images in "
        f"question, the AUC is {figure(figures['tracing_auc'])}."
    )


def rate_ticks() -> list[tuple[float, str]]:
    """Rates of false positives on the logarithmic axis: coordinate and text."""
    return [(rate_at(rate), f"{100 * rate:g} %") for rate in (0.001, 0.01, 0.1, 1.0)]


def rate_at(rate: float) -> float:
    """Where a rate of false positives lies."""
    axis = Axis(float(np.log10(LEAST_RATE)), 0.0, ROC_X.start, ROC_X.end)
    return axis.at(float(np.log10(max(rate, LEAST_RATE))))


def rate_line(members: np.ndarray, others: np.ndarray) -> str:
    """Members caught by false positives, as an SVG polyline's points; small scores are caught."""
    cuts = np.append(np.sort(others), np.inf)
    caught = np.searchsorted(np.sort(members), cuts, "left") / len(members)
    rates = np.arange(len(cuts)) / len(others)
    steps = zip(rates, [*rates[1:], 1.0], caught, strict=True)
    points = [
        (rate_at(end), ROC_Y.at(share)) for start, stop, share in steps for end in (start, stop)
    ]
    return " ".join(f"{x},{y}" for x, y in dict.fromkeys(points))


@dataclass(frozen=True)
class BankView:
    """One bank as the template shows it."""

    name: str
    figures: Mapping[str, Any]
    curves: list[tuple[str, str, str]]  # attack, style, points
    histogram: Histogram | None
    members: int
    others: int
    originals: str  # data URIs
    made: str
    image: str
    paint: str
    patches: int
    shown: int


def _bank(finding: Finding) -> BankView:
    shown = finding.shown
    members, others = finding.attacks["distance"]
    labels = [0] * len(members) + [1] * len(others)
    return BankView(
        name=finding.name,
        figures=finding.figures,
        curves=[
            (name, LINES[name], rate_line(*scores)) for name, scores in finding.attacks.items()
        ],
        histogram=histogram([*members, *others], labels),
        members=len(members),
        others=len(others),
        originals=png_uri(tiles(shown.originals)),
        made=png_uri(tiles(shown.made)),
        image="" if shown.image is None else png_uri(grey(shown.image)),
        paint="" if shown.paint is None else png_uri(over_paper(shown.paint)),
        patches=shown.patches,
        shown=len(shown.made),
    )


def tiles(patches: np.ndarray) -> np.ndarray:
    """Patches [n, side²] side by side as an image [H, W, 4], each stretched to full contrast."""
    side = round(patches.shape[1] ** 0.5)
    rows, columns = -(-len(patches) // COLUMNS), min(COLUMNS, len(patches))
    step = side + GAP
    sheet = np.zeros((rows * step - GAP, columns * step - GAP, 4), np.uint8)
    for number, patch in enumerate(patches):
        row, column = (step * at for at in divmod(number, COLUMNS))
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
    """An image [H, W] as [H, W, 4], which can be seen through where it is NaN."""
    there = np.isfinite(paint)
    values = grey(np.where(there, paint, 0))
    return np.dstack([values, values, values, 255 * there.astype(np.uint8)])


def png_uri(image: np.ndarray) -> str:
    """uint8 [H, W], or [H, W, 4] with opacity, as a PNG that a page can hold."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
