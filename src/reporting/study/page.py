"""report.html of a study: its tables and plots on one self-contained page, and as files.

The folder holds report.html, tables/*.csv and *.md, figures/*.svg and *.png.
"""

# ruff: noqa: E501
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from src.reporting.formats import counted
from src.reporting.page import render_page
from src.reporting.plots import Plot
from src.reporting.run.tables import pairs_table
from src.reporting.study.groups import Study
from src.reporting.study.plots import study_plots
from src.reporting.study.privacy_plots import privacy_plots
from src.reporting.study.tables import REPORT, tables_of
from src.reporting.tables import Table, as_csv, as_markdown
from src.storage.atomic import write_whole


def write_study(folder: Path, study: Study) -> Path:
    """Write page, tables and figures below `folder`; returns the page's path."""
    tables, plots = tables_of(study, folder), [*privacy_plots(study), *study_plots(study)]
    for table in tables:
        write_whole(folder / "tables" / f"{table.name}.csv", as_csv(table))
        write_whole(folder / "tables" / f"{table.name}.md", as_markdown(table))
    for plot in plots:
        write_whole(folder / "figures" / f"{plot.name}.png", plot.png)
        write_whole(folder / "figures" / f"{plot.name}.svg", plot.svg)
    write_whole(folder / REPORT, study_page(study, tables, plots))
    return folder / REPORT


def study_page(study: Study, tables: Sequence[Table], plots: Sequence[Plot]) -> str:
    """The page as text."""
    names = sorted({run.metrics.dataset.name for run in study.runs if run.metrics.dataset})
    return render_page(
        PAGE,
        title=f"Federated PatchCore on {', '.join(names)}" if names else "Federated PatchCore",
        facts=_facts(study),
        tables={table.name: table for table in tables},
        plots=plots,
        missing=study.missing,
        refused=[(run.name, out) for run in study.runs for out in run.metrics.refused],
        versions=_differing_versions(study),
        settings=pairs_table("Settings that all runs share", study.shared),
        open_runs=len(study.runs) <= 20,
    )


def _facts(study: Study) -> list[str]:
    facts = [counted(len(study.runs), "run")]
    if len(study.groups) > 1:
        facts.append(counted(len(study.groups), "group"))
    seeds = {run.seed for run in study.runs}
    facts.append(f"seed {seeds.pop()}" if len(seeds) == 1 else counted(len(seeds), "seed"))
    clients = {len(run.metrics.local.clients) for run in study.runs}
    return [*facts, counted(clients.pop(), "client")] if len(clients) == 1 else facts


def _differing_versions(study: Study) -> list[str]:
    """Packages that not all runs had in the same version."""
    versions = [run.metrics.versions for run in study.runs]
    names = dict.fromkeys(name for own in versions for name in own)
    return [name for name in names if len({own.get(name) for own in versions}) > 1]


PAGE: Final = r"""
{% from "parts.html" import folded, section, show_plot, show_table %}
{% if missing or refused or versions %}
<section class="refused">
<h2>Before reading on</h2>
<ul>
{% if versions %}<li>The runs used different versions of {{ versions | join(", ") }}.</li>{% endif %}
{% for run in missing %}<li>run <b>{{ run.name }}</b> is not counted: {{ run.reason }}</li>{% endfor %}
{% for name, out in refused %}<li>run <b>{{ name }}</b> left out client {{ out.client }}: {{ out.reason }}</li>{% endfor %}
</ul>
</section>
{% endif %}

{{ section(tables.main) }}
{% if plots %}
<section>
<h2>Figures</h2>
{% for plot in plots %}{{ show_plot(plot) }}{% endfor %}
</section>
{% endif %}
{% for name in ("privacy", "costs", "fairness", "heterogeneity", "metrics") %}{{ section(tables[name]) }}{% endfor %}
<section>
<h2>Details</h2>
{% for table in (tables.seconds, tables.bytes, settings) %}{{ folded(table) }}{% endfor %}
{{ folded(tables.runs, open_runs) }}
</section>
"""
