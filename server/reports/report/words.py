"""The report's sentences and number formats: what the figures of a run mean, in words that the figures carry.

"Nearer" and "farther" are said only where the intervals of two figures do not overlap.
"""

from __future__ import annotations

import json

from server.metrics.base import Description
from server.release import release
from server.release.cards import contributed, shown, small
from server.reports.report.data import ReportData
from server.summary import Measured
from shared.config.experiment import Release
from shared.errors import ReleaseRefused


def bytes_shown(count: float) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def seconds_shown(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 7200 else f"{whole // 60} min {whole % 60} s"


def compare(before: Measured | None, after: Measured | None, metric: Description) -> str | None:
    """ "nearer", "farther" or "not to be told apart", by whether two intervals overlap."""
    if before is None or after is None:
        return None
    (_, low, high), (_, new_low, new_high) = (metric.distance(m.value, m.floor, m.low, m.high) for m in (before, after))
    if new_high < low:
        return "nearer"
    return "farther" if new_low > high else "not to be told apart"


def headline(run: ReportData) -> str:
    """One or two sentences: who trained, with which guarantee, and what came of it."""
    s = run.summary
    statement = run.statement()
    who = f"{contributed(statement)} to one model over {s.rounds} round{'s' if s.rounds != 1 else ''}"
    epsilon = (
        f", at no more than epsilon {shown(statement.epsilon)} per patient"
        if statement.private
        else ", without privacy"
    )
    metric = run.selecting
    base, best = run.figure(metric.name, 0), run.figure(metric.name, s.best_round)
    found = compare(base, best, metric)
    if found is None or base is None or best is None or s.best_round == 0:
        return f"{who}{epsilon}."
    moved = f"from {metric.shown(base.value)} for the public base to {metric.shown(best.value)}"
    verdict = {
        "nearer": f"Its images are nearer to real patients than those of the base: {metric.title} went {moved}.",
        "farther": f"Its images are farther from real patients than those of the base: {metric.title} went {moved}.",
        "not to be told apart": f"Its images cannot be told from those of the base: {metric.title} went {moved}, within the "
        "intervals.",
    }[found]
    return f"{who}{epsilon}. {verdict}"


def tiles(run: ReportData) -> list[dict[str, str]]:
    """The four figures at the top of the page."""
    s, statement = run.summary, run.statement()
    cap = f"cap {run.epsilon_cap:g}, " if run.epsilon_cap else ""
    metric = run.selecting
    best = run.figure(metric.name, s.best_round)
    share = f"; noise to signal {s.nsr:.2g}" if s.nsr is not None else ""
    return [
        {
            "title": "Epsilon per patient",
            "value": shown(statement.epsilon) if statement.private else "none",
            "note": f"largest of any site; {cap}delta {small(s.delta)}"
            if statement.private
            else "trained without privacy",
        },
        {"title": "Sites", "value": f"{s.sites_contributed} of {s.sites_total}", "note": "contributed to every round"},
        {
            "title": metric.title,
            "value": metric.shown(best.value) if best else "none",
            "note": f"best round {s.best_round}; {metric.interval(best.low, best.high)}; real against real "
            f"{metric.shown(best.floor)}"
            if best
            else "not evaluated",
        },
        {
            "title": "Parameters trained",
            "value": f"{s.trainable_parameters:,}",
            "note": f"{bytes_shown(s.bytes_per_round)} sent a round{share}; {seconds_shown(s.seconds)} in all",
        },
    ]


def alarms(run: ReportData) -> list[str]:
    """What must not be overlooked."""
    s, statement, found = run.summary, run.statement(), []
    if s.sites_contributed < s.sites_total:
        found.append(f"Only {contributed(statement)} to every round. The model speaks for those sites.")
    over = [
        site for site, e in s.epsilon_per_patient.items() if e is not None and run.epsilon_cap and e > run.epsilon_cap
    ]
    if over:
        found.append(f"Epsilon is above the cap at {', '.join(over)}.")
    if run.gate is not None and not run.gate.passed and run.gate.forced:
        found.append(
            f"The release did not pass its gate and was published by force. The reason given: {run.gate.forced}"
        )
    if s.nsr is not None and s.nsr > 1:
        found.append(
            f"The privacy noise is {s.nsr:.2g} times the largest possible signal of a step; expect little learning."
        )
    return found


def distance_words(run: ReportData) -> str:
    """How floors and intervals were made, with the numbers of this run."""
    cohort = ""
    if run.heldout is not None:
        patients = len(set(run.heldout.patient_N.tolist()))
        cohort = f" ({patients} patients, {len(run.heldout.x_NHW)} images)"
    resamples = run.settings.get("evaluation", {}).get("bootstrap", "several hundred")
    return (
        f"Drawn images are compared with patients that no site trained on{cohort}. \u201cReal against real\u201d is what one half "
        "of these patients scores against the other. As halves hold fewer patients it errs upwards, and a value at or below it "
        f"cannot be told from other patients. Intervals are 95 %, from {resamples} resamples of patients and images; "
        "they do not cover a repetition of the training."
    )


def release_words(run: ReportData) -> str:
    """What lies in OUT/release, or why nothing does."""
    folder = run.out / "release"
    if (folder / "SHA256SUMS").is_file():
        images = sum(1 for _ in (folder / "images").rglob("*.png"))
        admitted = "They passed every check of the gate."
        if run.gate is None:
            admitted = (
                "They were admitted on the formal guarantee and on the sites that contributed; near-copies and membership "
                "inference were not measured."
            )
        elif not run.gate.passed:
            admitted = f"They did not pass the gate and were published by force. The reason given: {run.gate.forced}"
        return (
            f"{images} synthetic images lie in release/, as PNG, DICOM and NPZ, each marked as synthetic, with a data card, a "
            f"model card, checksums and a signature. {admitted}"
        )
    if run.gate is not None and not run.gate.passed:
        return f"There is none. It was refused: {release.refusal(run.gate)}.".replace("`", "")
    try:
        release.check(run.statement(), Release.model_validate(run.settings.get("release", {})))
    except ReleaseRefused as error:
        return f"There is none. It was refused: {error}.".replace("`", "")
    except ValueError:
        pass
    return "There is none in this folder. Its formal conditions are met."


def review_words(run: ReportData) -> str:
    """How many readers saw how many images, and how far they agree."""
    found = run.review or {}
    readers = found.get("readers", {})
    if not readers:
        return ""
    count = f"{len(readers)} reader{'s' if len(readers) != 1 else ''}"
    text = (
        f"{count} judged up to {found.get('images', 0)} real and synthetic images blind. Half right is chance: readers who cannot "
        "do better cannot tell them apart."
    )
    kappa = ((found.get("agreement") or {}).get("kappa")) or {}
    if kappa.get("value") is None:
        return text
    agreement = found["agreement"]
    return (
        f"{text} Their agreement on the {agreement['images']} images that all of them judged, {agreement['measure']}: "
        f"{kappa['value']:.2f} ({kappa['low']:.2f} to {kappa['high']:.2f}); 0 is chance, 1 is full agreement."
    )


def cost(run: ReportData) -> str:
    s = run.summary
    device = {None: "", "cpu": " on the CPU", "cuda": " on the GPU"}.get(s.device, f" on {s.device}")
    return (
        f"{seconds_shown(s.seconds)} in all{device}; the sites together sent {bytes_shown(s.bytes_per_round)} a round."
    )


def versions(run: ReportData) -> str:
    return " \u00b7 ".join(f"{name} {number}" for name, number in run.summary.versions.items())


def settings(run: ReportData) -> str:
    return json.dumps(run.settings, indent=2, ensure_ascii=False) if run.settings else ""


def column(run: ReportData, number: int) -> str:
    """Heading of one round: "Public base", "Round 3, best"."""
    if number == 0:
        return "Public base"
    return f"Round {number}, best" if number == run.summary.best_round else f"Round {number}"
