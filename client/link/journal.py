"""What the node was asked, what it refused and what it sent: WORK/node/journal.jsonl (shared/journal.py).

One entry an event, on the disk before the work goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.link import node
from shared import journal
from shared.chain import Record

FILE = journal.FILE


def write(work: Path, event: str, **fields: Any) -> None:
    """Append an entry. LedgerError when the journal is damaged: then nothing is answered until somebody has looked."""
    journal.write(node.folder(work), event, **fields)


def read(work: Path) -> list[Record]:
    """All entries, oldest first, once chain and checkpoint are checked; empty when there is none."""
    return journal.read(node.folder(work))
