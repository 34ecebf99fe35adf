"""The template of a run's report.html."""

# ruff: noqa: E501
from typing import Final

PAGE: Final = r"""
{% from "parts.html" import folded as fold, section, show_plot, show_table %}
{% if refused %}
<section class="refused">
<h2>{{ refused_count }} left out of the merged bank</h2>
<ul>
{% for left_out in refused %}
<li><b>client {{ left_out.client }}</b>: {{ left_out.reason }}</li>
{% endfor %}
</ul>
</section>
{% endif %}

<p class="lead">{{ headline }}</p>
{% if strip %}{{ show_plot(strip) }}{% endif %}
{{ section(compared) }}
{{ section(objects) }}

{% if plots %}
<section>
<h2>Scores</h2>
{% if decisions %}{{ show_table(decisions) }}{% endif %}
{% for object, drawn in plots.items() %}
{% if plots | length > 1 %}
<h3>{{ object }}</h3>
{% endif %}
<div class="plots">
{% for plot in drawn %}{{ show_plot(plot) }}{% endfor %}
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
<thead><tr><th scope="col">client</th>{% for name in clients.columns %}<th scope="col">{{ name }}</th>{% endfor %}<th scope="col">total</th></tr></thead>
<tbody>
{% for name, cells, total in clients.rows %}
<tr><th scope="row">{{ name }}</th>{% for n, shade in cells %}<td{% if shade %} style="--shade:{{ "%.2f" | format(shade) }}"{% endif %}>{{ n }}</td>{% endfor %}<td>{{ total }}</td></tr>
{% endfor %}
<tr class="total"><th scope="row">total</th>{% for n in clients.totals %}<td>{{ n }}</td>{% endfor %}</tr>
</tbody>
</table>
</div>
{% endif %}
{% if participants %}{{ show_table(participants) }}{% endif %}
</section>
{% endif %}

{{ section(costs) }}
{{ show_table(seconds) }}

{% if privacy.guarantee %}
<section>
<h2>Privacy</h2>
<p>{{ privacy.guarantee }}</p>
{% if privacy.caution %}<p class="refused">{{ privacy.caution }}.</p>{% endif %}
{% if privacy.trust %}<p class="note">{{ privacy.trust }} Noise comes {{ privacy.noise }}.</p>{% endif %}
{% if releases %}
<h3>{{ releases.title }}</h3>
{{ show_table(releases) }}
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
<p class="note">Left the image, right its federated anomaly map, on one colour scale{% if plots | length > 1 %} for each object{% endif %}; a thin line outlines a defect where its mask is known.</p>
{% for shelf, (heading, below, above) in shelves.items() if gallery[shelf] %}
<h3>{{ heading }}</h3>
<ul class="gallery">
{% for picture in gallery[shelf] %}
{% set row = picture.row %}
<li><figure>
<div class="pair"><img src="{{ picture.image }}" alt="{{ row.object }}, {{ row.defect }}: {{ row.key }}"><img src="{{ picture.heat }}" alt="The same image under its anomaly map"></div>
<figcaption><b>{{ row.object }}, {{ row.defect }}</b><br>score <b>{{ "%.3f" | format(row.federated) }}</b>
{%- if picture.threshold is not none %}, threshold {{ "%.3f" | format(picture.threshold) }}: {{ above if row.federated >= picture.threshold else below }}{% endif %}<br>{{ row.key }}</figcaption>
</figure></li>
{% endfor %}
</ul>
{% endfor %}
</section>
{% endif %}

<section>
<h2>Settings</h2>
{% for table in folded %}{{ fold(table) }}{% endfor %}
</section>
"""
