"""What the node was asked, what it refused and what it sent: WORK/node/journal.jsonl, chained by hashes (privacy/chain.py).

One line an event, on the disk before the work goes on. No patient data: names, hashes, sizes and reasons in our own words.

Left out: a signature over the chain's end; whoever may write the file may write it anew from its start.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from client.link import node
from privacy import chain
from shared import keys
from shared.errors import LedgerError

FILE = "journal.jsonl"
REMEDY = "move it away and keep it; a new one begins by itself"


def write(work: Path, event: str, **fields: Any) -> None:
    """Append an event. LedgerError when the journal is damaged: then nothing is answered until somebody has looked."""
    path = node.folder(work) / FILE
    body = {"kind": event, "time": keys.now().isoformat(), **fields}
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        data = file.read()
        if data:
            found = chain.read(data, path.name, REMEDY)
            file.truncate(found.whole)  # a torn last line was never acted on
            file.seek(found.whole)
            lines = (b"" if found.ended else b"\n") + chain.line(body, found.records[-1])
        else:
            header = chain.line({"kind": "header", "name": "fedsynth journal", "version": 1}, None)
            lines = header + chain.line(body, chain.read(header, path.name).records[-1])
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read(work: Path) -> list[dict[str, Any]]:
    """All events, oldest first, once every link of the chain is checked; empty when there is none."""
    path = node.folder(work) / FILE
    if not path.exists():
        return []
    records = chain.read(path.read_bytes(), path.name, REMEDY).records[1:]
    if any("kind" not in r for r in records):
        raise LedgerError(f"{path.name} is not a journal; {REMEDY}")
    return records
