"""The tables of a study: for its page, as CSV and as Markdown."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from src.reporting.formats import DASH, byte_size, count, difference, duration, figure, setting
from src.reporting.run.summary import METRIC_NAMES
from src.reporting.study.study import (
    Estimate,
    Group,
    Record,
    Study,
    bytes_by_stage,
    seconds_by_stage,
    stage_sums,
    work_by_stage,
)
from src.storage.run_metrics import RunMetrics

REPORT = "report.html"
Form = Callable[[Any], str]
Amounts = Mapping[str, Callable[[RunMetrics], dict[str, float]]]  # stage -> how much


@dataclass(frozen=True)
class Column:
    """A figure of a group: what it is called, its key, how it is written."""

    name: str
    key: str
    form: Form = figure


@dataclass(frozen=True)
class Table:
    """Rows of text, and the same rows as numbers for a spreadsheet."""

    name: str
    title: str
    note: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Mapping[str, Any]]
    words: int = 1  # columns that hold words; the others are set to the right
    links: Sequence[str] = field(default=())  # of the first column, one a row; "": none


MAIN = (
    Column("local mean", "local.mean.image_auroc"),
    Column("federated", "federated.image_auroc"),
    Column("centralized", "centralized.image_auroc"),
    Column("fed. − cent.", "difference.centralized.image_auroc", difference),
    Column("fed. − local", "difference.local.image_auroc", difference),
)
COSTS = (
    Column("upload, all clients", "traffic.upload_bytes", byte_size),
    Column("download, each", "traffic.broadcast_bytes", byte_size),
    Column("× every patch", "factor.every_patch", lambda v: figure(v, 0)),
    Column("× one bank", "factor.one_bank", lambda v: figure(v, 2)),
    Column("bank rows", "bank.size", count),
    Column("exact rows", "bank.exact", count),
    Column("radius", "bank.radius", lambda v: figure(v, 2)),
    Column("its bound", "bank.radius_bound", lambda v: figure(v, 2)),
    Column("centralized radius", "centralized.radius", lambda v: figure(v, 2)),
    Column("time in all", "seconds.total", duration),
)
PRIVACY = (
    Column("ε spent", "privacy.epsilon", lambda v: figure(v, 2)),
    Column("audit: ε at least", "audit.epsilon_lower_bound", lambda v: figure(v, 2)),
    Column("membership AUC", "audit.membership_auc"),
    Column("found at 1 % false", "audit.tpr_at_1_percent"),
    Column("at 0.1 %", "audit.tpr_at_0.1_percent"),
    Column("tracing AUC", "audit.tracing_auc"),
    Column("public images alone", "comparators.public images alone.image_auroc"),
    Column("their Gaussian", "comparators.Gaussian of public images.image_auroc"),
    Column("k-means, no noise", "comparators.k-means without noise.image_auroc"),
)
FAIRNESS = (
    Column("worst client", "fairness.worst"),
    Column("gap, best − worst", "fairness.gap"),
    Column("Jain's index", "fairness.jain", lambda v: figure(v, 4)),
    Column("worst alone", "local.worst.image_auroc"),
)
HETEROGENEITY = (
    Column("feature shift", "heterogeneity.feature_shift"),
    Column("value skew", "heterogeneity.value_skew"),
    Column("size skew", "heterogeneity.size_skew"),
)
BANKS = {"local mean": "local.mean", "federated": "federated", "centralized": "centralized"}


def written(found: Estimate | None, form: Form) -> str:
    """`0.951 ± 0.002`; the mean alone where there is no interval."""
    if not found:
        return DASH
    if found.half is None:
        return form(found.mean)
    return f"{form(found.mean)} ± {form(found.half).lstrip('+')}"


def tables_of(study: Study, folder: Path) -> list[Table]:
    """All tables that have a figure to show; `folder` is where links start from."""
    found = [
        _by_group("main", "Image AUROC", _main_note(study), study.groups, MAIN),
        _other_figures(study.groups),
        _by_group("costs", "Cost and guarantee", COST_NOTE, study.groups, COSTS, plain=True),
        _stages("seconds", "Seconds by stage", SECONDS_NOTE, study.groups, SECONDS, duration),
        _stages("bytes", "Bytes by stage", BYTES_NOTE, study.groups, BYTES, byte_size),
        _by_group("privacy", "Privacy", PRIVACY_NOTE, study.groups, PRIVACY),
        _by_group("fairness", "Fairness", FAIRNESS_NOTE, study.groups, FAIRNESS),
        _by_group(
            "heterogeneity", "Heterogeneity", HETEROGENEITY_NOTE, study.groups, HETEROGENEITY
        ),
        _runs(study, folder),
    ]
    return [table for table in found if len(table.heads) > table.words and table.rows]


def _main_note(study: Study) -> str:
    said = []
    if any(group.values("local.mean.image_auroc") for group in study.groups):
        said.append("Local: each client with a bank of its own images, the mean over clients.")
    if max(len(group.runs) for group in study.groups) == 1:
        said.append("One seed: there are no intervals.")
    else:
        said.append(
            "Means over seeds ± half a 95 % t-interval; differences are taken within a seed. "
            "A figure without ± has one seed."
        )
    return " ".join(said)


COST_NOTE: Final = (
    "× every patch: how many times the upload all patches would be in float32; "
    "× one bank: the merged bank in float32. Every patch of a merged client lies within the "
    "radius of the bank, as measured; the bound is what the clients' radii promise."
)
PRIVACY_NOTE: Final = (
    "ε of all that a run has released, at its δ; the audit's lower bound holds with 95 % "
    "confidence. Membership: telling training images from other normal ones. The last columns are "
    "image AUROC without any private image, and without noise. Each run's guarantee is for its own "
    "releases: to publish several runs on the same images costs more than any of them."
)
FAIRNESS_NOTE: Final = (
    "Image AUROC of the merged bank on each client's own test images. Jain's index is "
    "(Σx)² / (n Σx²), 1 where all are equal. Worst alone: a client with its own bank."
)
HETEROGENEITY_NOTE: Final = (
    "All from 0 to 1. Feature shift: share of the variance of images' mean features between "
    "clients. Value skew: mean total variation distance of clients' values from all. Size skew: "
    "1 − Jain's index of clients' numbers of images."
)


SECONDS_NOTE: Final = "What a cache or an earlier run has kept takes next to no time."
BYTES_NOTE: Final = "All rounds together."
MEANS: Final = "Means over seeds. "


def _by_group(
    name: str,
    title: str,
    note: str,
    groups: Sequence[Group],
    columns: Sequence[Column],
    plain: bool = False,
) -> Table:
    """A row a group; columns that no group has are left out. `plain`: without intervals."""
    kept = [column for column in columns if any(g.values(column.key) for g in groups)]
    several = any(len(g.runs) > 1 for g in groups)
    heads = ["group", *(["seeds"] if several else []), *(c.name for c in kept)]
    note = f"{MEANS}{note}" if several and plain else note
    rows, numbers = [], []
    for group in groups:
        found = {c.key: group.estimate(c.key) for c in kept}
        cells = [_cell(found[c.key], c.form, plain, len(group.runs)) for c in kept]
        rows.append([group.label, *([str(len(group.runs))] if several else []), *cells])
        numbers.append(_spelled(group, found))
    return Table(name, title, note, heads if kept else ["group"], rows, numbers)


def _cell(found: Estimate | None, form: Form, plain: bool, runs: int) -> str:
    text = form(found.mean) if found and plain else written(found, form)
    return f"{text} (n = {found.n})" if found and found.n != runs else text


def _spelled(group: Group, found: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """A row for a spreadsheet: the settings, then mean, half-width and n of each figure."""
    row: dict[str, Any] = {"group": group.label, **group.settings}
    for key, value in found.items():
        row[key] = value.mean if value else ""
        row[f"{key}.half"] = value.half if value and value.half is not None else ""
        row[f"{key}.n"] = value.n if value else 0
    return row


def _other_figures(groups: Sequence[Group]) -> Table:
    """Every figure but image AUROC, a row a group and bank."""
    keys = {key.replace("@", "."): name for key, name in METRIC_NAMES.items()}
    del keys["image_auroc"]
    kept = [k for k in keys if any(g.values(f"{b}.{k}") for b in BANKS.values() for g in groups)]
    rows, numbers = [], []
    for group in groups:
        for name, bank in BANKS.items():
            found = {key: group.estimate(f"{bank}.{key}") for key in kept}
            if any(found.values()):
                cells = [_cell(e, figure, False, len(group.runs)) for e in found.values()]
                rows.append([group.label, name, *cells])
                numbers.append({**_spelled(group, {}), "bank": name, **_spelled(group, found)})
    heads = ["group", "bank", *(keys[k] for k in kept)]
    several = any(len(run.metrics.objects) > 1 for g in groups for run in g.runs)
    note = "Means over the objects." if several else ""
    return Table("figures", "Other figures", note, heads, rows, numbers, words=2)


SECONDS: Final[Amounts] = {
    "slowest client": seconds_by_stage,
    "all clients": work_by_stage,
}
BYTES: Final[Amounts] = {
    "up, all clients": lambda metrics: bytes_by_stage(metrics, "up"),
    "down, each client": lambda metrics: bytes_by_stage(metrics, "down"),
}


def _stages(
    name: str, title: str, note: str, groups: Sequence[Group], sources: Amounts, form: Form
) -> Table:
    """Means over seeds, a row a group and stage."""
    sums = [{n: stage_sums(g.runs, take) for n, take in sources.items()} for g in groups]
    kept = [source for source in sources if any(found[source] for found in sums)]
    rows, numbers = [], []
    for group, found in zip(groups, sums, strict=True):
        for stage in dict.fromkeys(stage for source in kept for stage in found[source]):
            means: dict[str, Any] = {source: found[source].get(stage, "") for source in kept}
            rows.append([group.label, stage, *(form(found[k].get(stage)) for k in kept)])
            numbers.append({"group": group.label, "stage": stage, **means})
    note = f"{MEANS}{note}" if any(len(g.runs) > 1 for g in groups) else note
    return Table(name, title, note, ["group", "stage", *kept], rows, numbers, words=2)


def _runs(study: Study, folder: Path) -> Table:
    rows, numbers, links = [], [], []
    for group in study.groups:
        for run in group.runs:
            auroc = run.figures.get("federated.image_auroc")
            rows.append([run.name, group.label, setting(run.seed), figure(auroc)])
            numbers.append({"run": run.name, "group": group.label, "seed": run.seed, **run.figures})
            links.append(_link(run, folder))
    heads = ["run", "group", "seed", "federated"]
    return Table("runs", "Runs", "", heads, rows, numbers, words=2, links=links)


def _link(run: Record, folder: Path) -> str:
    """The run's own page as seen from `folder`; "" where there is none."""
    own = run.folder / REPORT
    if not own.is_file():
        return ""
    return quote(Path(os.path.relpath(own.resolve(), folder.resolve())).as_posix())


def as_csv(table: Table) -> str:
    """The table's numbers in full."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in table.numbers for key in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.numbers)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    """The table as the page shows it."""
    rule = ["---" if i < table.words else "---:" for i in range(len(table.heads))]
    lines = [table.heads, rule, *table.rows]
    body = "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in line)} |" for line in lines)
    return f"{body}\n" + (f"\n{table.note}\n" if table.note else "")
