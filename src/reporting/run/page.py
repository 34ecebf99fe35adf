"""The templates of report.html: Jinja for the page and its charts, and the style sheet.

They stand in a module because Flower's app bundle carries Python files and drops templates.
"""

# ruff: noqa: E501
from typing import Final

HEAD: Final = r"""
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
{% include "report.css" %}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="facts">{% for fact in facts %}<span>{{ fact }}</span>{% endfor %}</p>
</header>
"""

PAGE: Final = r"""
{% import "charts.html" as draw %}
{% set several = objects | length > 1 %}
{% macro pair(name, value) %}
<tr><th scope="row">{{ name }}</th><td>{{ value | setting }}</td></tr>
{% endmacro %}
{% include "head.html" %}
<main>
{% if metrics.refused %}
<section class="refused">
<h2>{{ metrics.refused | length | counted("client") }} left out of the merged bank</h2>
<ul>
{% for left_out in metrics.refused %}
<li><b>client {{ left_out.client }}</b>: {{ left_out.reason }}</li>
{% endfor %}
</ul>
</section>
{% endif %}

<p class="lead">{{ headline }}</p>
{% if strip %}
<figure>{{ draw.strip(strip) }}</figure>
{% endif %}

{% if compared %}
<section>
<h2>What federation bought</h2>
<div class="box" tabindex="0" role="region" aria-label="Comparison">
<table class="compared">
<thead><tr><th scope="col">Bank</th>{% for name in metric_names.values() %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, row in compared.items() %}
<tr class="{{ name }}"><th scope="row">{{ name }}</th>{% for key in metric_names %}<td>{{ row | metric(key) | figure }}</td>{% endfor %}</tr>
{% endfor %}
{% if "federated" in compared and "centralized" in compared %}
<tr class="total"><th scope="row">federated − centralized</th>
{%- for key in metric_names %}
{% set f = compared.federated | metric(key) %}{% set c = compared.centralized | metric(key) %}
<td>{{ (f - c if f is not none and c is not none else none) | difference }}</td>
{%- endfor %}</tr>
{% endif %}
</tbody>
</table>
</div>
<p class="note">
{%- if "local mean" in compared %}Local: each client scores with a bank of its own images only{% if metrics.local.test_images %}, tested on {{ metrics.local.test_images }}{% endif %}. {% endif %}
{%- if "centralized" in compared %}Centralized: one bank fitted on all training images together. {% endif %}
{%- if several %}Figures are means over the objects. {% endif %}
{%- if metrics.privacy and metrics.privacy.epsilon %}Of these banks only the federated one is private.{% endif %}
</p>
</section>
{% endif %}

{% if several %}
{% set any_local = objects | selectattr("rows.local mean") | list %}
{% set any_central = objects | selectattr("rows.centralized") | list %}
<section>
<h2>By object</h2>
<div class="box" tabindex="0" role="region" aria-label="Figures by object">
<table>
{% set pixel = ["pixel_auroc", "aupro", "au_spro@0.05"] | select("in", metric_names) | list %}
<thead>
<tr><th scope="col" rowspan="2">Object</th><th scope="colgroup" colspan="{{ 1 + (1 if any_local else 0) + (2 if any_central else 0) }}">Image AUROC</th>{% if pixel %}<th scope="colgroup" colspan="{{ pixel | length }}">Federated, by pixel</th>{% endif %}</tr>
<tr>{% if any_local %}<th scope="col">local mean</th>{% endif %}<th scope="col">federated</th>{% if any_central %}<th scope="col">centralized</th><th scope="col">fed. − cent.</th>{% endif %}{% for key in pixel %}<th scope="col">{{ metric_names[key] }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for object in objects %}
{% set f = object.rows.federated | default(none) | metric("image_auroc") %}
{% set c = object.rows.centralized | default(none) | metric("image_auroc") %}
<tr><th scope="row">{{ object.name }}</th>
{%- if any_local %}<td>{{ object.rows["local mean"] | default(none) | metric("image_auroc") | figure }}</td>{% endif %}
<td><b>{{ f | figure }}</b></td>
{%- if any_central %}<td>{{ c | figure }}</td><td>{{ (f - c if f is not none and c is not none else none) | difference }}</td>{% endif %}
{%- for key in pixel %}<td>{{ object.rows.federated | default(none) | metric(key) | figure }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}

{% if charts %}
<section>
<h2>Scores</h2>
{% for chart in charts %}
{% if charts | length > 1 %}
<h3>{{ chart.object }}</h3>
{% endif %}
<div class="charts{% if chart.curves %} wide{% endif %}">
{% if chart.curves %}
<figure>
{{ draw.roc(chart, roc_ticks) }}
<figcaption class="legend">
{% set kinds = chart.curves | map(attribute="kind") | list %}
{% if "federated" in kinds %}<span>{{ draw.sample("federated") }} federated</span>{% endif %}
{% if "centralized" in kinds %}<span>{{ draw.sample("centralized") }} centralized</span>{% endif %}
{% if "local" in kinds %}<span>{{ draw.sample("local") }} {% if chart.local_curves[0] < chart.local_curves[1] %}{{ chart.local_curves[0] }} of {{ chart.local_curves[1] | counted("client") }}{% else %}each client{% endif %} alone</span>{% endif %}
</figcaption>
</figure>
{% endif %}
{% if chart.histogram %}
<figure>
{{ draw.scores(chart, middle) }}
<figcaption>Share of each class by federated image score.
{% if chart.threshold is not none %}From {{ chart.threshold | figure }} on, an image counts as anomalous: {{ chart.found | count }} of {{ chart.anomalous | counted("anomalous image") }} found, {{ chart.flagged | count }} of {{ chart.normal | counted("normal image") }} flagged.{% endif %}
</figcaption>
</figure>
{% endif %}
</div>
{% endfor %}
</section>
{% endif %}

{% if clients.rows or participants %}
<section>
<h2>Clients</h2>
{% if clients.rows %}
<div class="box" tabindex="0" role="region" aria-label="Training images by client and {{ by }}">
<table class="heat">
<caption>Training images by client and {{ by }}</caption>
<thead><tr><th scope="col">Client</th>{% for name in clients.columns %}<th scope="col">{{ name }}</th>{% endfor %}<th scope="col">total</th></tr></thead>
<tbody>
{% for row in clients.rows %}
<tr><th scope="row">{{ row.name }}</th>{% for n, share in row.cells %}<td class="{{ "shade" if n else "zero" }}"{% if n %} style="--shade:{{ "%.2f" | format(0.08 + 0.42 * share) }}"{% endif %}>{{ n | count }}</td>{% endfor %}<td>{{ row.total | count }}</td></tr>
{% endfor %}
<tr class="total"><th scope="row">total</th>{% for n in clients.totals %}<td>{{ n | count }}</td>{% endfor %}<td>{{ clients.totals | sum | count }}</td></tr>
</tbody>
</table>
</div>
{% endif %}
{% if participants %}
{% set columns = {"images": "images", "patches": "patches", "bank": "bank rows", "radius": "covering radius", "image_auroc": "image AUROC alone", "upload": "upload"} %}
{% set forms = {"radius": "figure", "image_auroc": "figure", "upload": "byte_size"} %}
<div class="box" tabindex="0" role="region" aria-label="What each client did">
<table>
<caption>What each client did</caption>
<thead><tr><th scope="col">Client</th>
{%- for key, name in columns.items() if participants | selectattr(key, "defined") | rejectattr(key, "none") | list %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for client in participants %}
<tr><th scope="row">{{ client.client }}</th>
{%- for key in columns if participants | selectattr(key, "defined") | rejectattr(key, "none") | list %}{% set value = client[key] | default(none) %}
<td>{% if forms[key] is not defined %}{{ value | count }}{% elif forms[key] == "figure" %}{{ value | figure }}{% else %}{{ value | byte_size }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</section>
{% endif %}

{% if traffic or metrics.bank or stages %}
<section>
<h2>Cost and guarantee</h2>
{% if certificate.radius_bound | default(none) is not none %}
<p>Every patch of every {% if metrics.refused %}merged {% endif %}client lies within a Euclidean distance of {{ certificate.radius_bound | figure }} of the merged bank{% if several %} of its object{% endif %}.
{%- if certificate.radius is not none %} Measured, the farthest lies at {{ certificate.radius | figure }}.{% endif %}</p>
{% endif %}
{% if metrics.bank and metrics.bank.size | default(none) is not none %}
<p>{% if several %}The merged banks together hold{% else %}The merged bank holds{% endif %} {{ metrics.bank.size | counted("patch feature") }}
{%- if metrics.bank.dim | default(none) is not none %} of {{ metrics.bank.dim | count }} dimensions{% endif %}
{%- if metrics.bank.bytes | default(none) is not none %}, {{ metrics.bank.bytes | byte_size }}{% if metrics.bank.dtype %} in {{ metrics.bank.dtype }}{% endif %}{% endif %}.
{%- if metrics.bank.exact %} {% if metrics.bank.exact == metrics.bank.size %}All of them are{% else %}The first {{ metrics.bank.exact | count }} picked are{% endif %} those that selection over all patches{% if metrics.refused %} of the merged clients{% endif %} makes, but for ties.{% endif %}</p>
{% endif %}
{% if traffic %}
<p>The clients sent {{ traffic.upload | byte_size }} in all
{%- if traffic.least == traffic.most %} ({{ traffic.most | byte_size }} each){% else %} ({{ traffic.least | byte_size }} to {{ traffic.most | byte_size }} each){% endif %}
{%- if traffic.broadcast is not none %}, and each received {{ traffic.broadcast | byte_size }}{% endif %}.
{%- if traffic.factor %} Sending every patch in float32 would have taken {{ traffic.every_patch | byte_size }}, {{ traffic.factor | figure(1 if traffic.factor < 10 else 0) }} times as much.{% endif %}</p>
{% endif %}
{% if stages %}
<div class="box" tabindex="0" role="region" aria-label="Time by stage">
<table>
<caption>Time by stage</caption>
<thead><tr><th scope="col">Stage</th><th scope="col">time</th><th scope="col"><span aria-hidden="true"></span></th></tr></thead>
<tbody>
{% for name, seconds, share in stages %}
<tr{% if name == "total" %} class="total"{% endif %}><th scope="row">{{ name }}</th><td>{{ seconds | duration }}</td><td class="bar-cell" aria-hidden="true"><span style="width:{{ "%.1f" | format(100 * share) }}%"></span></td></tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</section>
{% endif %}

{% if metrics.privacy and metrics.privacy.guarantee %}
<section>
<h2>Privacy</h2>
<p>{{ metrics.privacy.guarantee }}</p>
{% if metrics.privacy.caution %}<p class="refused">{{ metrics.privacy.caution }}.</p>{% endif %}
{% if metrics.privacy.trust %}<p class="note">{{ metrics.privacy.trust }} Noise comes {{ metrics.privacy.noise }}.</p>{% endif %}
{% if metrics.privacy.releases %}
<div class="box" tabindex="0" role="region" aria-label="What was released">
<table>
<caption>What was released</caption>
<thead><tr><th scope="col">Release</th>{% if several %}<th scope="col">object</th>{% endif %}<th scope="col" class="word">what</th><th scope="col">cost μ</th></tr></thead>
<tbody>
{% for release in metrics.privacy.releases %}
<tr><th scope="row">{{ release.name }}</th>{% if several %}<td>{{ release.bank }}</td>{% endif %}<td class="word">{{ release.what }}</td><td>{% if release.mu is none %}∞{% else %}{{ release.mu | figure }}{% endif %}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<p class="note">Costs add up by their squares.</p>
{% endif %}
</section>
{% endif %}

{% set shelves = {
  "misses": ("Defects with the lowest scores", "missed", "found"),
  "alarms": ("Normal images with the highest scores", "passed", "false alarm"),
  "hits": ("Defects with the highest scores", "missed", "found"),
} %}
{% if gallery.values() | sum(start=[]) %}
<section>
<h2>Images</h2>
<p class="note">Left the image, right its federated anomaly map, on one colour scale{% if charts | length > 1 %} for each object{% endif %}; a thin line outlines a defect where its mask is known.</p>
{% for shelf, (heading, below, above) in shelves.items() if gallery[shelf] %}
<h3>{{ heading }}</h3>
<ul class="gallery">
{% for picture in gallery[shelf] %}
{% set row = picture.row %}
<li><figure>
<div class="pair"><img src="{{ picture.image }}" alt="{{ row.object }}, {{ row.defect }}: {{ row.key }}"><img src="{{ picture.heat }}" alt="The same image under its anomaly map"></div>
<figcaption><b>{{ row.object }}, {{ row.defect }}</b><br>score <b>{{ row.federated | figure }}</b>
{%- if picture.threshold is not none %}, threshold {{ picture.threshold | figure }}: {{ above if row.federated >= picture.threshold else below }}{% endif %}<br>{{ row.key }}</figcaption>
</figure></li>
{% endfor %}
</ul>
{% endfor %}
</section>
{% endif %}

{% if folded %}
<section>
<h2>Settings</h2>
{% for name, table in folded.items() %}
<details>
<summary>{{ name }}</summary>
<div class="box" tabindex="0" role="region" aria-label="{{ name }}"><table class="pairs"><tbody>
{% for key, value in table.items() %}
{{ pair(key, value) }}
{%- endfor %}
</tbody></table></div>
</details>
{% endfor %}
</section>
{% endif %}
</main>
</body>
</html>
"""

CHARTS: Final = r"""
{# SVG of the geometry in src/reporting/run/charts.py. Line styles differ as well as colours. #}

{% macro sample(kind) %}
<svg class="sample" viewBox="0 0 28 10" width="28" height="10" aria-hidden="true"><path class="line {{ kind }}" d="M1 5H27"/></svg>
{%- endmacro %}

{% macro roc(charts, ticks) %}
<svg class="chart" viewBox="0 0 320 322" role="img" aria-label="ROC curves of {{ charts.object }}: share of anomalous images found against share of normal images flagged">
  {% for at, text in ticks.x %}
  <path class="grid" d="M{{ at }} 8V278"/>
  <text x="{{ at }}" y="295" text-anchor="middle">{{ text }}</text>
  {% endfor %}
  {% for at, text in ticks.y %}
  <path class="grid" d="M42 {{ at }}H312"/>
  <text x="36" y="{{ at + 4 }}" text-anchor="end">{{ text }}</text>
  {% endfor %}
  <path class="chance" d="M42 278L312 8"/>
  {% for curve in charts.curves %}
  <polyline class="line {{ curve.kind }}" points="{{ curve.points }}"/>
  {% endfor %}
  <text class="label" x="177" y="316" text-anchor="middle">normal images flagged</text>
  <text class="label" transform="translate(10 143) rotate(-90)" text-anchor="middle">anomalous images found</text>
</svg>
{% endmacro %}

{% macro scores(charts, middle) %}
{% set h = charts.histogram %}
<svg class="chart histogram" viewBox="0 0 520 314" role="img" aria-label="Histogram of the federated scores of {{ charts.object }}: {{ charts.normal }} normal images upwards, {{ charts.anomalous }} anomalous images downwards">
  {% for y, text in h.shares %}
  {% for at in (middle - y, middle + y) %}
  <path class="grid" d="M50 {{ at }}H512"/>
  <text x="44" y="{{ at + 4 }}" text-anchor="end">{{ text }}</text>
  {% endfor %}
  {% endfor %}
  {% for x, y, width, height in h.normal %}
  <rect class="bar normal" x="{{ x }}" y="{{ y }}" width="{{ width }}" height="{{ height }}"/>
  {% endfor %}
  {% for x, y, width, height in h.anomalous %}
  <rect class="bar anomalous" x="{{ x }}" y="{{ y }}" width="{{ width }}" height="{{ height }}"/>
  {% endfor %}
  <path class="axis" d="M50 {{ middle }}H512"/>
  {% for at, text in h.x.ticks(6) %}
  <path class="axis" d="M{{ at }} 270v4"/>
  <text x="{{ at }}" y="288" text-anchor="middle">{{ text }}</text>
  {% endfor %}
  <text class="label" x="281" y="308" text-anchor="middle">image score</text>
  {% if charts.normal %}
  <text class="class" x="510" y="{{ middle - 8 }}" text-anchor="end">normal ↑</text>
  {% endif %}
  {% if charts.anomalous %}
  <text class="class" x="510" y="{{ middle + 18 }}" text-anchor="end">anomalous ↓</text>
  {% endif %}
  {% if h.threshold is not none %}
  <path class="threshold" d="M{{ h.threshold }} 4V274"/>
  <text class="class" y="14" {% if h.threshold > 281 %}x="{{ h.threshold - 6 }}" text-anchor="end"{% else %}x="{{ h.threshold + 6 }}"{% endif %}>threshold {{ charts.threshold | figure }}</text>
  {% endif %}
</svg>
{% endmacro %}

{% macro strip(s) %}
<svg class="chart strip" viewBox="0 0 640 86" role="img" aria-label="Image AUROC of every client alone, of federated and of centralized on one line; the table below holds the figures">
  {% for at, text in s.x.ticks(6) %}
  <path class="grid" d="M{{ at }} 24V60"/>
  <text x="{{ at }}" y="78" text-anchor="middle">{{ text }}</text>
  {% endfor %}
  <path class="axis" d="M24 42H616"/>
  {% for at in s.clients %}
  <path class="client" d="M{{ at }} 33V51"/>
  {% endfor %}
  {% for name, at in s.marks | reverse %}
  {% if name == "federated" %}
  <circle class="mark federated" cx="{{ at }}" cy="42" r="7"/>
  {% else %}
  <rect class="mark centralized" x="{{ at - 6 }}" y="36" width="12" height="12" transform="rotate(45 {{ at }} 42)"/>
  {% endif %}
  {% endfor %}
</svg>
<p class="legend">
  <span><svg class="sample" viewBox="0 0 8 18" width="8" height="18" aria-hidden="true"><path class="client" d="M4 1V17"/></svg> each client alone</span>
  <span><svg class="sample" viewBox="0 0 18 18" width="18" height="18" aria-hidden="true"><circle class="mark federated" cx="9" cy="9" r="7"/></svg> federated</span>
  {% if s.marks | length > 1 %}
  <span><svg class="sample" viewBox="0 0 18 18" width="18" height="18" aria-hidden="true"><rect class="mark centralized" x="3" y="3" width="12" height="12" transform="rotate(45 9 9)"/></svg> centralized</span>
  {% endif %}
  <span>image AUROC →</span>
</p>
{% endmacro %}
"""

STYLE: Final = r"""
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f7; --ink: #1a1d21; --soft: #565d66; --rule: #d9dce0;
  --accent: 20 92 158; --other: #9a4a00; --grey: #9097a0; --warn: #8a1c1c; --warn-panel: #fdf1f0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1d2125; --ink: #e7e9ec; --soft: #a5adb7; --rule: #363c43;
    --accent: 110 180 245; --other: #f0a35c; --grey: #757d87; --warn: #ffb4ab; --warn-panel: #33201f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: 3rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 0.4rem; }
h2 { font-size: 1.2rem; margin: 3.25rem 0 0.75rem; }
h3 { font-size: 1rem; margin: 2rem 0 0.6rem; }
p { margin: 0.6rem 0; max-width: 44rem; }
.facts, .note, figcaption { color: var(--soft); font-size: 0.875rem; }
.facts span + span::before { content: "·"; margin: 0 0.5em; }
.lead { font-size: 1.25rem; line-height: 1.45; margin: 1.75rem 0 1rem; }
.refused { background: var(--warn-panel); border-left: 4px solid var(--warn); padding: 0.9rem 1.1rem; margin: 1.5rem 0; }
.refused h2 { color: var(--warn); font-size: 1rem; margin: 0; }
.refused ul { margin: 0.4rem 0 0; padding-left: 1.2rem; }

.box { overflow: auto; max-height: 34rem; margin: 0.75rem 0; }
.box:focus-visible { outline: 2px solid rgb(var(--accent)); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9375rem; }
caption { text-align: left; color: var(--soft); font-size: 0.875rem; padding-bottom: 0.4rem; }
th, td { padding: 0.4rem 0.9rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th.word, td.word { text-align: left; }
th { font-weight: 500; color: var(--soft); }
thead th { font-size: 0.8125rem; vertical-align: bottom; position: sticky; top: 0; background: var(--paper); }
thead tr + tr th { top: 1.9rem; }
th[scope="row"], thead th:first-child { text-align: left; padding-left: 0; }
tbody th[scope="row"] { color: var(--ink); font-weight: 400; }
th[scope="colgroup"] { text-align: center; }
tr.federated th, tr.federated td { font-weight: 700; background: rgb(var(--accent) / 0.1); }
tr.federated th[scope="row"] { padding-left: 0.6rem; font-weight: 700; box-shadow: inset 3px 0 rgb(var(--accent)); }
.compared th[scope="row"], .compared thead th:first-child { padding-left: 0.6rem; }
tr.total td, tr.total th { border-bottom: 0; color: var(--soft); }
.heat td.shade { background: rgb(var(--accent) / var(--shade)); box-shadow: inset 0 0 0 1px var(--paper); }
.heat td.zero { color: var(--soft); }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { text-align: left; }
.bar-cell { min-width: 7rem; width: 20rem; padding-right: 0; }
.bar-cell span { display: block; height: 0.8rem; min-width: 1px; background: rgb(var(--accent)); }
tr.total .bar-cell span { background: none; border: 1px solid var(--grey); }

.charts { display: grid; gap: 1.5rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); align-items: start; }
.charts.wide { grid-template-columns: minmax(0, 5fr) minmax(0, 8fr); }
@media (max-width: 44rem) { .charts.wide { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; min-width: 0; }
svg { font-family: inherit; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart text.class { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.chance { stroke: var(--grey); stroke-width: 1; stroke-dasharray: 1 4; }
.line { fill: none; stroke-linejoin: round; }
.line.local { stroke: var(--grey); stroke-width: 1; opacity: 0.75; }
.line.centralized { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 7 4; }
.line.federated { stroke: rgb(var(--accent)); stroke-width: 3.5; }
.bar.normal { fill: rgb(var(--accent) / 0.25); stroke: rgb(var(--accent)); stroke-width: 1; }
.bar.anomalous { fill: var(--other); }
.threshold { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 3; }
.client { stroke: var(--soft); stroke-width: 2; }
.mark { stroke: var(--paper); stroke-width: 1.5; }
.mark.federated { fill: rgb(var(--accent)); }
.mark.centralized { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; color: var(--soft); font-size: 0.875rem; }
.sample { vertical-align: middle; margin-right: 0.25rem; }
.strip { max-width: 44rem; }
@media (max-width: 34rem) {  /* these two shrink most: their text grows to stay readable */
  .chart.strip text { font-size: 20px; }
  .chart.histogram text { font-size: 17px; }
  th, td { padding: 0.4rem 0.5rem; }
}

.gallery { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); list-style: none; margin: 0.75rem 0; padding: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; background: var(--panel); }
.pair img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.gallery figcaption { margin-top: 0.4rem; line-height: 1.4; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.gallery b { color: var(--ink); font-weight: 600; }
details { border-top: 1px solid var(--rule); padding: 0.7rem 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { cursor: pointer; font-weight: 500; }
footer { margin-top: 3rem; }
@media print {
  body { max-width: none; padding: 0; }
  .box { max-height: none; overflow: visible; }
  figure, tr, .refused { break-inside: avoid; }
  * { print-color-adjust: exact; }
}
"""
