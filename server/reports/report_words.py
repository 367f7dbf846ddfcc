"""The report's sentences and number formats: what the figures of a run mean, in words that the figures carry.

"Nearer" and "farther" are said only where the intervals of two figures do not overlap.
"""

from __future__ import annotations

import json

from server.release import release
from server.release.cards import contributed, shown, small
from server.reports.report_data import Run
from server.reports.report_plots import Figured
from server.summary import Measured
from shared.config.experiment import Release
from shared.errors import ReleaseRefused

FD, KID = "FD-efflite0", "KID-efflite0"
GAP, NEAREST, PSNR = "MS-SSIM diversity gap", "NN-SSIM to held-out", "NN-PSNR to held-out"
READINGS = {
    "FID": "Distance to real images, Inception-v3 features. Lower is nearer.",
    FD: "Distance to real images, EfficientNet-Lite0 features; not comparable with FID. Lower is nearer.",
    KID: "The same features, unbiased at small numbers, times 1000. Lower is nearer; about 0 is real.",
    GAP: "Above 0: drawn images are more alike than patients are. Below 0: less alike. About 0 is right.",
    NEAREST: "Likeness to the nearest held-out image. 1 is a copy; higher is not better.",
    PSNR: "The same by PSNR, in dB. 60 is a copy; higher is not better.",
    "precision": "Share of drawn images that lie among real ones. Higher is better, up to real against real.",
    "recall": "Share of real images that lie among drawn ones: is anything left out? Higher is better.",
    "density": "How thickly real images lie around drawn ones; may pass 1. Higher is better.",
    "coverage": "Share of real images with a drawn one close by. Higher is better, up to real against real.",
    "LPIPS diversity gap": "As above with LPIPS, a distance: above 0 drawn images are less alike than patients are.",
    "FRD": "Distance of radiomic features, log of the square. Lower is nearer.",
}


def factor(metric: str) -> float:
    """KID is shown times 1000."""
    return 1000.0 if metric == KID else 1.0


def title(metric: str) -> str:
    return f"{metric} \u00d7 1000" if metric == KID else metric


def number(value: float, metric: str) -> str:
    digits = {FD: 1, "FID": 1, KID: 1, GAP: 3, NEAREST: 3, PSNR: 1}.get(metric, 3)
    return f"{value * factor(metric):.{digits}f}".replace("-", "\u2212")


def interval(m: Figured, metric: str) -> str:
    return f"{number(m.low, metric)} to {number(m.high, metric)}"


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


def compare(before: Measured | None, after: Measured | None) -> str | None:
    """ "nearer", "farther" or "not to be told apart", by whether two intervals overlap."""
    if before is None or after is None:
        return None
    if after.high < before.low:
        return "nearer"
    return "farther" if after.low > before.high else "not to be told apart"


def headline(run: Run) -> str:
    """One or two sentences: who trained, with which guarantee, and what came of it."""
    s = run.summary
    statement = run.statement()
    who = f"{contributed(statement)} to one model over {s.rounds} round{'s' if s.rounds != 1 else ''}"
    epsilon = (
        f", at no more than epsilon {shown(statement.epsilon)} per patient"
        if statement.private
        else ", without privacy"
    )
    base, best = run.figure(FD, 0), run.figure(FD, s.best_round)
    found = compare(base, best)
    if found is None or base is None or best is None or s.best_round == 0:
        return f"{who}{epsilon}."
    moved = f"from {number(base.value, FD)} for the public base to {number(best.value, FD)}"
    verdict = {
        "nearer": f"Its images are nearer to real patients than those of the base: {FD} went {moved}.",
        "farther": f"Its images are farther from real patients than those of the base: {FD} went {moved}.",
        "not to be told apart": f"Its images cannot be told from those of the base: {FD} went {moved}, within the intervals.",
    }[found]
    return f"{who}{epsilon}. {verdict}"


def tiles(run: Run) -> list[dict[str, str]]:
    """The four figures at the top of the page."""
    s, statement = run.summary, run.statement()
    cap = f"cap {run.epsilon_cap:g}, " if run.epsilon_cap else ""
    best = run.figure(FD, s.best_round)
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
            "title": FD,
            "value": number(best.value, FD) if best else "none",
            "note": f"best round {s.best_round}; {interval(best, FD)}; real against real {number(best.floor, FD)}"
            if best
            else "not evaluated",
        },
        {
            "title": "Parameters trained",
            "value": f"{s.trainable_parameters:,}",
            "note": f"{bytes_shown(s.bytes_per_round)} sent a round{share}; {seconds_shown(s.seconds)} in all",
        },
    ]


def alarms(run: Run) -> list[str]:
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


def distance_words(run: Run) -> str:
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


def release_words(run: Run) -> str:
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


def review_words(run: Run) -> str:
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


def cost(run: Run) -> str:
    s = run.summary
    device = {None: "", "cpu": " on the CPU", "cuda": " on the GPU"}.get(s.device, f" on {s.device}")
    return (
        f"{seconds_shown(s.seconds)} in all{device}; the sites together sent {bytes_shown(s.bytes_per_round)} a round."
    )


def versions(run: Run) -> str:
    return " \u00b7 ".join(f"{name} {number}" for name, number in run.summary.versions.items())


def settings(run: Run) -> str:
    return json.dumps(run.settings, indent=2, ensure_ascii=False) if run.settings else ""


def column(run: Run, number: int) -> str:
    """Heading of one round: "Public base", "Round 3, best"."""
    if number == 0:
        return "Public base"
    return f"Round {number}, best" if number == run.summary.best_round else f"Round {number}"
