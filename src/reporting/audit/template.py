"""The template of audit.html, and what its style sheet adds to that of report.html."""

# ruff: noqa: E501
from typing import Final

AUDIT: Final = r"""
{% macro bound(name, found, claimed) %}
<tr><th scope="row">{{ audits[name] }}</th>
<td>{{ claimed | figure(2) }}</td><td><b>{{ found.epsilon_lower_bound | figure(2) }}</b></td>
<td>{{ "%.4g" | format(100 * found.confidence) }} %</td>
<td class="words">{% if name == "many_run" %}{{ found.runs | count }} runs of {{ found.of }}
{%- if found.canary_reach is defined %}; it moves the sums by {{ "%.1f" | format(100 * found.canary_reach) }} % of what one image may{% endif %}
{%- else %}{{ found.right | count }} of {{ found.guesses | count }} guesses right, by {{ found.by }}, on {{ found.canaries | counted("training image") }}{% endif %}</td></tr>
{% endmacro %}

{% macro roc(bank) %}
<svg class="chart" viewBox="0 0 320 322" role="img" aria-label="Share of training images of {{ bank.name }} recognised against share of other images taken for them">
  {% for at, text in roc_ticks.x %}
  <path class="grid" d="M{{ at }} 8V278"/>
  <text x="{{ at }}" y="295" text-anchor="{% if loop.last %}end{% else %}middle{% endif %}">{{ text }}</text>
  {% endfor %}
  {% for at, text in roc_ticks.y %}
  <path class="grid" d="M42 {{ at }}H312"/>
  <text x="36" y="{{ at + 4 }}" text-anchor="end">{{ text }}</text>
  {% endfor %}
  <polyline class="chance" fill="none" points="{{ chance }}"/>
  {% for name, style, points in bank.curves %}
  <polyline class="line {{ style }}" points="{{ points }}"/>
  {% endfor %}
  <text class="label" x="177" y="316" text-anchor="middle">others taken for training images</text>
  <text class="label" transform="translate(10 143) rotate(-90)" text-anchor="middle">training images recognised</text>
</svg>
{% endmacro %}

{% macro distances(bank) %}
{% set h = bank.histogram %}
<svg class="chart histogram" viewBox="0 0 520 314" role="img" aria-label="Histogram of least distances to the bank {{ bank.name }}: {{ bank.members }} training images upwards, {{ bank.others }} others downwards">
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
  <text class="label" x="281" y="308" text-anchor="middle">least distance of an image's patches to the bank</text>
  <text class="class" x="510" y="14" text-anchor="end">training images ↑</text>
  <text class="class" x="510" y="264" text-anchor="end">others ↓</text>
</svg>
{% endmacro %}

{% include "head.html" %}
<main>
<p class="lead">{{ figures.verdict }}</p>
<p>{{ known }}</p>
<p class="note">{{ figures.guarantee }}</p>

{% set level = "h3" if banks | length > 1 else "h2" %}
{% for bank in banks %}
{% set f = bank.figures %}
{% if banks | length > 1 %}
<h2>{{ bank.name }}</h2>
<p>{{ f.verdict }}</p>
{% endif %}
<section>
<{{ level }}>Claim and lower bounds</{{ level }}>
<div class="box" tabindex="0" role="region" aria-label="Claimed ε and lower bounds of {{ bank.name }}">
<table>
<caption>ε of one image at δ = {{ f.delta }}
{%- if f.mechanism == "embedding_noise" %}; the claim is for a single vector{% elif f.claimed_epsilon is none %}; nothing is claimed{% endif %}</caption>
<thead><tr><th scope="col">Audit</th><th scope="col">claimed ε</th><th scope="col">ε at least</th><th scope="col">confidence</th><th scope="col" class="words">by</th></tr></thead>
<tbody>
{% for name in audits if f.audits[name] is defined %}
{{ bound(name, f.audits[name], f.claimed_epsilon) }}
{%- endfor %}
</tbody>
</table>
</div>
{% if f.confidence < f.audits[f.audits.largest].confidence %}
<p class="note">All bounds of the run hold together with {{ "%.4g" | format(100 * f.confidence) }} % confidence; the largest counts.</p>
{% endif %}
</section>

<section>
<{{ level }}>Which images were trained on</{{ level }}>
<div class="box" tabindex="0" role="region" aria-label="Membership inference against {{ bank.name }}">
<table>
<thead><tr><th scope="col">Attack</th><th scope="col">AUC</th><th scope="col">found at 1 % false positives</th><th scope="col">at 0.1 %</th></tr></thead>
<tbody>
{% for name, words in names.items() if f.attacks[name] is defined %}
{% set attack = f.attacks[name] %}
<tr><th scope="row">{{ words }}</th><td>{{ attack.auc | figure }}</td><td>{{ "%.1f" | format(100 * attack["tpr_at_1_percent"]) }} %</td><td>{{ "%.1f" | format(100 * attack["tpr_at_0.1_percent"]) }} %</td></tr>
{% endfor %}
</tbody>
</table>
</div>
<div class="charts wide">
<figure>
{{ roc(bank) }}
<figcaption class="legend">
{% for name, style, points in bank.curves %}
<span><svg class="sample" viewBox="0 0 28 10" width="28" height="10" aria-hidden="true"><path class="line {{ style }}" d="M1 5H27"/></svg> {{ names[name] }}</span>
{% endfor %}
</figcaption>
</figure>
{% if bank.histogram %}
<figure>
{{ distances(bank) }}
<figcaption>Share of each by the least distance of its patches to the bank: {{ bank.members | counted("training image") }}, {{ bank.others | counted("normal test image") }}.</figcaption>
</figure>
{% endif %}
</div>
</section>

<section>
{% set i = f.inversion %}
<{{ level }}>What the bank shows</{{ level }}>
<p>A linear decoder, learnt from {{ i.learnt_patches | count }} patches of {{ i.learnt_images | counted("image") }} ({{ i.learnt_from }}), turns rows of the bank into pixels.
{%- if i.median_correlation is none %} The bank is a single row, the mean of all patches: it is like no image.
{%- else %} Their median correlation with the training patches nearest to them is <b>{{ i.median_correlation | figure(2) }}</b>, and {{ i.shuffled | figure(2) }} with others at random.{% endif %}
{%- if i.verbatim_patches %} {{ i.verbatim_patches | count }} patches of {{ i.verbatim_images | counted("training image") }} lie in the bank as they are.{% endif %}</p>
<div class="sheets">
<figure><img class="pixels" src="{{ bank.originals }}" alt="{{ bank.shown | count }} training patches nearest to rows of the bank"><figcaption>Training patches nearest to rows of the bank: {{ bank.shown }} at random</figcaption></figure>
<figure><img class="pixels" src="{{ bank.made }}" alt="The same patches as decoded from the bank's rows"><figcaption>What the decoder makes of the bank's rows. Each square is stretched to full contrast</figcaption></figure>
</div>
{% if bank.image %}
<div class="sheets">
<figure><img src="{{ bank.image }}" alt="The training image of which most patches lie in the bank"><figcaption>The training image of which most lies in the bank</figcaption></figure>
<figure><img class="sheet" src="{{ bank.paint }}" alt="The same image as far as the bank's rows give it, decoded"><figcaption>What the bank holds of it: {{ bank.patches | count }} patches, decoded; nothing elsewhere</figcaption></figure>
</div>
{% endif %}
</section>
{% endfor %}

<section>
<h2>What was not tested</h2>
<p>{{ untested }}</p>
</section>
</main>
</body>
</html>
"""

AUDIT_STYLE: Final = r"""
td.words, th.words { text-align: left; white-space: normal; min-width: 16rem; }
.sheets { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 26rem)); margin: 1rem 0; }
.sheets img { display: block; width: 100%; margin-bottom: 0.4rem; }
.pixels { image-rendering: pixelated; }
.sheet { background: var(--panel); }
"""
