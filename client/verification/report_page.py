"""The page of the de-identification report: one Jinja template and its style sheet, made to be read and to be printed.

Left out: scripts, and any resource from anywhere else. Every value is escaped by Jinja.
"""

from __future__ import annotations

from shared import stylesheet

STYLE = (
    stylesheet.STYLE
    + """
main { max-width:980px; padding:56px 32px 80px; }
h1 { font-size:2.2rem; margin:.15em 0 .4em; } h2 { font-size:1.3rem; margin:0 0 .5em; }
p { margin:0 0 1em; max-width:74ch; } section { margin-top:52px; }
.lede { font-size:1.12rem; } dl + .quiet { margin-top:1em; }
.tiles { grid-template-columns:repeat(4, 1fr); margin:32px 0 0; }
.yes { font-weight:600; } .yes, .no { white-space:nowrap; }
img.sheet { display:block; width:100%; height:auto; background:#000; border-radius:8px; image-rendering:auto; }
code { font-size:.84rem; word-break:break-all; }
dl.facts { display:grid; grid-template-columns:200px 1fr; gap:6px 20px; margin:0; }
dl.facts dt { color:var(--quiet); } dl.facts dd { margin:0; }
.sign { border:1px solid var(--line); border-radius:12px; background:var(--card); padding:22px 26px; }
.sign li { list-style:none; margin:0 0 .5em -1.6em; padding-left:1.9em; text-indent:-1.9em; }
.sign li::before { content:"\\2610"; display:inline-block; width:1.9em; text-indent:0; font-size:1.1rem; }
.lines { display:grid; grid-template-columns:2fr 2fr 1fr; gap:26px; margin-top:46px; }
.lines div { border-top:1px solid var(--text); padding-top:4px; font-size:.84rem; color:var(--quiet); }
@media (max-width:720px) { .tiles { grid-template-columns:1fr 1fr; } dl.facts, .lines { grid-template-columns:1fr; } }
@media print { :root { color-scheme:light; --page:#fff; --card:#fff; --text:#1f2930; --quiet:#62707a; --line:#dfe3e1;
  --accent:#0f6b6b; --alarm:#a83a29; --alarm-soft:#fbefec; --good:#2c6e49; }
  body { font-size:11px; } main { max-width:none; padding:0; } section { margin-top:26px; }
  tr, .sign, .notice, img, .tiles { break-inside:avoid; } h2 { break-after:avoid; } @page { margin:16mm; } }
"""
)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fedsynth">
<title>De-identification report</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
  <p class="eyebrow">fedsynth · stays in the hospital</p>
  <h1>De-identification report</h1>
  <p class="lede">{{ statement }}</p>
  <dl class="tiles">
  {% for title, value, note in tiles %}
    <div class="tile"><dt>{{ title }}</dt><dd>{{ value }}</dd><dd class="small">{{ note }}</dd></div>
  {% endfor %}
  </dl>
</header>

<section>
  <h2>What became of every file</h2>
  <table>
    <thead><tr><th scope="col">Verdict</th><th scope="col">Reason</th><th scope="col" class="n">Files</th>
    <th scope="col" class="n">Share</th><th scope="col">What to do</th></tr></thead>
    <tbody>
    {% for verdict, reason, count, share, cure in reasons %}
    <tr><th scope="row">{{ verdict }}</th><td>{{ reason }}</td><td class="n">{{ "{:,}".format(count) }}</td>
    <td class="n">{{ share }}</td><td>{{ cure }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
  {% for sentence in counted %}<p>{{ sentence }}</p>
  {% endfor %}
</section>

<section>
  <h2>What was kept</h2>
  {% if sheet %}
  <p>One picture each of {{ shown }} of the {{ total }} {{ kept }}, taken evenly and not picked. Only what passed is
  shown. Look for text, for faces, and for anything that is not the picture you expect.</p>
  <img class="sheet" src="{{ sheet }}" alt="Contact sheet of {{ shown }} kept pictures">
  {% else %}<p>Nothing was kept, so there is nothing to show.</p>{% endif %}
</section>

<section>
  <h2>What ran, and what did not</h2>
  <table>
    <thead><tr><th scope="col">Step</th><th scope="col">Ran on all that passed</th><th scope="col">What follows</th></tr></thead>
    <tbody>
    {% for what, done, follows in ran %}
    <tr><th scope="row">{{ what }}</th><td class="{{ 'yes' if done else 'no' }}">{{ "yes" if done else "no" }}</td>
    <td>{{ follows }}</td></tr>
    {% endfor %}
    </tbody>
  </table>
</section>

<section>
  <h2>What remains</h2>
  <div class="notice">
  {% for title, text in risks %}<p><b>{{ title }}</b> {{ text }}</p>{% endfor %}
  </div>
</section>

<section>
  <h2>Options of DICOM PS3.15, Annex E</h2>
  <table>
    <thead><tr><th scope="col">Code</th><th scope="col">Option</th><th scope="col">Claimed</th>
    <th scope="col">Meaning</th></tr></thead>
    <tbody>
    {% for code, name, claimed, meaning in options %}
    <tr><th scope="row">{{ code }}</th><td>{{ name }}</td>
    <td>{% if claimed %}<span class="yes">claimed</span>{% else %}<span class="quiet">no</span>{% endif %}</td>
    <td>{% if claimed or code not in ("113101", "113102") %}{{ meaning }}{% else %}did not run on every file{% endif %}</td></tr>
    {% endfor %}
    </tbody>
  </table>
</section>

<section>
  <h2>By what</h2>
  <dl class="facts">
    <dt>Software</dt><dd>{{ header.get("software", "not stated") }}</dd>
    <dt>Standard</dt><dd>{{ header.get("edition", "not stated") }}</dd>
    {% if header.get("scaling") %}<dt>Grey levels</dt><dd>{{ header["scaling"] }}</dd>{% endif %}
    <dt>Allow-list (SHA-256)</dt><dd><code>{{ header.get("table_sha256", "not stated") }}</code></dd>
    <dt>Manifest (last hash)</dt><dd><code>{{ last_hash }}</code></dd>
  </dl>
  <p class="quiet">The last hash stands for every line of manifest.jsonl. Note it with your signature: whoever changes a verdict
  later cannot keep it. <code>fedsynth client verify</code> checks the whole folder again, and this page with it.</p>
</section>

<section>
  <h2>Reviewer</h2>
  <div class="sign">
  <ul>
    <li>I looked at the contact sheet and at whole series of my own choice.</li>
    <li>I ran <code>fedsynth client verify</code> with the source, and it found nothing.</li>
    <li>I read what did not run and what remains, and accept it for the stated purpose.</li>
    <li>The key is kept apart from these files, and neither leaves the hospital.</li>
  </ul>
  <p>Purpose, and who may use the files: _______________________________________________</p>
  <div class="lines"><div>Name and function</div><div>Signature</div><div>Date</div></div>
  </div>
</section>
</main>
</body>
</html>
"""
