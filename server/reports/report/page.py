"""The report's page: one Jinja template and its style sheet. No script, no resource from anywhere else.

A Python module and not a template file, because the bundle that Flower carries takes no other text files. Every value is
escaped by Jinja.
"""

from __future__ import annotations

from shared import stylesheet

STYLE = (
    stylesheet.STYLE
    + """
main { max-width:1080px; padding:64px 32px 96px; }
h1 { font-size:2.5rem; margin:.15em 0 .35em; }
h2 { font-size:1.4rem; margin:0 0 .4em; }
h3 { font-size:1rem; margin:1.6em 0 .5em; }
p { margin:0 0 1em; max-width:72ch; }
.lede { font-size:1.16rem; line-height:1.55; max-width:64ch; }
figcaption, .note { color:var(--quiet); font-size:.9rem; }
section { margin-top:72px; }
.tiles { grid-template-columns:repeat(auto-fit, minmax(210px, 1fr)); margin:40px 0 0; }
.pair { display:grid; grid-template-columns:1fr 1fr; gap:32px; margin-top:24px; }
figure { margin:0; }
figure img { display:block; width:100%; height:auto; }
img.slices { background:#000; border-radius:8px; }
figcaption { margin-top:8px; }
.after { margin-top:20px; }
figcaption b { color:var(--text); font-weight:600; }
.strip { display:grid; grid-template-columns:132px 1fr; gap:20px; align-items:center; margin-top:10px; }
.strip img { display:block; width:100%; height:auto; }
.strip .label b { display:block; }
.table { margin-top:20px; }
thead th { vertical-align:bottom; }
td.c, th.c { text-align:center; padding:9px 4px; min-width:44px; }
td.n + td:not(.n), th.n + th:not(.n) { padding-left:12px; }
tbody th:first-child { min-width:176px; }
td.q { color:var(--quiet); min-width:230px; }
table.short { width:auto; min-width:min(100%, 560px); }
table.short td.n, table.short th.n { padding-left:24px; }
td .sub { display:block; color:var(--quiet); font-size:.82rem; }
.notice { margin:20px 0; }
.notice:not(.alarm) { border-color:var(--accent); background:var(--soft); }
dl.words { display:grid; grid-template-columns:190px 1fr; gap:12px 24px; margin:24px 0 0; }
dl.words dt { font-weight:600; font-size:.92rem; }
dl.words dd { margin:0; max-width:70ch; }
dl.words > div { display:contents; }
details { margin-top:20px; } summary { cursor:pointer; color:var(--accent); }
pre { overflow:auto; font-size:.82rem; line-height:1.5; background:var(--card); border:1px solid var(--line); border-radius:8px;
  padding:16px; max-height:420px; }
footer { margin-top:80px; padding-top:20px; }
@media (max-width:720px) { main { padding:32px 18px 64px; } .pair, dl.words, .strip { grid-template-columns:1fr; gap:8px; }
  .pair { gap:28px; } h1 { font-size:1.9rem; } dl.words dd { margin-bottom:14px; } }
@media print { :root { --page:#fff; --card:#fff; } html { font-size:11px; } main { max-width:none; padding:0; }
  section { margin-top:30px; } .tiles { grid-template-columns:repeat(4, 1fr); margin-top:24px; } .tile { padding:12px 14px; }
  p, .pair, figure, .strip, .tiles, tr, .notice, dl.words > div { break-inside:avoid; } h2, h3, section > p { break-after:avoid; }
  .pair { grid-template-columns:1fr 1fr; } .strip { grid-template-columns:110px 1fr; margin-top:5px; }
  tbody th:first-child { min-width:110px; } td.q { min-width:170px; } th, td { padding-top:5px; padding-bottom:5px; }
  .table { overflow:visible; } details { display:none; } @page { margin:16mm; } }
"""
)

MACROS = """
{%- macro chart(picture) -%}
<figure>
  <picture>
    <source srcset="{{ picture.dark }}" media="screen and (prefers-color-scheme: dark)">
    <img src="{{ picture.light }}" alt="{{ picture.alt }}">
  </picture>
  <figcaption>{{ picture.caption }}</figcaption>
</figure>
{%- endmacro -%}

{%- macro content(cell) -%}
{% if cell is true %}<span class="yes" role="img" aria-label="yes">&#10003;</span>
{%- elif cell is false %}<span class="no" role="img" aria-label="no">&#10005;</span>
{%- elif cell is mapping %}{{ cell.value }}<span class="sub">{{ cell.sub }}</span>
{%- elif cell is string %}{{ cell }}
{%- else %}{% for line in cell %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}{% endif %}
{%- endmacro -%}

{%- macro table(t) -%}
<div class="table"><table{% if t.short %} class="short"{% endif %}>
  <thead><tr>{% for title, kind in t.columns %}<th scope="col" class="{{ kind }}">{{ title }}</th>{% endfor %}</tr></thead>
  <tbody>
  {% for row in t.rows %}
  <tr><th scope="row">{{ content(row[0]) }}</th>
  {%- for cell in row[1:] %}<td class="{{ t.columns[loop.index][1] }}">{{ content(cell) }}</td>{% endfor %}</tr>
  {% endfor %}
  </tbody></table></div>
{%- endmacro -%}
"""

HEAD = (
    MACROS
    + """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fedsynth">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
"""
)

PAGE = (
    HEAD
    + """<body>
<main>
<header>
  <p class="eyebrow">fedsynth report</p>
  <h1>{{ name }}</h1>
  <p class="lede">{{ lede }}</p>
  <dl class="tiles">
  {% for tile in tiles %}
    <div class="tile"><dt>{{ tile.title }}</dt><dd>{{ tile.value }}</dd><dd class="small">{{ tile.note }}</dd></div>
  {% endfor %}
  </dl>
  {% for text in alarms %}<div class="notice alarm" role="note"><p>{{ text }}</p></div>{% endfor %}
</header>

{% if real or synthetic %}
<section>
  <h2>Real and synthetic</h2>
  <p>{{ pictures_text }}</p>
  <div class="pair">
  {% for picture in (real, synthetic) if picture %}
    <figure><img class="slices" src="{{ picture.light }}" alt="{{ picture.alt }}">
    <figcaption>{{ picture.caption }}</figcaption></figure>
  {% endfor %}
  </div>
  {% if real %}<div class="notice"><p>This page shows real images of the held-out patients. Keep it where those images may be
  seen; the release folder holds synthetic images only.</p></div>{% endif %}
</section>
{% endif %}

{% if strips %}
<section>
  <h2>The same draws, round after round</h2>
  <p>Each column starts from the same noise, so only the model changes from row to row.</p>
  {% for strip in strips %}
  <div class="strip"><div class="label"><b>{{ strip.title }}</b><span class="quiet">{{ strip.note }}</span></div>
    <img class="slices" src="{{ strip.light }}" alt="{{ strip.alt }}"></div>
  {% endfor %}
</section>
{% endif %}

<section>
  <h2>How near to real</h2>
  {% if figures %}
  <p>{{ figures_text }}</p>
  <div class="pair">{% for picture in distance_charts %}{{ chart(picture) }}{% endfor %}</div>
  {{ table(figures) }}
  {% else %}<p>No round was evaluated: there are no figures.</p>{% endif %}
  {% if biomarkers %}<h3>Biomarkers of the slices, best round</h3><p>{{ biomarker_words }}</p>{{ table(biomarkers) }}{% endif %}
  {% if utility %}<h3>Downstream utility, best round</h3><p>{{ utility_words }}</p>{{ table(utility) }}{% endif %}
  {% for note in study_notes %}<p>{{ note }}</p>{% endfor %}
</section>

<section>
  <h2>What a patient reveals</h2>
  {% if private %}<p>Epsilon bounds what anyone can learn about one patient from the model, the images and everything else that
  left the hospital. Smaller is safer.</p>
  {% else %}<div class="notice alarm"><p>This model was trained without differential privacy. It carries no guarantee for any
  patient and cannot be released.</p></div>{% endif %}
  {% if epsilon_chart %}<div class="pair">{{ chart(epsilon_chart) }}{{ table(epsilons) }}</div>{% endif %}
  {% if noisy %}<h3>Figures that hospitals chose to give</h3>
  <p>Each is noisy, and its price is part of the epsilon above.</p>{{ table(noisy) }}{% endif %}
  {% if words %}<dl class="words">
  {% for heading, text in words.items() %}<div><dt>{{ heading }}</dt><dd>{{ text }}</dd></div>{% endfor %}
  </dl>{% endif %}
</section>

<section>
  <h2>Which sites contributed</h2>
  <p>{{ contributed }} to every round. A tick is an update that was received and added.</p>
  {% if sites %}{{ table(sites) }}{% endif %}
  {% if failures %}<h3>Why a site was missing</h3>{{ table(failures) }}{% endif %}
</section>

<section>
  <h2>What the hospitals' own checks did with their files</h2>
  {% if manifests %}<p>Every input file got exactly one verdict before training. Quarantined and refused files were not used.</p>
  {{ table(manifests) }}
  {% else %}<p>No manifest lies in this folder.</p>{% endif %}
</section>

<section>
  <h2>The release</h2>
  <p>{{ release_text }}</p>
  {% if gate %}{{ table(gate) }}
  {% if gate_chart %}<div class="after">{{ chart(gate_chart) }}</div>{% endif %}{% endif %}
  {% if review %}<h3>What readers said</h3><p>{{ review_text }}</p>{{ table(review) }}{% endif %}
</section>

<section>
  <h2>Time, traffic, versions</h2>
  <p>{{ cost_text }}</p>
  {% if times %}{{ table(times) }}{% endif %}
  <p class="quiet after">{{ versions }}</p>
  {% if settings %}<details><summary>All settings of the run</summary><pre>{{ settings }}</pre></details>{% endif %}
</section>

{% if missing %}<section>
  <h2>What is missing from this page</h2>
  <ul>{% for text in missing %}<li>{{ text }}</li>{% endfor %}</ul>
</section>{% endif %}

<footer class="quiet">{{ name }} · {{ contributed }} · every figure on this page can be recomputed from summary.json and the
folder beside it.</footer>
</main>
</body>
</html>
"""
)
