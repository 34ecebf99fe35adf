"""The template of audit.html, and its additions to the style sheet."""

# ruff: noqa: E501
from typing import Final

PAGE: Final = r"""
{% from "parts.html" import show_plot, show_table %}
{% include "head.html" %}
<main>
<p class="lead">{{ verdict }}</p>
<p class="note">{{ guarantee }}</p>

{% set level = "h3" if banks | length > 1 else "h2" %}
{% for bank in banks %}
{% if banks | length > 1 %}
<h2>{{ bank.name }}</h2>
<p>{{ bank.verdict }}</p>
{% endif %}
<section>
<{{ level }}>{{ bank.bounds.title }}</{{ level }}>
{{ show_table(bank.bounds) }}
</section>

<section>
<{{ level }}>{{ bank.attacks.title }}</{{ level }}>
{{ show_table(bank.attacks) }}
<div class="plots">
{% for plot in bank.plots %}{{ show_plot(plot) }}{% endfor %}
</div>
</section>

<section>
<{{ level }}>{{ bank.inversion.title }}</{{ level }}>
{{ show_table(bank.inversion) }}
<div class="sheets">
<figure><img class="pixels" src="{{ bank.originals }}" alt="{{ bank.shown }} training patches nearest to rows of the bank"><figcaption>Training patches nearest to rows of the bank: {{ bank.shown }} at random</figcaption></figure>
<figure><img class="pixels" src="{{ bank.made }}" alt="The same patches as decoded from the bank's rows"><figcaption>What the decoder makes of the bank's rows. Each square is stretched to full contrast</figcaption></figure>
</div>
{% if bank.image %}
<div class="sheets">
<figure><img src="{{ bank.image }}" alt="The training image of which most patches lie in the bank"><figcaption>The training image of which most lies in the bank</figcaption></figure>
<figure><img class="sheet" src="{{ bank.paint }}" alt="The same image as far as the bank's rows give it, decoded"><figcaption>What the bank holds of it: {{ bank.patches }} patches, decoded; nothing elsewhere</figcaption></figure>
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
.sheets { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 26rem)); margin: 1rem 0; }
.sheets img { display: block; width: 100%; margin-bottom: 0.4rem; }
.pixels { image-rendering: pixelated; }
.sheet { background: var(--panel); }
"""
