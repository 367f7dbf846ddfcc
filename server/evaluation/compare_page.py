"""The page of a comparison: one HTML file without scripts or outside resources; pictures, figures, and how to read them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from server.evaluation import study
from server.evaluation.compare import Comparison
from server.reports.report import plots
from server.reports.report.page import HEAD, STYLE
from server.reports.report.tables import study_table
from shared.files import write_bytes

COLUMNS, ROWS = 6, 4  # of each mosaic

PAGE = (
    HEAD
    + """<body>
<main>
<header>
  <p class="eyebrow">fedsynth evaluation</p>
  <h1>Real and synthetic, measured</h1>
  <p class="lede">{{ lede }}</p>
  {% for text in notes %}<div class="notice" role="note"><p>{{ text }}</p></div>{% endfor %}
</header>

<section>
  <h2>The images</h2>
  <p>Picked evenly over each set, none by hand.</p>
  <div class="pair">
  {% for picture in (real, synthetic) %}
    <figure><img class="slices" src="{{ picture.light }}" alt="{{ picture.alt }}">
    <figcaption>{{ picture.caption }}</figcaption></figure>
  {% endfor %}
  </div>
  <div class="notice"><p>This page shows real images. Keep it where those may be seen.</p></div>
</section>

<section>
  <h2>Every figure, its interval and its floor</h2>
  <p>“Real against real” is what one half of the real patients scores against the other half. It is the best that can be hoped
  for, not zero. Intervals are 95 %, from {{ protocol.bootstrap }} resamples of patients and images.</p>
  {{ chart(intervals) }}
  {{ table(figures) }}
</section>

{% if biomarkers %}
<section>
  <h2>Biomarkers of the slices</h2>
  <p>{{ biomarker_words }}</p>
  {{ table(biomarkers) }}
</section>
{% endif %}
{% if utility %}
<section>
  <h2>Downstream utility</h2>
  <p>{{ utility_words }}</p>
  {{ table(utility) }}
</section>
{% endif %}

<section>
  <h2>How it was measured</h2>
  {{ table(how) }}
</section>
</main>
</body>
</html>
"""
)


def write_page(found: Comparison, path: Path) -> None:
    """Write the page whole or not at all."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    protocol = found.protocol
    whose = f"of {protocol['heldout_patients']} patients" if protocol["patients_known"] else "of unknown patients"
    page = environment.from_string(PAGE).render(
        title="Real and synthetic · fedsynth evaluation",
        style=Markup(STYLE),  # noqa: S704 - our own constant
        lede=f"{protocol['heldout_images']} real images {whose} and {protocol['synthetic_images']} synthetic ones, "
        f"{protocol['pixels']} x {protocol['pixels']} pixels.",
        notes=found.notes,
        protocol=protocol,
        real=_mosaic(found.real.x_NHW, "Real"),
        synthetic=_mosaic(found.synthetic.x_NHW, "Synthetic"),
        intervals={
            "light": _data(plots.panels(found.figures, found.descriptions, plots.LIGHT)),
            "dark": _data(plots.panels(found.figures, found.descriptions, plots.DARK)),
            "alt": "Every figure with its interval, beside what real images score: the table below holds the same numbers",
            "caption": "Dot and bar: value and 95 % interval. Dashed: real against real.",
        },
        figures=_table(found),
        biomarkers=study_table(study.BIOMARKER_HEADS, study.biomarker_rows(found.studied)),
        biomarker_words=study.biomarker_words(found.studied),
        utility=study_table(study.UTILITY_HEADS, study.utility_rows(found.studied)),
        utility_words=study.utility_words(found.studied),
        how={
            "columns": [("Setting", ""), ("Value", "")],
            "rows": [[name.replace("_", " "), _shown(value)] for name, value in protocol.items()],
            "short": True,
        },
    )
    write_bytes(path, page.encode())


def _mosaic(x_NHW: np.ndarray, name: str) -> dict[str, str]:
    spread = x_NHW[np.linspace(0, len(x_NHW) - 1, min(COLUMNS * ROWS, len(x_NHW))).astype(int)]
    rows = [spread[i : i + COLUMNS] for i in range(0, len(spread), COLUMNS)]
    return {"light": _data(plots.mosaic(rows, COLUMNS)), "alt": f"Mosaic of {name.lower()} images", "caption": name}


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _table(found: Comparison) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for name, told in found.descriptions.items():
        f = found.figures.get(name)
        value, floor = (f.value, f.floor) if f else (found.extras[name]["value"], found.extras[name]["floor"])
        sub = told.interval(f.low, f.high) if f else "no interval"
        rows.append([told.title, {"value": told.shown(value), "sub": sub}, told.shown(floor), told.reading])
    columns = [("Measure", ""), ("Synthetic", "n"), ("Real against real", "n"), ("How to read it", "q")]
    return {"columns": columns, "rows": rows, "short": False}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
