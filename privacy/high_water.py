"""The high-water mark of a ledger: how many records it had, and the hash of the last. A ledger that does not run through it
is not used.

The chain (shared/journal/chain.py) shows a changed byte, but not a tail that was cut off, or a file that is gone. So the mark lies
beside the ledger, in <name>.mark, and the caller may hold others elsewhere: in the node's journal, at the coordinator.

Guarantee     a record for which something was computed is never forgotten unnoticed, while one of its marks is left: a mark is
              written, fsynced and renamed to its name, and the folder fsynced (without which a power cut could bring back
              the old name), before the ledger's `draw` returns
Relation      none: what the records mean is the ledger's

| edge case                                            | what happens                                                             |
|------------------------------------------------------|--------------------------------------------------------------------------|
| killed between the record and its mark               | the ledger is longer than its mark: it holds, and is moved up            |
| the ledger is shorter, gone, another, or differs at the mark | LedgerError until the privacy office accepts it (`accept`)      |
| no mark, and no record in the form that always had one | a ledger of an older version, or just born: it gets one                |
| no mark, and records that always had one             | LedgerError                                                              |
| the mark itself is damaged                           | LedgerError                                                              |
| ledger, lists and mark brought back together from a backup | only a mark from elsewhere shows it                                |

A decision of the privacy office is a record of kind "accepted": who, why, and the marks that did not hold. It excuses these
marks and no other, and stays in the ledger for ever. Where the ledger is gone, the decision waits in the mark's file, and
is the first record of the next one; a backup that is put back meanwhile must run through the lost marks as before.

Left out: locking (ledger.py), and whether who decides may decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import LedgerError, PrivacyError
from shared.files import sync_folder, write_new
from shared.journal.chain import Record


@dataclass(frozen=True)
class Mark:
    """A ledger's high-water mark. Raises PrivacyError when a value is none.

    records   how many there were, the header included
    hash      of the last of them, 64 hex digits
    """

    records: int
    hash: str

    def __post_init__(self) -> None:
        if type(self.records) is not int or not 1 <= self.records < 2**63:
            raise PrivacyError("a mark has a whole number of records, from 1")
        if not isinstance(self.hash, str) or not re.fullmatch("[0-9a-f]{64}", self.hash):
            raise PrivacyError("a mark has a hash of 64 hex digits")

    def __str__(self) -> str:
        return f"{self.records}:{self.hash}"


@dataclass(frozen=True)
class Kept:
    """What the file beside a ledger holds: the mark, or a decision that waits for a new ledger."""

    mark: Mark | None
    decision: dict[str, Any] | None = None


def file_of(ledger: Path) -> Path:
    """Where the mark of a ledger lies."""
    return ledger.with_name(f"{ledger.name.removesuffix('.jsonl')}.mark")


def now(records: Sequence[Record]) -> Mark:
    """The mark of a ledger as it stands."""
    return Mark(len(records), records[-1]["hash"])


def load(ledger: Path) -> Kept | None:
    """What lies beside the ledger, or none. LedgerError when it cannot be understood; OSError when it cannot be read."""
    try:
        data = file_of(ledger).read_bytes()
    except FileNotFoundError:
        return None
    try:
        tree = json.loads(data)
        if set(tree) != {"decision"}:
            return Kept(Mark(**tree))
        waits = tree["decision"]
        decision(waits["who"], waits["why"], _lost(waits))
        return Kept(None, {**waits, "time": str(waits["time"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PrivacyError):
        raise LedgerError(
            f"{file_of(ledger).name} is damaged, so nobody knows how long the ledger was; {_cure(ledger)}"
        ) from None


def known(ledger: Path, marks: Sequence[Mark]) -> list[Mark]:
    """The marks that are there to be held against a ledger: its own, where that can be read, and `marks`."""
    try:
        kept = load(ledger)
    except LedgerError:
        kept = None
    own = [] if kept is None else [kept.mark] if kept.mark else _lost(kept.decision or {"lost": []})
    return list(dict.fromkeys([*own, *marks]))


def keep(ledger: Path, kept: Kept) -> None:
    """Write the mark, whole or not at all, and wait until it and its name are on the disk. The caller holds the ledger's lock."""
    path = file_of(ledger)
    aside = path.with_name(f".{path.name}.new")  # one writer only, so one name: what a crash left of it is written over
    aside.unlink(missing_ok=True)
    tree = asdict(kept.mark) if kept.mark else {"decision": kept.decision}
    write_new(aside, json.dumps(tree, sort_keys=True).encode("ascii"))
    aside.replace(path)
    sync_folder(path.parent)


def missing(ledger: Path, marks: Sequence[Mark]) -> None:
    """LedgerError where a ledger that is not there must have been: its mark lies beside it, or one is known from elsewhere."""
    kept = load(ledger)
    excused = _excused([kept.decision]) if kept and kept.decision else set[Mark]()
    if lost := [mark for mark in known(ledger, marks) if mark not in excused]:
        raise LedgerError(
            f"{ledger.name} is gone, and once had {max(m.records for m in lost)} records; {_cure(ledger, lost)}"
        )


def check(ledger: Path, records: Sequence[Record], marks: Sequence[Mark]) -> None:
    """LedgerError unless the ledger runs through its own mark and through all of `marks`, or they were accepted."""
    kept = load(ledger)
    if lost := unheld(ledger, records, marks):
        most = max(lost, key=lambda mark: mark.records)
        raise LedgerError(
            f"{ledger.name} has {len(records)} records and does not run through its mark at {most.records}: it was cut, or "
            f"another one lies in its place; {_cure(ledger, lost)}"
        )
    if kept is None:
        forgotten = True
    else:  # a decision that waits for a new ledger, and no mark that this one could be held against
        waits = kept.decision
        forgotten = waits is not None and not waits["lost"] and waits["time"] not in _times(records)
    if forgotten and any(_always_marked(record) for record in records):
        raise LedgerError(f"{file_of(ledger).name} is gone, so nobody knows how long the ledger was; {_cure(ledger)}")


def unheld(ledger: Path, records: Sequence[Record], marks: Sequence[Mark]) -> list[Mark]:
    """Those of the known marks that the ledger does not run through and nobody accepted."""
    excused = _excused([record for record in records if record["kind"] == "accepted"])
    return [m for m in known(ledger, marks) if not through(records, m) and m not in excused]


def decision(who: str, why: str, lost: Sequence[Mark]) -> dict[str, Any]:
    """The body of the record by which the privacy office goes on without what is lost. PrivacyError when it says nothing."""
    for name, text, most in (("who", who, 200), ("why", why, 500)):
        if not text.strip() or len(text) > most or not text.isprintable():
            raise PrivacyError(f"`{name}` of a decision is one line of 1 to {most} characters")
    return {"kind": "accepted", "who": who, "why": why, "lost": [asdict(mark) for mark in lost]}


def through(records: Sequence[Record], mark: Mark) -> bool:
    """Whether a ledger has the record of a mark."""
    return mark.records <= len(records) and records[mark.records - 1]["hash"] == mark.hash


def _excused(decisions: Sequence[Record]) -> set[Mark]:
    return {mark for record in decisions for mark in _lost(record)}


def _lost(decided: Record) -> list[Mark]:
    return [Mark(**mark) for mark in decided["lost"]]


def _times(records: Sequence[Record]) -> set[str]:
    return {record["time"] for record in records if record["kind"] == "accepted"}


def _always_marked(record: Record) -> bool:
    return record["kind"] in ("draw", "accepted") or "rounds" in record


def _cure(ledger: Path, lost: Sequence[Mark] = ()) -> str:
    named = "".join(f" --mark {mark}" for mark in lost)
    return (
        "nothing may be computed. Restore it from a backup that is as new; failing that, the privacy office decides: `fedsynth "
        f"privacy ledger accept {ledger.name}{named} --who NAME --why TEXT`"
    )
