"""Reads a run's folder for its report, leniently: what is missing or damaged is noted, not hidden and not fatal.

Only summary.json must be there; a run that has none has not finished.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from server.evaluation.evaluate import Heldout
from server.metrics.base import Description, describe
from server.release.cards import ReleaseStatement
from server.release.gate import Decision
from server.summary import Measured, Summary, read_summary
from shared.errors import DataError


@dataclass(frozen=True)
class ReportData:
    """One run's folder, read.

    settings    the resolved experiment, as plain values; empty where it is missing
    events      the coordinator's record, oldest first
    rounds      rounds whose drawn images were kept
    gate        what the release gate found, none where it did not run
    review      what readers' blind judgements came to, none where nobody was asked
    manifests   site -> counts of (verdict, reason)
    missing     sentences about what could not be read
    """

    out: Path
    summary: Summary
    settings: dict[str, Any]
    events: list[dict[str, Any]]
    rounds: list[int]
    heldout: Heldout | None
    manifests: dict[str, Counter[tuple[str, str]]]
    missing: list[str] = field(default_factory=list)
    gate: Decision | None = None
    review: dict[str, Any] | None = None

    def samples(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Drawn images (N, H, W) uint8 and labels (N,) of a round, or none where the file is damaged."""
        path = self.out / "server" / "samples" / f"round-{number:03d}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays["x_NHW"], arrays["label_N"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def of(self, event: str) -> list[dict[str, Any]]:
        """All events of one kind."""
        return [e for e in self.events if e.get("event") == event]

    @cached_property
    def sites(self) -> list[str]:
        """Every site that is named anywhere, in alphabetical order; a node that never said its name is none."""
        named = set(self.summary.epsilon_per_patient) | set(self.manifests)
        named |= {str(site.get("name")) for site in self.settings.get("sites", [])}
        named |= {str(e.get("site")) for e in self.of("site_replied") + self.of("site_failed") if e.get("site")}
        return sorted(name for name in named if not re.fullmatch(r"node -?\d+", name))

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.settings.get("classes", {})]

    @property
    def epsilon_cap(self) -> float | None:
        cap = self.summary.epsilon_cap or self.settings.get("release", {}).get("epsilon_cap")
        return None if cap is None else float(cap)

    def figure(self, metric: str, number: int | None) -> Measured | None:
        """One figure of one round, or none where it was not measured."""
        return self.summary.metrics.get(metric, {}).get(str(number))

    def trace(self, metric: str) -> list[tuple[int, Measured]]:
        """A metric over the rounds, in order."""
        return sorted((int(number), figure) for number, figure in self.summary.metrics.get(metric, {}).items())

    @cached_property
    def descriptions(self) -> dict[str, Description]:
        """How each metric's figures are shown and read, by name."""
        return describe([*self.summary.metrics, self.summary.select_by], self.summary.descriptions)

    @property
    def selecting(self) -> Description:
        """The metric that says which round is best."""
        return self.descriptions[self.summary.select_by]

    def statement(self) -> ReleaseStatement:
        """The privacy statement of the run, from its summary and settings."""
        s, privacy, training = self.summary, self.settings.get("privacy", {}), self.settings.get("training", {})
        base = s.base or {}
        sha256 = base.get("sha256")
        return ReleaseStatement(
            epsilon_per_patient=s.epsilon_per_patient,
            delta=s.delta,
            sites_total=s.sites_total,
            sites_contributed=s.sites_contributed,
            rounds=s.rounds,
            trainable=s.trainable or str(training.get("trainable", "unknown")),
            noise_multiplier=s.noise_multiplier if s.private else None,
            sampling_rate=float(privacy.get("sampling_rate", float("nan"))),
            steps=s.rounds * int(training.get("steps", 0)),
            max_grad_norm=float(privacy.get("max_grad_norm", float("nan"))),
            accountant=f"PLD, dp-accounting {s.versions.get('dp-accounting', _version('dp-accounting'))}",
            model_sha256="",
            experiment=s.name,
            base=f"{base.get('name') or self.settings.get('base', 'unknown')}"
            + (f", sha256 {sha256[:12]}..." if sha256 else ""),
            metrics={},
        )


def read_run(out: Path) -> ReportData:
    """Read OUT. DataError when it has no summary; everything else that is absent is noted in `missing`."""
    summary, server = read_summary(out), out / "server"
    missing: list[str] = []
    settings: dict[str, Any] = {}
    try:
        settings = dict(json.loads((server / "experiment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        missing.append("The resolved settings (server/experiment.json) could not be read.")
    events, damaged = _lines(server / "events.jsonl")
    if not events:
        missing.append("There is no record of events (server/events.jsonl): rounds, traffic and failures are unknown.")
    elif damaged:
        missing.append(f"{damaged} line(s) of the record of events are damaged and left out.")
    heldout = None
    try:
        heldout = Heldout.load(server / "heldout.npz")
    except DataError:
        missing.append("The held-out images (server/heldout.npz) could not be read: no real images are shown.")
    names = [re.fullmatch(r"round-(\d+)\.npz", path.name) for path in (server / "samples").glob("round-*.npz")]
    rounds = sorted(int(match[1]) for match in names if match)
    if not rounds:
        missing.append("No drawn images were kept (server/samples): none are shown.")
    manifests = _manifests(out / "sites", missing)
    gate = None
    if (out / "gate.json").exists():
        try:
            gate = Decision.load(out / "gate.json")
        except (OSError, ValueError, KeyError, TypeError):
            missing.append("What the release gate found (gate.json) could not be read.")
    review = None
    if (out / "review" / "review.json").exists():
        try:
            review = dict(json.loads((out / "review" / "review.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            missing.append("What the readers said (review/review.json) could not be read.")
    return ReportData(out, summary, settings, events, rounds, heldout, manifests, missing, gate, review)


def _manifests(folder: Path, missing: list[str]) -> dict[str, Counter[tuple[str, str]]]:
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for site in sorted(path for path in folder.glob("*") if path.is_dir()):
        lines, damaged = _lines(site / "manifest.jsonl")
        lines = [line for line in lines if line.get("kind", "file") == "file"]  # not its header, not its totals
        if lines:
            verdicts = [str(line.get("verdict", "unknown")) for line in lines]
            reasons = [str(line.get("text") or line.get("reason") or "no reason given") for line in lines]
            counts[site.name] = Counter(zip(verdicts, reasons, strict=True))
        else:
            missing.append(f"The site {site.name} has no manifest in this folder: its own files are not counted.")
        if damaged:
            missing.append(f"{damaged} line(s) of the manifest of {site.name} are damaged and left out.")
    if not counts:
        missing.append("No site's manifest lies in this folder. In a deployment it never leaves the hospital.")
    return counts


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Objects of a JSON-lines file, and how many lines were not one."""
    try:
        raw = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return [], 0
    found = []
    for line in raw:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found, len(raw) - len(found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
