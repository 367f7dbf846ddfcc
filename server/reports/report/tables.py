"""The report's tables: figures, epsilons, sites over rounds, failures, manifests, times.

A table is {"columns": [(title, kind)], "rows": [[cell]], "short": whether it stays narrow}, or none where there is nothing
to show. Kinds: n number, c centred, q quiet, "" text. A cell is text, True or False (a tick or a cross), several lines, or
{"value", "sub"}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from server.evaluation import study
from server.release.cards import shown
from server.reports.report import words
from server.reports.report.data import ReportData

ROUND_COLUMNS = 16  # with more rounds the table of sites shows totals only
TIME_ROWS = 60  # with more rounds there is no table of times
REASONS = 8  # of a site's manifest, the most frequent

Table = dict[str, Any]


def tables(run: ReportData) -> dict[str, Table | None]:
    """All tables of the page, by the names that the page uses."""
    return {
        "figures": _figures(run),
        "epsilons": _epsilons(run),
        "noisy": _noisy(run),
        "sites": _sites(run),
        "failures": _failures(run),
        "manifests": _manifests(run),
        "times": _times(run),
        "gate": _gate(run),
        "review": _review(run),
        "biomarkers": study_table(study.BIOMARKER_HEADS, study.biomarker_rows(run.summary.studied or {})),
        "utility": study_table(study.UTILITY_HEADS, study.utility_rows(run.summary.studied or {})),
    }


def study_table(heads: Sequence[str], rows: list[list[str]]) -> Table | None:
    """A table of `server.evaluation.study`: two columns of words, then numbers; none without rows."""
    columns = [(head, "" if i < 2 else "n") for i, head in enumerate(heads)]
    return _table(columns, [list(row) for row in rows])


def _table(columns: list[tuple[str, str]], rows: list[list[Any]], *, short: bool = False) -> Table | None:
    return {"columns": columns, "rows": rows, "short": short} if rows else None


def _figures(run: ReportData) -> Table | None:
    """Every metric at the base, the best and the last round, with interval, floor and meaning."""
    metrics = [metric for metric in run.descriptions if run.trace(metric)]
    measured = sorted({number for metric in metrics for number, _ in run.trace(metric)})
    numbers = sorted({n for n in (0, run.summary.best_round, *measured[-1:]) if n in measured})
    rows = []
    for metric in metrics:
        found = [run.figure(metric, number) for number in numbers]
        told = run.descriptions[metric]
        cells = [{"value": told.shown(f.value), "sub": told.interval(f.low, f.high)} if f else "" for f in found]
        rows.append([told.title, *cells, told.shown(run.trace(metric)[-1][1].floor), told.reading])
    heads = [(words.column(run, number), "n") for number in numbers]
    return _table([("Measure", ""), *heads, ("Real against real", "n"), ("How to read it", "q")], rows)


def _epsilons(run: ReportData) -> Table | None:
    rows: list[list[Any]] = [[site, shown(e)] for site, e in sorted(run.summary.epsilon_per_patient.items())]
    return _table([("Site", ""), ("Epsilon per patient", "n")], rows)


def _noisy(run: ReportData) -> Table | None:
    """Figures that sites gave under privacy, with their price; a value is never shown without it."""
    rows: list[list[Any]] = []
    for name, figure in run.summary.statistics.items():
        price = f"noisy, epsilon {shown(figure.epsilon)} (noise multiplier {figure.noise_multiplier:g})"
        for site, values in sorted(figure.values.items()):
            lines = [
                f"round {number}: {value:.4g}" for number, value in sorted(values.items(), key=lambda i: int(i[0]))
            ]
            rows.append([site, name.replace("-", " "), lines, price])
    return _table([("Site", ""), ("Figure", ""), ("Value", ""), ("Price", "q")], rows)


def _sites(run: ReportData) -> Table | None:
    """Who replied in which round, and how many bytes."""
    started = run.of("round_started") + run.of("site_replied") + run.of("site_failed")
    numbers = sorted({int(e["round"]) for e in started if e.get("round")})
    replied: dict[str, dict[int, float]] = {site: {} for site in run.sites}
    for event in run.of("site_replied"):
        replied.setdefault(str(event.get("site")), {})[int(event.get("round") or 0)] = float(event.get("bytes") or 0)
    shown_rounds = numbers if len(numbers) <= ROUND_COLUMNS else []
    rows = [
        [
            site,
            *(number in done for number in shown_rounds),
            f"{len(done)} of {len(numbers)}",
            words.bytes_shown(sum(done.values())),
        ]
        for site, done in sorted(replied.items())
    ]
    heads = [(str(number), "c") for number in shown_rounds]
    return _table([("Site", ""), *heads, ("Rounds", "n"), ("Sent", "n")], rows if numbers else [], short=True)


def _failures(run: ReportData) -> Table | None:
    rows = [
        [str(e.get("round", "")), str(e.get("site", "")), str(e.get("reason") or "no reason given")]
        for e in run.of("site_failed")
    ]
    return _table([("Round", ""), ("Site", ""), ("Reason", "")], rows)


def _manifests(run: ReportData) -> Table | None:
    """Files of each site by verdict, with the reasons for those that were not used."""
    rows = []
    for site, counts in run.manifests.items():
        verdicts, reasons = Counter[str](), Counter[str]()
        for (verdict, reason), count in counts.items():
            verdicts[verdict] += count
            if verdict != "PASS":
                reasons[reason] += count
        lines = [f"{count:,} \u00d7 {reason}" for reason, count in reasons.most_common(REASONS)]
        rows.append([site, *(f"{verdicts[v]:,}" for v in ("PASS", "QUARANTINED", "REFUSED")), lines or ["none"]])
    return _table([("Site", ""), ("Passed", "n"), ("Quarantined", "n"), ("Refused", "n"), ("Reasons", "")], rows)


def _gate(run: ReportData) -> Table | None:
    """Every check of the release gate with what was found."""
    checks = run.gate.checks if run.gate else ()
    rows: list[list[Any]] = [[c.name, c.passed, c.detail.replace("`", ""), c.threshold] for c in checks]
    return _table([("Check", ""), ("Passed", "c"), ("Found", ""), ("Required", "q")], rows)


def _review(run: ReportData) -> Table | None:
    """Each reader's confusion table, accuracy and scores, and everybody's together."""
    found = run.review or {}
    readers = dict(found.get("readers", {}))
    if found.get("everybody"):
        readers["everybody"] = found["everybody"]
    rows: list[list[Any]] = []
    for name, r in readers.items():
        c, accuracy = r["confusion"], r["accuracy"]
        scores = [_measured(r["score"][kind], 1) for kind in ("real", "synthetic")]
        called = [f"{c[f'{kind}_called_real']} of {c[f'{kind}_called_real'] + c[f'{kind}_called_synthetic']}" for kind in
                  ("real", "synthetic")]  # fmt: skip
        rows.append([name, *called, _measured(accuracy, 2), *scores])
    heads = [("Real called real", "n"), ("Synthetic called real", "n"), ("Called right", "n")]
    heads += [("Anatomy of real, 1 to 5", "n"), ("of synthetic", "n")]
    return _table([("Reader", ""), *heads], rows)


def _measured(figure: dict[str, float | None], digits: int) -> Any:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "none"
    return {"value": f"{value:.{digits}f}", "sub": f"{low:.{digits}f} to {high:.{digits}f}"}


def _times(run: ReportData) -> Table | None:
    """Seconds and bytes of each round, as far as the record tells."""

    def at(event: str) -> dict[int, float]:
        return {int(e["round"]): float(e["seconds"]) for e in run.of(event) if "round" in e and "seconds" in e}

    def span(begin: dict[int, float], end: dict[int, float], number: int) -> str:
        return words.seconds_shown(end[number] - begin[number]) if number in begin and number in end else ""

    started, finished = at("round_started"), at("round_finished")
    evaluating, evaluated = at("evaluating"), at("evaluated")
    sent = Counter[int]()
    for event in run.of("site_replied"):
        sent[int(event.get("round") or 0)] += int(event.get("bytes") or 0)
    numbers = sorted(set(started) | set(evaluated))
    rows: list[list[Any]] = [
        [
            words.column(run, n),
            span(started, finished, n),
            span(evaluating, evaluated, n),
            words.bytes_shown(sent[n]) if n else "",
        ]
        for n in (numbers if len(numbers) <= TIME_ROWS else [])
    ]
    heads = [("Round", ""), ("Training and waiting", "n"), ("Drawing and evaluating", "n"), ("Updates received", "n")]
    return _table(heads, rows, short=True)
