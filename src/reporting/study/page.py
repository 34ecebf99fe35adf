"""report.html of a study: its tables and figures on one self-contained page, and as files.

The folder holds report.html, tables/*.csv and *.md, figures/*.svg and *.png.
"""

# ruff: noqa: E501
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import DictLoader

from src.reporting.formats import counted, difference, figure
from src.reporting.run.page import HEAD, STYLE
from src.reporting.run.report import environment
from src.reporting.run.summary import headline
from src.reporting.study.figures import Drawing, drawings
from src.reporting.study.privacy import privacy_drawings
from src.reporting.study.study import Estimate, Study, overall
from src.reporting.study.tables import (
    REPORT,
    Table,
    as_csv,
    as_markdown,
    tables_of,
    written,
)
from src.storage.atomic import write_whole
from src.storage.run_metrics import Refusal


def write_study(folder: Path, study: Study) -> Path:
    """Write page, tables and figures below `folder`; returns the page's path."""
    tables, drawn = tables_of(study, folder), [*privacy_drawings(study), *drawings(study)]
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
    pages = {"study.html": PAGE, "head.html": HEAD, "report.css": STYLE + STUDY_STYLE}
    jinja = environment().overlay(loader=DictLoader(pages))
    names = sorted({run.metrics.dataset.name for run in study.runs if run.metrics.dataset})
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


def _facts(study: Study) -> list[str]:
    facts = [counted(len(study.runs), "run")]
    if len(study.groups) > 1:
        facts.append(counted(len(study.groups), "group"))
    seeds = {run.seed for run in study.runs}
    facts.append(f"seed {seeds.pop()}" if len(seeds) == 1 else counted(len(seeds), "seed"))
    clients = {run.figures["clients"] for run in study.runs if "clients" in run.figures}
    if len(clients) == 1:
        facts.append(counted(int(clients.pop()), "client"))
    return facts


def _refused(study: Study) -> list[tuple[str, Refusal]]:
    return [(run.name, out) for run in study.runs for out in run.metrics.refused]


def cautions(study: Study) -> list[str]:
    """What a reader should know before trusting the comparison, in sentences."""
    said = []
    if len({len(group.runs) for group in study.groups}) > 1:
        said.append("The groups have not the same number of seeds.")
    versions = [run.metrics.versions for run in study.runs]
    names = dict.fromkeys(name for found in versions for name in found)
    unlike = [n for n in names if len({found.get(n) for found in versions}) > 1]
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
{% include "head.html" %}
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
{% for name in ("privacy", "costs", "fairness", "heterogeneity", "figures") %}{{ section(name) }}{% endfor %}
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
.study th[scope="row"] { text-align: left; }
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
