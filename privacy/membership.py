"""Who was in the cohort when something was spent, and what one patient has spent over several cohorts.

Each reservation names the list of patients it may touch by the SHA-256 of that list, so the chain covers it. The list itself,
keyed pseudonyms, one a line, lies beside the ledger in <name>.members/<sha256>.txt, for its owner alone, and never leaves.

Guarantee     an event that touched a patient is counted for that patient; an event whose list is not known is counted for all
Relation      add or remove all data of one patient
How           patients who are in the same lists have spent the same. Of these groups only those count whose lists are not all
              among another group's: that other group has spent at least as much

| edge case                                              | what happens                                                |
|--------------------------------------------------------|-------------------------------------------------------------|
| a record without a list (written before there were any)| it counts for everybody                                     |
| the list is missing, or a byte of it was changed       | the same                                                    |
| a patient is dropped from the cohort, or added         | a new list; what was spent on the old one stays with whom it touched |
| the same person under two keys                         | not seen: two keys are two ledgers. One hospital, one key   |

Whether two lists share a patient is itself a fact about patients: the epsilon that is told afterwards shows it, and so does a
refusal at the cap. So cohorts are counted apart only where the hospital's own file asks for it (`separate_cohorts`).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from privacy.accounting import Event, epsilon
from privacy.durable import write_new

Record = dict[str, Any]
EVENT_KEYS = ("noise_multiplier", "sampling_rate", "steps")


def folder(ledger: Path) -> Path:
    """Where the lists of a ledger lie."""
    return ledger.with_name(f"{ledger.name.removesuffix('.jsonl')}.members")


def keep(ledger: Path, members: Collection[str]) -> str:
    """Write the list durably, unless it is there already, and return its SHA-256 in hex. OSError when that fails."""
    data = _spell(members)
    name = hashlib.sha256(data).hexdigest()
    path = folder(ledger) / f"{name}.txt"
    if load(ledger, name) is None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)  # damaged: its name says what it must hold
        with contextlib.suppress(FileExistsError):  # another writer of the same list was faster
            write_new(path, data)
    return name


def load(ledger: Path, name: str | None) -> frozenset[str] | None:
    """The patients of a list, or none where it is not known for certain."""
    if name is None:
        return None
    try:
        data = (folder(ledger) / f"{name}.txt").read_bytes()
    except OSError:
        return None
    return frozenset(data.decode("ascii").split()) if hashlib.sha256(data).hexdigest() == name else None


def events(records: Sequence[Record]) -> list[Event]:
    """What the reservations among `records` reserved, in order. PrivacyError for one that is no event."""
    return [Event.from_dict({key: r.get(key) for key in EVENT_KEYS}) for r in records if r.get("kind") == "reserve"]


def groups(ledger: Path, records: Sequence[Record], members: Collection[str] | None = None) -> list[list[Event]]:
    """What each group of patients has spent: events that touched it or may have. Never empty.

    members   only groups of these patients; none: of everybody on any list
    """
    lists = {name: load(ledger, name) for name in {r.get("members") for r in records if r.get("kind") == "reserve"}}
    known = {name: found for name, found in lists.items() if found is not None}
    people = frozenset().union(*known.values()) if members is None else frozenset(members)
    touched = {frozenset(name for name, found in known.items() if who in found) for who in people} or {frozenset()}
    most = [mine for mine in touched if not any(mine < other for other in touched)]
    return [events([r for r in records if r.get("members") in mine or r.get("members") not in known]) for mine in most]


def counted(ledger: Path, records: Sequence[Record]) -> list[list[Event]]:
    """The groups as the last reservation counted them: apart, or, unless it says so, everything as one."""
    spent = [r for r in records if r.get("kind") == "reserve"]
    apart = bool(spent) and spent[-1].get("separate_cohorts") is True
    return groups(ledger, spent) if apart else [events(spent)]


def unknown(ledger: Path, records: Sequence[Record]) -> int:
    """How many reservations count for everybody, because it is not known for certain whom they touched."""
    names = [r.get("members") for r in records if r.get("kind") == "reserve"]
    lost = {name for name in set(names) if load(ledger, name) is None}
    return sum(name in lost for name in names)


def largest(ledger: Path, records: Sequence[Record], delta: float) -> float:
    """The most that any patient on record has spent."""
    return max(epsilon(found, delta) for found in counted(ledger, records))


def _spell(members: Collection[str]) -> bytes:
    return "".join(f"{name}\n" for name in sorted(set(members))).encode("ascii")
