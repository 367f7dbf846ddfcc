"""Is a journal what was written? Told from the file and its checkpoint alone, offline, on any machine; nothing is changed.

| state     | exit code | what it says                                                                                         |
|-----------|-----------|------------------------------------------------------------------------------------------------------|
| whole     | 0         | no byte changed, nothing missing of what was signed; records since the checkpoint are chained alone  |
| altered   | 4         | a record is not what was written; its number, but where all that was signed was written anew         |
| cut       | 5         | records are missing at the end, from this number on                                                  |
| unsigned  | 6         | the chain is good, and no good checkpoint says where it ends: missing, changed, or of another key    |

The key inside a checkpoint proves nothing about who signed: compare its fingerprint, or give the public key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shared.crypto import signing
from shared.errors import DataError, LedgerError, SignatureError
from shared.journal import chain, journal
from shared.journal.journal import Checkpoint

State = Literal["whole", "altered", "cut", "unsigned"]
EXIT_CODES: dict[State, int] = {"whole": 0, "altered": 4, "cut": 5, "unsigned": 6}
PLACES = (".", "node", "server")  # a work folder keeps its journal in `node`, a run on one machine in `server`


@dataclass(frozen=True)
class JournalState:
    """What was found.

    records   whole records, the header among them, as far as the chain is good
    signed    how many of them the checkpoint covers
    record    number of the first record that is wrong or missing; none where nothing is, or where that cannot be told
    torn      bytes of an entry that a crash cut off; it was never acted on
    key       fingerprint of the key that signed
    """

    path: str
    state: State
    said: str
    records: int = 0
    signed: int = 0
    record: int | None = None
    torn: int = 0
    key: str | None = None
    time: str | None = None


def find(path: Path) -> Path:
    """The journal at `path`: the file itself, or that of a folder. DataError when there is none."""
    if path.is_file():
        return path
    for place in PLACES:
        if (found := path / place / journal.FILE).is_file():
            return found
        if (path / place / journal.CHECKPOINT).is_file():  # the journal is gone, and its checkpoint tells
            return found
    raise DataError(f"there is no {journal.FILE} at {path}")


def verify_journal(path: Path, copy: Path | None = None, public: Ed25519PublicKey | None = None) -> JournalState:
    """Check a journal. `copy`: a checkpoint that was kept elsewhere, beside which its own is checked too."""
    path = find(path)
    try:  # first: a journal that is being written grows while it is read
        signed = [
            journal.checkpoint(place)
            for place in (path.with_name(journal.CHECKPOINT), copy)
            if place and place.exists()
        ]
        doubt = None if copy is None or copy.exists() else f"cannot read {copy}: there is no such file"
    except SignatureError as error:
        signed, doubt = [], str(error)
    data = path.read_bytes() if path.exists() else b""
    name = str(path)
    try:
        found = chain.read(data, path.name, journal.REMEDY) if data else chain.Chain([], 0, b"", True)
    except chain.RecordDamaged as error:
        return JournalState(name, "altered", str(error), error.record, record=error.record)
    except LedgerError:  # not one whole record
        found = chain.Chain([], 0, data, True)
    count, torn = len(found.records), len(found.torn)
    newest = max(signed, key=lambda s: s.records, default=None)
    facts: dict[str, Any] = {"records": count, "torn": torn}
    if newest is not None:
        facts |= {"signed": newest.records}
    for one in signed:
        wrong = journal.disagreement(found.records, one)
        if wrong is not None:
            state: State = "cut" if wrong[0] == "cut" else "altered"
            record = count if state == "cut" else None
            return JournalState(
                name, state, f"{path.name}: {wrong[1]}", record=record, key=one.key, time=one.time, **facts
            )
    if newest is None or doubt:
        said = (
            doubt
            or f"{path.name}: its {count} records are chained, and no checkpoint lies beside it to say where it ends"
        )
        return JournalState(name, "unsigned", said, **facts)
    if public is not None and signing.fingerprint(public) != newest.key:
        said = f"the checkpoint is signed by the key {newest.key}, not by {signing.fingerprint(public)}"
        return JournalState(name, "unsigned", said, key=newest.key, time=newest.time, **facts)
    return JournalState(name, "whole", _said(path, newest, count, torn), key=newest.key, time=newest.time, **facts)


def _said(path: Path, signed: Checkpoint, count: int, torn: int) -> str:
    said = f"{path.name}: {count} records, no byte changed; {signed.records} signed at {signed.time}"
    if count > signed.records:
        said += f", {count - signed.records} since then not yet"
    if torn:
        said += f"; {torn} bytes at the end are of an entry that a crash cut off, before anything was done for it"
    return said
