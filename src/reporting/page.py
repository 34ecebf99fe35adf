"""What the pages of runs, studies and audits share: head, style sheet, tables, plots.

Templates are strings in modules because Flower's app bundle carries Python files only. A page loads
nothing: plots and pictures are data URIs.
"""

# ruff: noqa: E501
import base64
import io
from typing import Any, Final

import numpy as np
from jinja2 import DictLoader, Environment
from PIL import Image


def render_page(template: str, **content: Any) -> str:
    """A page from its template, which may use the macros of "parts.html".

    Args:
        template: Jinja, of what stands between `<main>` and `</main>`.
        content: what the template names; `title` and `facts` go into the head.
    """
    parts = {"parts.html": PARTS, "main.html": template, "style.css": STYLE}
    jinja = Environment(
        loader=DictLoader(parts), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return jinja.from_string(PAGE).render(content)


def picture_uri(image: np.ndarray, form: str = "png") -> str:
    """A picture as a data URI.

    Args:
        image: uint8 [H, W], [H, W, 3], or [H, W, 4] with opacity.
        form: png or jpeg.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 82} if form == "jpeg" else {}
    Image.fromarray(image).save(file, form, optimize=True, **options)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"


PAGE: Final = r"""
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
{% include "style.css" %}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="facts">{% for fact in facts %}<span>{{ fact }}</span>{% endfor %}</p>
</header>
<main>
{% include "main.html" %}
</main>
</body>
</html>
"""

PARTS: Final = r"""
{% macro show_table(table) %}
<div class="box" tabindex="0" role="region" aria-label="{{ table.title }}">
<table>
{% if table.heads %}
<thead><tr>{% for head in table.heads %}<th scope="col"{% if loop.index0 < table.words %} class="word"{% endif %}>{{ head }}</th>{% endfor %}</tr></thead>
{% endif %}
<tbody>
{% for row in table.rows %}
{% set link = table.links[loop.index0] if table.links else "" %}
{% set again = table.grouped and not loop.first and row[0] == table.rows[loop.index0 - 1][0] %}
<tr class="{% if table.strong == row[table.words - 1] %}strong{% elif table.total and loop.last %}total{% endif %}">
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

{% macro show_plot(plot) %}
<figure class="plot"{% if plot.title %} id="{{ plot.name }}"{% endif %}>
{% if plot.title %}<h3>{{ plot.title }}</h3>{% endif %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ plot.title or plot.name }}"><img src="{{ plot.uri }}" alt="{{ plot.alt }}"></div>
{% if plot.caption %}<figcaption>{{ plot.caption }}</figcaption>{% endif %}
</figure>
{% endmacro %}

{% macro section(table) %}
{% if table %}
<section>
<h2>{{ table.title }}</h2>
{{ show_table(table) }}
</section>
{% endif %}
{% endmacro %}

{% macro folded(table, open=false) %}
{% if table %}
<details{% if open %} open{% endif %}><summary>{{ table.title }}</summary>{{ show_table(table) }}</details>
{% endif %}
{% endmacro %}
"""

STYLE: Final = r"""
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f7; --ink: #1a1d21; --soft: #565d66; --rule: #d9dce0;
  --accent: 20 92 158; --grey: #9097a0; --warn: #8a1c1c; --warn-panel: #fdf1f0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1d2125; --ink: #e7e9ec; --soft: #a5adb7; --rule: #363c43;
    --accent: 110 180 245; --grey: #757d87; --warn: #ffb4ab; --warn-panel: #33201f;
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
th.word, td.word { text-align: left; white-space: normal; min-width: 6rem; overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); }
thead th { font-size: 0.8125rem; vertical-align: bottom; position: sticky; top: 0; background: var(--paper); }
th[scope="row"], thead th:first-child { text-align: left; padding-left: 0; }
tbody th[scope="row"] { color: var(--ink); font-weight: 400; }
tr.strong th, tr.strong td { font-weight: 700; background: rgb(var(--accent) / 0.1); }
th.again { font-size: 0; }  /* a screen reader still reads it */
a { color: rgb(var(--accent)); }
tr.total td, tr.total th { border-bottom: 0; color: var(--soft); }
.heat td { background: rgb(var(--accent) / var(--shade, 0)); box-shadow: inset 0 0 0 1px var(--paper); }

.plots { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: start; }
figure { margin: 0; min-width: 0; max-width: 100%; }
.plot { margin: 0 0 1.5rem; }
.scroll { overflow-x: auto; }
.plot img { display: block; height: auto; max-width: max(100%, 22rem); }
.plot[id] img { max-width: max(100%, 40rem); }  /* the wide ones of a study */
@media screen and (prefers-color-scheme: dark) { .plot img { filter: invert(0.9) hue-rotate(180deg); } }
@media (max-width: 34rem) { th, td { padding: 0.4rem 0.5rem; } }

.gallery { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); list-style: none; margin: 0.75rem 0; padding: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; background: var(--panel); }
.pair img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.gallery figcaption { margin-top: 0.4rem; line-height: 1.4; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.gallery b { color: var(--ink); font-weight: 600; }
.sheets { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 26rem)); margin: 1rem 0; }
.sheets img { display: block; width: 100%; margin-bottom: 0.4rem; }
.pixels { image-rendering: pixelated; }
.sheet { background: var(--panel); }
details { border-top: 1px solid var(--rule); padding: 0.7rem 0; }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { cursor: pointer; font-weight: 500; }
@media print {
  body { max-width: none; padding: 0; }
  .box { max-height: none; overflow: visible; }
  figure, tr, .refused { break-inside: avoid; }
  .scroll { overflow: visible; }
  .plot img, .plot[id] img { max-width: 100%; }
  th, td { padding: 0.25rem 0.4rem; }
  table { font-size: 0.8rem; }
  thead th { position: static; }
  * { print-color-adjust: exact; }
}
"""
