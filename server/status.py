"""How a federation stands: server, certificates, sites, the run and its round, what each patient has spent. Read from its folder
alone, so that it can be asked at any time, by anybody who may read the folder; nothing is changed.

Only what the coordinator knows anyway: names, times, epsilons, figures on held-out patients. Nothing of a hospital's patients.

Left out: history; the run's report and the journal have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from server import ledgers
from server.run_status import RunStatus, newest
from server.superlink import heartbeats, jobs, provision
from server.superlink.federation import FederationFile
from shared.crypto import keys
from shared.errors import DataError
from shared.journal import verifier


@dataclass(frozen=True)
class SiteStatus:
    """A site. `state`: "connected", "away", "expired" or "revoked"; `days`: until its approval ends; the rest: of the run."""

    name: str
    state: str
    seen: str | None = None
    days: int | None = None
    round: int | None = None
    last: str = ""
    epsilon: float | None = None


@dataclass(frozen=True)
class Status:
    """Everything at one moment. `alarms`: what must be looked at now; `warnings`: what will have to be.

    name, address   of the federation; address none for a run on one machine
    serving         whether its server runs; none for a run on one machine
    certificates    what -> days left
    run             the one that goes on, or else the last; none before the first
    journal         what the verifier says of the coordinator's journal; none where there is no journal yet
    """

    name: str
    time: str
    address: str | None = None
    serving: bool | None = None
    certificates: dict[str, int] = field(default_factory=dict)
    sites: list[SiteStatus] = field(default_factory=list)
    run: RunStatus | None = None
    journal: dict[str, Any] | None = None
    alarms: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_federation(federation: FederationFile, folder: Path) -> Status:
    """The status of a federation over a network."""
    serving = jobs.serving(folder)
    run = newest(folder / "runs")
    certificates = {}
    for name, what in (("ca.pem", "authority"), ("server.pem", "server")):
        until = keys.load_certificate((folder / name).read_text(encoding="utf-8")).not_valid_after_utc
        certificates[what] = (until - keys.now()).days
    checked = _journal(folder)
    alarms = [f"the {what} certificate has expired" for what, days in certificates.items() if days < 0]
    if not serving:
        alarms.append("no server runs; start it with `fedsynth server serve`")
    alarms += _of_run(run) + _of_journal(checked) + ledgers.alarms(folder)
    return Status(
        name=federation.name,
        time=keys.now().isoformat(),
        address=federation.address,
        serving=serving,
        certificates=certificates,
        sites=list(_sites(folder, run, serving=serving)),
        run=run,
        journal=checked,
        alarms=alarms,
        warnings=provision.warnings(folder),
    )


def of_run(out: Path) -> Status:
    """The status of a run on one machine, in its folder. DataError when none began there."""
    run = newest(out.parent, only=out.name)
    if run is None:
        raise DataError(f"no run began in {out}; name its folder, or the federation's file")
    checked = _journal(out / "server")
    named = sorted(set(run.contributed) | set(run.epsilons) | set(run.failed))
    sites = [SiteStatus(name, "", **_part(run, name)) for name in named]
    alarms = _of_run(run) + _of_journal(checked)
    return Status(run.name, keys.now().isoformat(), sites=sites, run=run, journal=checked, alarms=alarms)


def _sites(folder: Path, run: RunStatus | None, *, serving: bool) -> Iterator[SiteStatus]:
    heard = heartbeats.read(folder)
    latest = {m.site: m for m in provision.members(folder)}  # of several keys, the one approved last
    for site, m in sorted(latest.items()):
        entry = heard.get(site, {})
        state = "revoked" if m.revoked else "expired" if not m.admitted else "away"
        if state == "away" and serving and entry.get("connected"):
            state = "connected"
        part = _part(run, site) if run else {}
        yield SiteStatus(site, state, entry.get("seen"), (m.until - keys.now()).days, **part)


def _part(run: RunStatus, site: str) -> dict[str, Any]:
    """What a site did in the run: its last round, and the last word about it."""
    if site in run.contributed:
        last = "update received"
    elif site in run.failed and run.failed[site]["round"] == run.round:
        last = str(run.failed[site]["reason"])
    else:
        last = ""
    return {"round": run.rounds_of.get(site), "last": last, "epsilon": run.epsilons.get(site)}


def _journal(folder: Path) -> dict[str, Any] | None:
    try:
        found = verifier.verify_journal(folder)
    except DataError:
        return None
    return {"state": found.state, "said": found.said, "records": found.records, "key": found.key}


def _of_run(run: RunStatus | None) -> list[str]:
    return [f"the run {run.name} failed: {run.reason}"] if run is not None and run.state == "failed" else []


def _of_journal(checked: dict[str, Any] | None) -> list[str]:
    wrong = checked is not None and checked["state"] != "whole"
    return [f"the journal is {checked['state']}: {checked['said']}"] if checked is not None and wrong else []


def ago(time: str | None, now: datetime) -> str:
    """ "12 s ago", as a person says it; "never" for none."""
    if time is None:
        return "never"
    seconds = max(0.0, (now - datetime.fromisoformat(time)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
