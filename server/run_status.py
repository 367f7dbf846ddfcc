"""How far a run is, from its own record (events.jsonl): the round, who has answered, what it has come to.

Left out: everything that lies elsewhere than in the run's folder (status.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.events import read

STAGES = {
    "run_started": "starting",
    "run_resumed": "starting",
    "evaluating": "drawing and evaluating",
    "evaluated": "waiting for the sites",
    "round_started": "training",
    "round_finished": "drawing and evaluating",
    "round_failed": "asking again",
    "proposing": "drawing what would be released",
    "drawn": "drawing what would be released",
    "asking": "asking the sites about the release",
    "site_judged": "asking the sites about the release",
    "site_did_not_judge": "asking the sites about the release",
}


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    state        "running", "waiting" (wanted, and no server runs it yet), "stopped", "failed", "finished", or "open": a run on
                 one machine, which may go on or have been cut off
    stage        what is done just now, while it runs
    round        that goes on, or the last; 0 is the public base
    asked        sites that the round asked; `contributed`: whose update it has; `failed`: site -> {"round", "reason"}
    rounds_of    site -> the last round with its update;  `epsilons`: site -> per patient, so far; none without privacy
    drawn        (so far, of all) of the proposed images, while they are drawn
    judged       site -> its bit about the release; none: it gave none
    metrics      figure -> [{"round", "value", "floor", "low", "high"}, ...]
    charted      the metric that says which round is best, as it describes itself (server/metrics/base.py); empty when not known
    samples      rounds whose drawn images were kept
    release      "released", "forced", "refused" or "" before there was a decision
    told         when it last wrote something
    """

    name: str
    state: str
    stage: str = ""
    round: int = 0
    rounds: int = 0
    sites: int = 0
    asked: int = 0
    attempt: int = 1
    contributed: list[str] = field(default_factory=list)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounds_of: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    epsilons: dict[str, float | None] = field(default_factory=dict)
    epsilon: float | None = None
    delta: float | None = None
    drawn: tuple[int, int] | None = None
    judged: dict[str, bool | None] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    charted: dict[str, Any] = field(default_factory=dict)
    best_round: int | None = None
    samples: list[int] = field(default_factory=list)
    release: str = ""
    reason: str = ""
    seconds: float = 0.0
    told: str | None = None


def newest(runs: Path, only: str | None = None) -> RunStatus | None:
    """The run that is wanted now, or else the one that wrote last; none before the first. `only`: the run of this name."""
    folders = [path for path in runs.glob("*") if (path / "server").is_dir() and only in (None, path.name)]
    if not folders:
        return None
    return of(max(folders, key=lambda path: ((path / "wanted.json").exists(), _told(path) or "")))


def of(out: Path) -> RunStatus:
    """The run in a folder, as far as it has got; a torn or missing file is as one that says nothing."""
    events = read(out / "server" / "events.jsonl")
    settings = _json(out / "server" / "experiment.json") or _json(out / "experiment.json") or _json(out / "wanted.json")
    facts: dict[str, Any] = {"failed": {}, "rounds_of": {}, "epsilons": {}, "judged": {}, "metrics": {}, "history": []}
    facts["descriptions"] = {}
    facts |= {"contributed": [], "stage": "", "reason": ""}
    for event in events:
        _take(facts, event)
    training, privacy = settings.get("training", {}), settings.get("privacy", {})
    best = _json(out / "server" / "checkpoints" / "best.json").get("round")
    samples = sorted(int(path.stem[6:]) for path in (out / "server" / "samples").glob("round-[0-9]*.npz"))
    state = _state(out, [e["event"] for e in events])
    select_by = settings.get("evaluation", {}).get("select_by") or next(iter(facts["metrics"]), "")
    described = facts.pop("descriptions").get(select_by, {})
    charted = {"name": select_by} | described if select_by else {}
    if state not in ("running", "open"):
        facts["stage"] = ""
    facts.setdefault("rounds", training.get("rounds", 0))
    return RunStatus(
        name=out.name,
        state=state,
        epsilon=privacy.get("epsilon"),
        delta=privacy.get("delta"),
        best_round=best,
        charted=charted,
        samples=samples,
        release=_release(out),
        seconds=float(events[-1]["seconds"]) if events else 0.0,
        told=_told(out),
        **facts,
    )


def _take(facts: dict[str, Any], event: dict[str, Any]) -> None:
    """One event more."""
    kind, site = event["event"], event.get("site")
    facts["stage"] = STAGES.get(kind, facts["stage"])
    if "round" in event:
        facts["round"] = event["round"]
    if kind == "run_started":
        facts |= {"rounds": event["rounds"], "sites": event["sites"]}
        facts["descriptions"] = event.get("descriptions", {})
    elif kind in ("run_resumed", "round_started"):
        facts |= {"contributed": [], "asked": event.get("asked", 0), "drawn": None, "reason": ""}
        facts["attempt"] = 1 if kind == "run_resumed" else facts.get("attempt", 1)
    elif kind == "site_replied":
        facts["contributed"] = sorted({*facts["contributed"], site})
        facts["rounds_of"][site] = event["round"]
        facts["epsilons"][site] = event["epsilon"]
    elif kind == "site_failed":
        facts["failed"][site] = {"round": event["round"], "reason": event["reason"]}
    elif kind == "round_finished":
        there = event["contributed"]
        failed = sorted(s for s, f in facts["failed"].items() if f["round"] == event["round"] and s not in there)
        facts["history"].append({"round": event["round"], "contributed": there, "failed": failed})
        facts["attempt"] = 1
    elif kind == "round_failed":
        facts |= {"attempt": event["attempt"] + 1, "reason": event["reason"]}
    elif kind == "evaluated":
        for name, figure in event["metrics"].items():
            facts["metrics"].setdefault(name, []).append({"round": event["round"], **figure})
    elif kind == "drawn":
        facts["drawn"] = (event["images"], event["total"])
    elif kind in ("site_judged", "site_did_not_judge"):
        facts["judged"][site] = event.get("passed")
    elif kind == "run_failed":
        facts["reason"] = event["reason"]


def _state(out: Path, kinds: list[str]) -> str:
    """Where the run stands. A failure is over once the run was asked for again."""
    if (out / "wanted.json").exists():
        return "running" if (out / "job.json").exists() else "waiting"
    last = kinds[-1] if kinds else ""
    if last in ("run_finished", "run_failed"):
        return last[4:]
    networked = (out / "server" / "nodes.json").exists()
    return "stopped" if networked else "open"


def _release(out: Path) -> str:
    gate = _json(out / "gate.json")
    if (out / "release").is_dir():
        return "forced" if gate.get("forced") else "released"
    return "refused" if gate.get("passed") is False else ""


def _told(out: Path) -> str | None:
    try:
        written = (out / "server" / "events.jsonl").stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
