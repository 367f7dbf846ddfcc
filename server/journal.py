"""The coordinator's journal: who was admitted, what was asked of the sites, what came of it (shared/journal/journal.py).

    FOLDER/journal.jsonl        of a federation over a network: everything, from provisioning to release
    RUN/server/journal.jsonl    of a run on one machine, or of a run's folder that was moved elsewhere

The same sentences as in the run's own record (events.py), as far as somebody may have to answer for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.journal import journal

RUNS = "runs"


def folder_of(run: Path) -> Path:
    """Where the journal of a run lies: RUN is FOLDER/runs/NAME of a federation, or stands alone."""
    run = run.resolve()
    federation = run.parent.parent
    if run.parent.name == RUNS and (federation / "ca.pem").exists():
        return federation
    return run / "server"


def write(run: Path, kind: str, **fields: Any) -> None:
    """Append an entry about a run. LedgerError when the journal is damaged: nothing goes on until somebody has looked."""
    folder = folder_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    journal.write(folder, kind, run=run.resolve().name, **fields)


def from_event(run: Path, event: str, fields: dict[str, Any]) -> None:
    """The entry of an event of the run's record; none where the journal has no such entry."""
    known = journal.ENTRIES.get(event)
    if known is not None:
        write(run, event, **{name: value for name, value in fields.items() if name in known and name != "run"})
