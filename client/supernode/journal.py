"""What the node was asked, what it refused and what it sent: WORK/node/journal.jsonl (shared/journal/journal.py).

One entry an event, on the disk before the work goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.supernode import node
from privacy.ledger import Mark
from shared.journal import journal
from shared.journal.chain import Record

FILE = journal.FILE


def write(work: Path, event: str, **fields: Any) -> None:
    """Append an entry. LedgerError when the journal is damaged: then nothing is answered until somebody has looked."""
    journal.write(node.folder(work), event, **fields)


def read(work: Path) -> list[Record]:
    """All entries, oldest first, once chain and checkpoint are checked; empty when there is none."""
    return journal.read(node.folder(work))


def ledger_mark(work: Path) -> Mark | None:
    """The privacy ledger's end as the last entry that tells it; none where no round was charged."""
    told = next((entry for entry in reversed(read(work)) if entry.get("ledger_hash")), None)
    return None if told is None else Mark(int(told["ledger_records"]), str(told["ledger_hash"]))
