"""After the last round, no network needed: summary, release, report.

The release is drawn from the best round; its privacy statement is that of the whole run, because choosing among rounds and
drawing images are post-processing of what all rounds revealed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from privacy import noisy_statistics
from server import checkpoint, journal
from server.evaluation.heldout import Heldout
from server.events import read as read_events
from server.release import gate, release, seal
from server.release.release_vote import answers, proposed
from server.summary import write_summary
from shared import plugins
from shared.config.experiment import Experiment
from shared.config.loading import read as read_config
from shared.crypto import signing
from shared.errors import DataError, FederationError, ReleaseRefused
from shared.files import write_bytes
from shared.models import weights
from shared.models.device import device_for

SIGNING_KEY = "release.key.pem"
VERSIONS = ("fedsynth", "flwr", "torch", "diffusers", "opacus", "dp-accounting", "pydicom", "torchmetrics")


def summarise(out: Path) -> dict[str, Any]:
    """Write OUT/summary.json from the run's record and return it. FederationError when the run has not finished."""
    server = out / "server"
    experiment = read_config(server / "experiment.json", Experiment)
    events = read_events(server / "events.jsonl")
    if not any(e["event"] == "run_finished" for e in events):
        raise FederationError(f"the run in {out} has not finished; run the same command again to go on")
    start = next(e for e in events if e["event"] == "run_started")
    replies = [e for e in events if e["event"] == "site_replied"]
    finished = {e["round"]: set(e["contributed"]) for e in events if e["event"] == "round_finished"}
    in_all_rounds = set.intersection(*finished.values()) if finished else set()
    epsilons = {e["site"]: e["epsilon"] for e in replies}  # the last word of each site; epsilon only grows
    epsilons |= {e["site"]: None for e in replies if e["epsilon"] is None}  # infinite once is infinite for ever
    private = experiment.privacy.epsilon is not None and None not in epsilons.values()
    metrics: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "evaluated":
            for name, figure in event["metrics"].items():
                metrics.setdefault(name, {})[str(event["round"])] = figure
    summary: dict[str, Any] = {
        "name": experiment.name,
        "sites_total": start["sites"],
        "sites_contributed": len(in_all_rounds),
        "rounds": experiment.training.rounds,
        "best_round": checkpoint.best(server / "checkpoints"),
        "unit_of_privacy": "patient",
        "private": private,
        "delta": experiment.privacy.delta,
        "epsilon_per_patient": {site: epsilons[site] for site in sorted(epsilons)},
        "noise_multiplier": start["noise_multiplier"] if private else None,
        "trainable": experiment.training.trainable,
        "trainable_parameters": start["trainable_parameters"],
        "nsr": start["nsr"],
        "metrics": metrics,
        "descriptions": start.get("descriptions", {}),
        "select_by": experiment.evaluation.select_by,
        "bytes_per_round": sum(e["bytes"] for e in replies) / max(1, len(finished)),
        "seconds": events[-1]["seconds"],
        "device": start["device"],
        "statistics": _statistics(experiment, replies),
        "studied": next(
            (
                {k: e[k] for k in ("biomarkers", "utility", "notes")}
                for e in reversed(events)
                if e["event"] == "studied"
            ),
            None,
        ),
        "base": {"name": experiment.base, "sha256": base_sha256(experiment)},
        "versions": {name: version(name) for name in VERSIONS}
        | {"python": platform.python_version()}
        | plugins.digests(plugins.loaded()),
    }
    write_summary(out, summary)
    return summary


def publish(
    out: Path,
    summary: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
    *,
    force: str | None = None,
) -> Path:
    """Draw the release of a finished run, or go on drawing it; take it through the gate; write it into OUT/release, signed.

    force   the reason for which a release goes out although a check failed; it is recorded in gate.json and on the cards.
            The check `privacy` cannot be overruled

    The key lies in OUT/server; its public half beside the release, in OUT/release.pub.pem: recipients must get that another way
    than the release. OUT/gate.json is written whatever it says. ReleaseRefused when a check fails.
    """
    server = out / "server"
    experiment = read_config(server / "experiment.json", Experiment)
    settings, best = experiment.release, summary["best_round"]
    statement = release.ReleaseStatement(
        epsilon_per_patient=summary["epsilon_per_patient"],
        delta=summary["delta"],
        sites_total=summary["sites_total"],
        sites_contributed=summary["sites_contributed"],
        rounds=summary["rounds"],
        trainable=experiment.training.trainable,
        noise_multiplier=summary["noise_multiplier"] or 0.0,
        sampling_rate=experiment.privacy.sampling_rate,
        steps=experiment.training.rounds * experiment.training.steps,
        max_grad_norm=experiment.privacy.max_grad_norm,
        accountant=f"PLD, dp-accounting {version('dp-accounting')}",
        model_sha256=seal.digest(server / "checkpoints" / f"round-{best:03d}.safetensors"),
        experiment=experiment.name,
        base=f"{experiment.base} (sha256 {summary['base']['sha256']})",
        metrics={name: rounds.get(str(best), {}) for name, rounds in summary["metrics"].items()},
        studied=summary["studied"] or {},
    )
    formal = release.formal(statement, settings)
    if not formal[0].passed:
        gate.Decision((formal[0],), "").save(out / "gate.json")
        journal.write(out, "release_refused", failed=[formal[0].name], reason=formal[0].detail)
        raise ReleaseRefused(formal[0].detail)  # before thousands of images are drawn for nothing
    device = device_for(experiment.performance)
    model = weights.load_base(experiment.base, experiment.model, experiment.classes).to(device)
    drawn = proposed(server, experiment, model, progress)
    verdict = gate.judge(
        drawn,
        _heldout(server),
        settings.gate,
        lambda: formal,
        answers(server),
        settings.minimum_sites or statement.sites_total,
        lambda: gate.audited(
            out / "audit.json", statement.noise_multiplier or 0.0, statement.sampling_rate, statement.steps
        ),
    )
    if force is not None and not verdict.passed:
        verdict = replace(verdict, forced=force)
    verdict.save(out / "gate.json")
    _decided(out, verdict)
    key = signing.load_or_make(server / SIGNING_KEY)
    release.write(out / "release", drawn, statement, settings, seed=experiment.seed, key=key, gate=verdict)
    write_bytes(out / "release.pub.pem", signing.public_pem(key.public_key()).encode())
    fingerprint = signing.fingerprint(key.public_key())
    journal.write(out, "released", sums=seal.digest(out / "release" / seal.SUMS), key=fingerprint)
    return out / "release"


def _decided(out: Path, verdict: gate.Decision) -> None:
    """The decision is in the journal before anything is published."""
    failed = [check.name for check in verdict.failed]
    if not failed:
        journal.write(out, "release_passed")
    elif verdict.forced and "privacy" not in failed:
        journal.write(out, "release_forced", failed=failed, reason=verdict.forced)
    else:
        journal.write(out, "release_refused", failed=failed, reason=release.refusal(verdict))


def _heldout(server: Path) -> Heldout | None:
    try:
        return Heldout.load(server / "heldout.npz")
    except DataError:
        return None


def _statistics(experiment: Experiment, replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Noisy figure -> its price, its noise and every value: site -> round as text -> value. Empty where none was asked."""
    settings, prices = experiment.privacy.statistics, noisy_statistics.prices(experiment)
    found = {}
    for name, noise_multiplier in noisy_statistics.asked(settings, 1).items():
        values: dict[str, dict[str, float]] = {}
        for e in replies:
            if name in e.get("statistics", {}):
                values.setdefault(e["site"], {})[str(e["round"])] = e["statistics"][name]
        found[name] = {"noise_multiplier": noise_multiplier, "epsilon": prices[name], "values": values}
    return found


def base_sha256(experiment: Experiment) -> str | None:
    """The sha256 of the base's weights, none for a random start."""
    return None if experiment.base == "none" else str(weights.card(experiment.base)["sha256"])
