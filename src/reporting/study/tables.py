"""The tables of a study."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from src.reporting.formats import DASH, byte_size, count, difference, duration, number
from src.reporting.run.summary import METRIC_NAMES
from src.reporting.study.groups import Estimate, Group, Study, overall
from src.reporting.study.runs import Record
from src.reporting.study.stages import BYTES, SECONDS, Amounts, stage_means
from src.reporting.tables import Table

REPORT = "report.html"
Form = Callable[[float | None], str]
TWO_DIGITS: Form = partial(number, digits=2)


class Column(NamedTuple):
    """A value of a group: its heading, its key, how it is written."""

    name: str
    key: str
    form: Form = number


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
    Column("× every patch", "factor.every_patch", partial(number, digits=0)),
    Column("× one bank", "factor.one_bank", TWO_DIGITS),
    Column("bank rows", "bank.size", count),
    Column("exact rows", "bank.exact", count),
    Column("radius", "bank.radius", TWO_DIGITS),
    Column("its bound", "bank.radius_bound", TWO_DIGITS),
    Column("centralized radius", "centralized.radius", TWO_DIGITS),
    Column("time in all", "seconds.total", duration),
)
PRIVACY = (
    Column("ε spent", "privacy.epsilon", TWO_DIGITS),
    Column("audit: ε at least", "audit.epsilon_lower_bound", TWO_DIGITS),
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
    Column("Jain's index", "fairness.jain", partial(number, digits=4)),
    Column("worst alone", "local.worst.image_auroc"),
)
HETEROGENEITY = (
    Column("feature shift", "heterogeneity.feature_shift"),
    Column("value skew", "heterogeneity.value_skew"),
    Column("size skew", "heterogeneity.size_skew"),
)
BANKS = {"local mean": "local.mean", "federated": "federated", "centralized": "centralized"}
MEANS: Final = "Means over seeds. "
INTERVALS: Final = (
    "Means over seeds ± half a 95 % t-interval; differences are taken within a seed. All groups: "
    "each counts the same, and the interval is over the seeds' means."
)
COST_NOTE: Final = (
    "× every patch: how many times the upload all patches would be in float32; × one bank: the "
    "merged bank in float32. Radius: as measured; its bound: what the clients' radii guarantee."
)
PRIVACY_NOTE: Final = (
    "ε of all that a run released, at its δ; the audit's lower bound holds with 95 % confidence. "
    "The last columns are image AUROC without any private image, and without noise. A guarantee "
    "is for one run: publishing several runs on the same images costs more than any of them."
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


def tables_of(study: Study, folder: Path) -> list[Table]:
    """All tables that have a value to show; `folder` is where links start from."""
    seconds_note = "Cached features and kept baselines take next to no time."
    note = INTERVALS if study.several_seeds else "One seed: there are no intervals."
    tables = [
        _by_group("main", "Image AUROC", note, study, MAIN, total=True),
        _other_metrics(study),
        _by_group("costs", "Cost and guarantee", COST_NOTE, study, COSTS, plain=True),
        _by_stage("seconds", "Seconds by stage", seconds_note, study, SECONDS, duration),
        _by_stage("bytes", "Bytes by stage", "All rounds together.", study, BYTES, byte_size),
        _by_group("privacy", "Privacy", PRIVACY_NOTE, study, PRIVACY),
        _by_group("fairness", "Fairness", FAIRNESS_NOTE, study, FAIRNESS),
        _by_group("heterogeneity", "Heterogeneity", HETEROGENEITY_NOTE, study, HETEROGENEITY),
        _runs(study, folder),
    ]
    return [table for table in tables if len(table.heads) > table.words and table.rows]


def interval(value: Estimate | None, form: Form) -> str:
    """`0.951 ± 0.002`; the mean alone where there is no interval."""
    if not value:
        return DASH
    if value.half is None:
        return form(value.mean)
    return f"{form(value.mean)} ± {form(value.half).lstrip('+')}"


def _by_group(
    name: str,
    title: str,
    note: str,
    study: Study,
    columns: Sequence[Column],
    plain: bool = False,  # without intervals
    total: bool = False,  # with a row over all groups
) -> Table:
    """A row a group; columns that no group has are left out."""
    kept = [column for column in columns if any(g.values(column.key) for g in study.groups)]
    several, total = study.several_seeds, total and len(study.groups) > 1
    rows, numbers = [], []
    for group in study.groups:
        values = {c.key: group.estimate(c.key) for c in kept}
        cells = [_cell(values[c.key], c.form, plain, len(group.runs)) for c in kept]
        rows.append([group.label, *([str(len(group.runs))] if several else []), *cells])
        numbers.append(_numbers(group, values))
    if total:
        cells = [interval(overall(study, c.key), c.form) for c in kept]
        rows.append(["all groups", *([""] if several else []), *cells])
    heads = ["group", *(["seeds"] if several else []), *(c.name for c in kept)] if kept else []
    note = f"{MEANS}{note}" if several and plain else note
    return Table(title, heads, rows, note, name, numbers, total=total)


def _cell(value: Estimate | None, form: Form, plain: bool, runs: int) -> str:
    text = form(value.mean) if value and plain else interval(value, form)
    return f"{text} (n = {value.n})" if value and value.n != runs else text


def _numbers(group: Group, values: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """A row for a spreadsheet: the settings, then mean, half-width and n of each value."""
    row: dict[str, Any] = {"group": group.label, **group.settings}
    for key, value in values.items():
        row[key] = value.mean if value else ""
        row[f"{key}.half"] = value.half if value and value.half is not None else ""
        row[f"{key}.n"] = value.n if value else 0
    return row


def _other_metrics(study: Study) -> Table:
    """Every metric but image AUROC, a row a group and bank."""
    groups = study.groups
    keys = {key.replace("@", "."): name for key, name in METRIC_NAMES.items()}
    del keys["image_auroc"]
    kept = [k for k in keys if any(g.values(f"{b}.{k}") for b in BANKS.values() for g in groups)]
    rows, numbers = [], []
    for group in groups:
        for name, bank in BANKS.items():
            values = {key: group.estimate(f"{bank}.{key}") for key in kept}
            if any(values.values()):
                cells = [_cell(value, number, False, len(group.runs)) for value in values.values()]
                rows.append([group.label, name, *cells])
                numbers.append({**_numbers(group, {}), "bank": name, **_numbers(group, values)})
    heads = ["group", "bank", *(keys[k] for k in kept)]
    note = "Means over the objects." if any(len(r.metrics.objects) > 1 for r in study.runs) else ""
    title, bold = "Other metrics", "federated"
    return Table(title, heads, rows, note, "metrics", numbers, 2, strong=bold, grouped=True)


def _by_stage(
    name: str, title: str, note: str, study: Study, sources: Mapping[str, Amounts], form: Form
) -> Table:
    """Means over seeds, a row a group and stage."""
    groups = study.groups
    means = [{n: stage_means(g.runs, amounts) for n, amounts in sources.items()} for g in groups]
    kept = [source for source in sources if any(mean[source] for mean in means)]
    rows, numbers = [], []
    for group, mean in zip(groups, means, strict=True):
        for stage in dict.fromkeys(stage for source in kept for stage in mean[source]):
            values = {source: mean[source].get(stage) for source in kept}
            rows.append([group.label, stage, *map(form, values.values())])
            numbers.append({"group": group.label, "stage": stage, **values})
    note = f"{MEANS}{note}" if study.several_seeds else note
    heads = ["group", "stage", *kept]
    return Table(title, heads, rows, note, name, numbers, words=2, grouped=True)


def _runs(study: Study, folder: Path) -> Table:
    rows, numbers, links = [], [], []
    for group in study.groups:
        for run in group.runs:
            auroc = run.values.get("federated.image_auroc")
            rows.append([run.name, group.label, str(run.seed), number(auroc)])
            numbers.append({"run": run.name, "group": group.label, "seed": run.seed, **run.values})
            links.append(_link(run, folder))
    heads = ["run", "group", "seed", "federated"]
    return Table("Runs", heads, rows, "", "runs", numbers, words=2, links=links)


def _link(run: Record, folder: Path) -> str:
    """The run's own page as seen from `folder`; "" where there is none."""
    own = run.folder / REPORT
    if not own.is_file():
        return ""
    return quote(Path(os.path.relpath(own.resolve(), folder.resolve())).as_posix())
