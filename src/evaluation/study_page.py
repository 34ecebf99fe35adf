"""report.html of a study: its tables and figures on one self-contained page, and as files.

The folder holds report.html, tables/*.csv and *.md, figures/*.svg and *.png.
"""

# ruff: noqa: E501
import base64
import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import DictLoader

from src.evaluation.formats import (
    DASH,
    byte_size,
    count,
    counted,
    difference,
    duration,
    figure,
    setting,
)
from src.evaluation.page import STYLE
from src.evaluation.report import environment
from src.evaluation.study import (
    Estimate,
    Group,
    Record,
    Study,
    bytes_by_stage,
    overall,
    seconds_by_stage,
    stage_sums,
)
from src.evaluation.study_figures import Drawing, drawings
from src.evaluation.summary import METRICS, headline
from src.files import write_whole

REPORT = "report.html"
Form = Callable[[Any], str]
Amounts = Mapping[str, Callable[[Mapping[str, Any]], dict[str, float]]]  # stage -> how much


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
    Column("radius", "bank.radius", lambda v: figure(v, 2)),
    Column("its bound", "bank.radius_bound", lambda v: figure(v, 2)),
    Column("centralized radius", "centralized.radius", lambda v: figure(v, 2)),
    Column("time in all", "seconds.total", duration),
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


def write_study(folder: Path, study: Study) -> Path:
    """Write page, tables and figures below `folder`; returns the page's path."""
    tables, drawn = tables_of(study, folder), drawings(study)
    for table in tables:
        write_whole(folder / "tables" / f"{table.name}.csv", as_csv(table))
        write_whole(folder / "tables" / f"{table.name}.md", as_markdown(table))
    for each in drawn:
        write_whole(folder / "figures" / f"{each.name}.svg", each.svg)
        write_whole(folder / "figures" / f"{each.name}.png", each.png)
    write_whole(folder / REPORT, page(study, tables, drawn))
    return folder / REPORT


def page(study: Study, tables: Sequence[Table], drawn: Sequence[Drawing]) -> str:
    """The page as text, with all that it shows."""
    pages = {"study.html": PAGE, "report.css": STYLE, "study.css": STUDY_STYLE}
    jinja = environment().overlay(loader=DictLoader(pages))
    names = sorted({(r.metrics.get("dataset") or {}).get("name") or "" for r in study.runs} - {""})
    return jinja.get_template("study.html").render(
        title=f"Federated PatchCore on {', '.join(names)}" if names else "Federated PatchCore",
        facts=_facts(study),
        lead=_unbroken(lead(study)),
        tables={table.name: table for table in tables},
        drawings=[(each, _data_uri(each.svg)) for each in drawn],
        study=study,
        refused=_refused(study),
        cautions=cautions(study),
    )


def lead(study: Study) -> str:
    """What the runs say, in two sentences at most."""
    if len(study.runs) == 1:
        return headline(study.runs[0].metrics)
    fed = overall(study, "federated.image_auroc")
    if not fed:
        return "There is no image AUROC: it needs normal and anomalous test images."
    over = f"Over {counted(len(study.runs), 'run')}{_grouping(study)}, federated "
    central = overall(study, "difference.centralized.image_auroc")
    local = overall(study, "difference.local.image_auroc")
    said = [f"{_compared(central)} centralized"] if central else []
    said += [f"{_compared(local)} a client alone"] if local else []
    words = f"is {' and '.join(said)} in image AUROC" if said else "has image AUROC"
    return f"{over}{words}, at {written(fed, figure)}{_why_no_interval(fed)}.{_range(study)}"


def _unbroken(text: str) -> str:
    """A figure never parts from its sign or unit at the end of a line."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _grouping(study: Study) -> str:
    if len(study.groups) == 1:
        return ""
    seeds = {len(group.runs) for group in study.groups}
    each = f" of {counted(next(iter(seeds)), 'seed')}" if len(seeds) == 1 else ""
    return f" in {len(study.groups)} groups{each}"


def _compared(found: Estimate) -> str:
    if figure(abs(found.mean)) == figure(0.0):
        spread = f" (± {figure(found.half)})" if found.half is not None else ""
        return f"level{spread} with"
    side = "above" if found.mean > 0 else "below"
    return f"{written(Estimate(abs(found.mean), found.half, found.n), figure)} {side}"


def _why_no_interval(found: Estimate) -> str:
    if found.half is not None:
        return f" (95 % intervals over {found.n} seeds)"
    return " (no interval: one seed)" if found.n == 1 else " (no interval: seeds differ by group)"


def _range(study: Study) -> str:
    """Between which groups the difference from centralized lies."""
    key = "difference.centralized.image_auroc"
    found = [(value, g.label) for g in study.groups if (value := g.mean(key)) is not None]
    if len(found) < 2 or difference(min(found)[0]) == difference(max(found)[0]):
        return ""
    (low, least), (high, most) = min(found), max(found)
    return (
        f" By group, the difference from centralized goes from {difference(low)} ({least}) "
        f"to {difference(high)} ({most})."
    )


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
    keys = {key.replace("@", "."): name for key, name in METRICS.items() if key != "image_auroc"}
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
    several = any(len(run.metrics.get("objects") or ()) > 1 for g in groups for run in g.runs)
    note = "Means over the objects." if several else ""
    return Table("figures", "Other figures", note, heads, rows, numbers, words=2)


SECONDS: Final[Amounts] = {
    "slowest client": seconds_by_stage,
    "all clients": lambda metrics: seconds_by_stage(metrics, "work"),
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


def _facts(study: Study) -> list[str]:
    facts = [counted(len(study.runs), "run")]
    if len(study.groups) > 1:
        facts.append(counted(len(study.groups), "group"))
    seeds = {str(run.seed) for run in study.runs if run.seed is not None}
    if seeds:
        facts.append(f"seed {seeds.pop()}" if len(seeds) == 1 else counted(len(seeds), "seed"))
    clients = {run.figures["clients"] for run in study.runs if "clients" in run.figures}
    if len(clients) == 1:
        facts.append(counted(int(clients.pop()), "client"))
    return facts


def _refused(study: Study) -> list[tuple[str, Mapping[str, Any]]]:
    return [(run.name, out) for run in study.runs for out in run.metrics.get("refused") or []]


def cautions(study: Study) -> list[str]:
    """What a reader should know before trusting the comparison, in sentences."""
    said = []
    if len({len(group.runs) for group in study.groups}) > 1:
        said.append("The groups have not the same number of seeds.")
    versions = [run.metrics.get("versions") or {} for run in study.runs]
    names = dict.fromkeys(name for found in versions for name in found)
    unlike = [n for n in names if len({str(found.get(n)) for found in versions}) > 1]
    if unlike:
        said.append(f"The runs were made with different versions of {', '.join(unlike)}.")
    return said


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


PAGE: Final = r"""
{% macro box(table) %}
<div class="box" tabindex="0" role="region" aria-label="{{ table.title }}">
<table class="study {{ table.name }}">
<thead><tr>{% for head in table.heads %}<th scope="col"{% if loop.index0 < table.words %} class="word"{% endif %}>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
{% set link = table.links[loop.index0] if table.links else "" %}
{% set again = not loop.first and table.words > 1 and not table.links and row[0] == table.rows[loop.index0 - 1][0] %}
<tr{% if table.words > 1 and row[1] == "federated" %} class="strong"{% endif %}>
{%- for cell in row %}
{%- if loop.first %}<th scope="row"{% if again %} class="again"{% endif %}>{% if link %}<a href="{{ link }}">{{ cell }}</a>{% else %}{{ cell }}{% endif %}</th>
{%- else %}<td{% if loop.index0 < table.words %} class="word"{% endif %}>{{ cell }}</td>
{%- endif %}{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% endmacro %}
{% macro section(name) %}
{% if name in tables %}
<section>
<h2>{{ tables[name].title }}</h2>
{{ box(tables[name]) }}
</section>
{% endif %}
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
{% include "report.css" %}
{% include "study.css" %}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="facts">{% for fact in facts %}<span>{{ fact }}</span>{% endfor %}</p>
</header>
<main>
<p class="lead">{{ lead }}</p>
{% if study.unfinished or study.repeats or refused or cautions %}
<section class="refused">
<h2>Before reading on</h2>
<ul>
{% for caution in cautions %}<li>{{ caution }}</li>{% endfor %}
{% for run in study.unfinished %}<li>run <b>{{ run.name }}</b> is missing: {{ run.reason }}</li>{% endfor %}
{% for run in study.repeats %}<li>run <b>{{ run.name }}</b> is not counted: {{ run.reason }}</li>{% endfor %}
{% for name, out in refused %}<li>run <b>{{ name }}</b> left out client {{ out.client }}: {{ out.reason }}</li>{% endfor %}
</ul>
</section>
{% endif %}

{{ section("main") }}
{% if drawings %}
<section>
<h2>Figures</h2>
{% for drawing, uri in drawings %}
<figure class="plot" id="{{ drawing.name }}">
<h3>{{ drawing.title }}</h3>
<div class="scroll" tabindex="0" role="region" aria-label="{{ drawing.title }}"><img src="{{ uri }}" alt="{{ drawing.alt }}"></div>
<figcaption>{{ drawing.caption }}</figcaption>
</figure>
{% endfor %}
</section>
{% endif %}
{% for name in ("costs", "fairness", "heterogeneity", "figures") %}{{ section(name) }}{% endfor %}
<section>
<h2>Details</h2>
{% for name in ("seconds", "bytes") if name in tables %}
<details><summary>{{ tables[name].title }}</summary>{{ box(tables[name]) }}</details>
{% endfor %}
{% if study.shared %}
<details><summary>Settings{% if study.runs | length > 1 %} that all runs share{% endif %}</summary>
<div class="box" tabindex="0" role="region" aria-label="Settings"><table class="pairs"><tbody>
{% for key, value in study.shared.items() %}
<tr><th scope="row">{{ key }}</th><td>{{ value | setting }}</td></tr>
{% endfor %}
</tbody></table></div></details>
{% endif %}
<details{% if study.runs | length <= 20 %} open{% endif %}><summary>{{ study.runs | length | counted("run") }}</summary>{{ box(tables.runs) }}</details>
</section>
</main>
</body>
</html>
"""

STUDY_STYLE: Final = r"""
a { color: rgb(var(--accent)); }
th.word, td.word, .study th[scope="row"] { text-align: left; }
.study th[scope="row"] { white-space: normal; min-width: 11rem; }
.study thead th { white-space: normal; }
.study th.again { font-size: 0; }  /* a screen reader still says it */
.study tr.strong td { font-weight: 700; }
.plot { margin: 0 0 2.5rem; }
.plot img { display: block; height: auto; }
.scroll { overflow-x: auto; }
.plot figcaption { max-width: 44rem; margin-top: 0.4rem; }
@media screen and (prefers-color-scheme: dark) { .plot img { filter: invert(0.9) hue-rotate(180deg); } }
@media print {
  .scroll { overflow: visible; }
  .plot img { max-width: 100%; }
  th, td { padding: 0.25rem 0.4rem; }
  table { font-size: 0.8rem; }
  thead th { position: static; }
}
"""
