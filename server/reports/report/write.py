"""The page a person looks at: OUT/report.html, one file without scripts or outside resources, and its pictures as PNG.

Read by a hospital's director and by an engineer: first one sentence and four figures, then pictures, then every number with
its floor, its interval and its meaning. What could not be read is listed at the end.

Left out: conclusions that the figures do not carry (see `words`).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from server.evaluation import study
from server.release.cards import contributed, privacy_statement, shown
from server.reports.report import plots, words
from server.reports.report.data import ReportData, read_run
from server.reports.report.page import PAGE, STYLE
from server.reports.report.tables import tables
from shared.files import write_bytes
from shared.plugins import slug

COLUMNS = 6  # slices in a row of the real and synthetic mosaics
ROWS = 5  # classes shown at most
STRIP, STRIPS = 10, 6  # slices in a round's strip, rounds shown at most

Picture = dict[str, str]


def write_report(out: Path) -> Path:
    """Write OUT/report.html and OUT/report/*.png from a finished run's folder; returns the page's path.

    DataError where there is no summary. Anything else that is missing is said on the page.
    """
    run = read_run(out)
    album = _Album(out / "report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    style = Markup(STYLE)  # noqa: S704 - our own constant
    content = _head(run) | _pictures(run, album) | _charts(run, album) | tables(run)
    page = environment.from_string(PAGE).render(style=style, title=f"{content['name']} · fedsynth report", **content)
    write_bytes(out / "report.html", page.encode())
    return out / "report.html"


class _Album:
    """Writes pictures beside the page and returns what the page embeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, png: bytes) -> str:
        (self.folder / f"{name}.png").write_bytes(png)
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"

    def chart(self, name: str, draw: Callable[[plots.Theme], bytes], alt: str, caption: str) -> Picture:
        light, dark = self.add(name, draw(plots.LIGHT)), self.add(f"{name}-dark", draw(plots.DARK))
        return {"light": light, "dark": dark, "alt": alt, "caption": caption}


def _head(run: ReportData) -> dict[str, Any]:
    statement, studied = run.statement(), run.summary.studied or {}
    return {
        "name": run.summary.name,
        "lede": words.headline(run),
        "tiles": words.tiles(run),
        "alarms": words.alarms(run),
        "private": statement.private,
        "words": privacy_statement(statement) if statement.private else {},
        "contributed": contributed(statement),
        "release_text": words.release_words(run),
        "review_text": words.review_words(run),
        "biomarker_words": study.biomarker_words(studied),
        "utility_words": study.utility_words(studied),
        "study_notes": studied.get("notes", []),
        "cost_text": words.cost(run),
        "versions": words.versions(run),
        "settings": words.settings(run),
        "figures_text": words.distance_words(run),
        "missing": run.missing,
    }


def _pictures(run: ReportData, album: _Album) -> dict[str, Any]:
    """Real beside synthetic, and the same draws through the rounds."""
    shown_round = (
        run.summary.best_round if run.summary.best_round in run.rounds else (run.rounds[-1] if run.rounds else None)
    )
    drawn = None if shown_round is None else run.samples(shown_round)
    real = synthetic = None
    labels: list[int] = []
    if drawn is not None:
        labels = [int(label) for label in np.unique(drawn[1])][:ROWS]
    elif run.heldout is not None:
        labels = [int(label) for label in np.unique(run.heldout.label_N)][:ROWS]
    names = ", ".join(run.classes[label] if 0 <= label < len(run.classes) else f"class {label}" for label in labels)
    if run.heldout is not None:
        rows = plots.by_class(run.heldout.x_NHW, run.heldout.label_N, labels, COLUMNS, run.heldout.patient_N)
        alt = f"Mosaic of real slices of held-out patients, one row for each class: {names}"
        real = {
            "light": album.add("real", plots.mosaic(rows, COLUMNS)),
            "alt": alt,
            "caption": "Real: held-out patients",
        }
    if drawn is not None and shown_round is not None:
        rows = plots.by_class(*drawn, labels, COLUMNS, None)
        title = words.column(run, shown_round)
        alt = f"Mosaic of synthetic slices, {title}, one row for each class: {names}"
        synthetic = {
            "light": album.add("synthetic", plots.mosaic(rows, COLUMNS)),
            "alt": alt,
            "caption": f"Synthetic: {title}",
        }
    text = (
        f"One row for each class, from the top: {names}. Synthetic images are the first that were drawn, none was picked; "
        "real ones come from different patients."
    )
    return {"real": real, "synthetic": synthetic, "pictures_text": text, "strips": _strips(run, album)}


def _strips(run: ReportData, album: _Album) -> list[dict[str, str]]:
    """Rows of drawn images: the base, the best and last round, and rounds spread between."""
    if len(run.rounds) < 2:
        return []
    spread = np.linspace(0, len(run.rounds) - 1, min(STRIPS, len(run.rounds))).round().astype(int)
    chosen = {run.rounds[i] for i in spread}
    if run.summary.best_round in run.rounds and run.summary.best_round not in chosen:
        inner = sorted(chosen)[1:-1]
        chosen = (chosen - set(inner[:1])) | {run.summary.best_round}
    strips = []
    for number in sorted(chosen):
        drawn = run.samples(number)
        if drawn is None:
            run.missing.append(f"The images of round {number} could not be read.")
            continue
        figure = run.figure(run.selecting.name, number)
        strips.append(
            {
                "title": words.column(run, number),
                "note": f"{run.selecting.title} {run.selecting.shown(figure.value)}" if figure else "not evaluated",
                "light": album.add(f"round-{number:03d}", plots.mosaic([drawn[0][:STRIP]], min(STRIP, len(drawn[0])))),
                "alt": f"Slices drawn after round {number}",
            }
        )
    return strips


def _charts(run: ReportData, album: _Album) -> dict[str, Any]:
    """Distances over the rounds, and whatever says which round is best; epsilon per site."""
    distances = []
    for name, metric in run.descriptions.items():
        if not run.trace(name) or (metric.better != "lower" and metric != run.selecting):
            continue
        trace = run.trace(name)
        draw = partial(plots.over_rounds, trace, metric.title, metric.factor, run.summary.best_round)
        said = ", ".join(f"round {n} {metric.shown(m.value)}" for n, m in trace)
        alt = f"{metric.title} over the rounds: {said}; real against real {metric.shown(trace[-1][1].floor)}"
        caption = f"{metric.goal} Band: 95 % interval. Dashed: real against real."
        distances.append(album.chart(slug(name).replace("_", "-"), draw, alt, caption))
    spent: dict[str, list[tuple[int, float]]] = {}
    for event in run.of("site_replied"):
        if event.get("epsilon") is not None and event.get("round") is not None:
            spent.setdefault(str(event.get("site")), []).append((int(event["round"]), float(event["epsilon"])))
    chart, cap = None, run.epsilon_cap
    if spent:
        said = "; ".join(f"{site} {shown(points[-1][1])}" for site, points in sorted(spent.items()))
        alt = f"Epsilon per patient over the rounds, at the end: {said}" + (f"; cap {cap:g}" if cap else "")
        caption = "What each hospital's own ledger says, after every round." + (
            " Dashed: the release's cap." if cap else ""
        )
        chart = album.chart("epsilon", partial(plots.epsilons, spent, cap), alt, caption)
    return {"distance_charts": distances, "epsilon_chart": chart, "gate_chart": _gate_chart(run, album)}


def _gate_chart(run: ReportData, album: _Album) -> Picture | None:
    """Each check that has a figure: the figure, its interval, and the limits it had to keep."""
    measured = [check for check in run.gate.checks if check.value is not None] if run.gate else []
    if not measured:
        return None
    alt = "Figures of the release gate beside their limits: " + "; ".join(c.detail for c in measured)
    caption = "Dot and bar: value and 95 % interval. Dashed: the limits."
    return album.chart("gate", partial(plots.limits, measured), alt, caption)
