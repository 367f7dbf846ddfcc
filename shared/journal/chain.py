"""A chain of records, one JSON line each, in which a changed byte anywhere shows and is named by its record number.

    hash = SHA-256(canonical JSON of the record without `hash`);  `previous` = the hash of the record before

Canonical: sorted keys, no spaces, ASCII, no NaN. A line that is not byte for byte the canonical form of what it says is
damaged, so that spaces and escapes are covered too.

| edge case                                 | what happens                                                         |
|-------------------------------------------|----------------------------------------------------------------------|
| line 0 is no header, or a later line is   | LedgerError naming the record                                        |
| bytes after the last newline, not a whole record | `torn`: a crash while appending                               |
| a whole record whose newline is missing   | it counts                                                            |
| a whole record followed by other bytes    | LedgerError: a crash writes less, never something else               |

Readers: the ledger (privacy/ledger.py), the journals of both sides (journal.py), and the hospital's manifest; each names its
own repair.

Left out: locking, fsync and what the records mean.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from shared.errors import LedgerError

START = "0" * 64
Record = dict[str, Any]


class RecordDamaged(LedgerError):
    """A record that is not what was written. `record`: its number, the header being 0."""

    def __init__(self, message: str, record: int) -> None:
        super().__init__(message)
        self.record = record


@dataclass(frozen=True)
class Chain:
    """What a file holds.

    records   every whole record, the header first
    whole     bytes of the file that they take
    torn      the bytes after them: what a crash left of a record that was never promised to anybody
    ended     whether the last whole record has its newline
    """

    records: list[Record]
    whole: int
    torn: bytes
    ended: bool


def line(body: Record, after: Record | None) -> bytes:
    """The next line of the chain, newline included, for `body` after the record `after` (None: the first)."""
    index, previous = (after["index"] + 1, after["hash"]) if after else (0, START)
    record = {**body, "index": index, "previous": previous}
    return _canonical({**record, "hash": _digest(record)}) + b"\n"


def read(data: bytes, name: str, remedy: str = "restore the ledger from a backup") -> Chain:
    """Check every link of `data`. Raises RecordDamaged naming the first damaged record; `name`, `remedy`: for the message."""
    *lines, rest = data.split(b"\n")
    records: list[Record] = []
    for number, raw in enumerate(lines):
        records.append(_check(raw, number, records[-1] if records else None, name, remedy))
    whole, ended = len(data) - len(rest), True
    if rest and _complete(rest):
        records.append(_check(rest, len(lines), records[-1] if records else None, name, remedy))
        whole, rest, ended = len(data), b"", False
    if not records:
        raise LedgerError(f"{name} holds no record, and is never empty; {remedy}")
    return Chain(records, whole, rest, ended)


def _check(raw: bytes, number: int, before: Record | None, name: str, remedy: str) -> Record:
    def damaged(why: str) -> RecordDamaged:
        return RecordDamaged(f"{name}: record {number} is damaged ({why}); {remedy}", number)

    try:
        record = json.loads(raw)
        faithful = isinstance(record, dict) and _canonical(record) == raw
    except (ValueError, RecursionError):
        raise damaged("not a line that a ledger writes") from None
    if not faithful:
        raise damaged("not in canonical form")
    if record.get("hash") != _digest({key: value for key, value in record.items() if key != "hash"}):
        raise damaged("its hash does not match its content")
    if record.get("previous") != (before["hash"] if before else START) or record.get("index") != number:
        raise damaged("it does not follow the record before it")
    if (record.get("kind") == "header") != (number == 0):
        raise damaged("the header is the first record and only that")
    return dict(record)


def _complete(rest: bytes) -> bool:
    """Whether the bytes begin with a whole JSON value. A record torn by a crash is a proper prefix and does not."""
    try:
        json.JSONDecoder().raw_decode(rest.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _canonical(record: Record) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _digest(record: Record) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()
