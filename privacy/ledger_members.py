"""Who was in the cohort when something was spent, and what one patient has spent over several cohorts.

Each reservation names the list of patients it may touch by the SHA-256 of that list, so the chain covers it. The list itself, keyed
pseudonyms, one a line, lies beside the ledger in <name>.members/<sha256>.txt, for its owner alone, and never leaves. Which
lists have a patient in common stands in <name>.groups.json, without pseudonyms: who charges the ledger needs no list.

Guarantee     what touched a patient is counted for that patient; what touched a list that is not known is counted for all
Relation      add or remove all data of one patient
How           patients who are in the same lists have spent the same. Of these groups only those count whose lists are not all
              among another group's: that other group has spent at least as much

| edge case                                              | what happens                                                |
|--------------------------------------------------------|-------------------------------------------------------------|
| a record without a list (written before there were any)| it counts for everybody                                     |
| the groups' file is missing or damaged, or does not know the list | the same, until `keep` is called again           |
| a list was damaged or removed when `keep` was called   | the same                                                    |
| a patient is dropped from the cohort, or added         | a new list; what was spent on the old one stays with whom it touched |
| the cohort changes within a run                        | the run's whole plan counts for the old list and for the new one |
| two `keep` at once, or a groups' file from a backup    | a list that it lacks counts for everybody                   |
| the same person under two keys                         | not seen: two keys are two ledgers. One hospital, one key   |

Whether two lists share a patient is itself a fact about patients: the epsilon that is told afterwards shows it, and so does a
refusal at the cap. So cohorts are counted apart only where the hospital's own file asks for it (`separate_cohorts`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from privacy.reservations import Reservation
from shared.errors import LedgerError, PrivacyError
from shared.files import replace, write_new
from shared.journal import chain
from shared.journal.chain import Record

Groups = tuple[frozenset[str], frozenset[frozenset[str]]]  # every known list, and the lists of each group of patients


def folder(ledger: Path) -> Path:
    """Where the lists of a ledger lie."""
    return ledger.with_name(f"{ledger.name.removesuffix('.jsonl')}.members")


def groups_file(ledger: Path) -> Path:
    """Where it stands which of them share a patient."""
    return ledger.with_name(f"{ledger.name.removesuffix('.jsonl')}.groups.json")


def keep(ledger: Path, members: Collection[str]) -> str:
    """Write the list, and which lists share a patient, durably. Returns its SHA-256 in hex. OSError when that fails."""
    data = "".join(f"{name}\n" for name in sorted(set(members))).encode("ascii")
    name = hashlib.sha256(data).hexdigest()
    path = folder(ledger) / f"{name}.txt"
    if _load(path) is None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)  # damaged: its name says what it must hold
        with contextlib.suppress(FileExistsError):  # another writer of the same list was faster
            write_new(path, data)
    if name not in _groups(ledger)[0]:
        _write_groups(ledger)
    return name


def name_of(ledger: Path, members: str | Collection[str] | None) -> str | None:
    """The name of a list: one that was kept earlier as it is, a list of pseudonyms after keeping it, None for not known."""
    if members is None:
        return None
    if not isinstance(members, str):
        return keep(ledger, members)
    if not re.fullmatch("[0-9a-f]{64}", members):
        raise PrivacyError("a list of patients is named by the 64 hex digits of its SHA-256")
    return members


def counted(ledger: Path, records: Sequence[Record], reservations: Sequence[Reservation]) -> list[list[Reservation]]:
    """The groups as the last record counted them: apart, or, unless it says so, everything as one."""
    spent = [r for r in records if r["kind"] in ("reserve", "draw")]
    apart = bool(spent) and spent[-1].get("separate_cohorts") is True
    return groups(ledger, reservations) if apart else [list(reservations)]


def groups(ledger: Path, reservations: Sequence[Reservation], members: str | None = None) -> list[list[Reservation]]:
    """What each group of patients has spent: reservations that touched it or may have, in order. Never empty.

    members   only groups with a patient of this list; none: all groups
    """
    known, together = _groups(ledger)
    if members is not None and members not in known:
        return [list(reservations)]
    used = {name for r in reservations for name in r.lists if name is not None} & known
    touched = {mine & used for mine in together if members is None or members in mine} or {frozenset()}
    most = [mine for mine in touched if not any(mine < other for other in touched)]
    return [[r for r in reservations if r.lists & mine or not r.lists <= known] for mine in most]


def unknown(ledger: Path, reservations: Sequence[Reservation]) -> int:
    """How many reservations count for everybody, because it is not known for certain whom they touched."""
    known = _groups(ledger)[0]
    return sum(not r.lists <= known for r in reservations)


def _groups(ledger: Path) -> Groups:
    """What the groups' file says; nothing where it is missing, damaged, or says something that cannot be."""
    try:
        (record,) = chain.read(groups_file(ledger).read_bytes(), "groups").records
        lists = frozenset(map(str, record["lists"]))
        together = frozenset(frozenset(map(str, mine)) for mine in record["groups"])
    except (OSError, LedgerError, ValueError, KeyError, TypeError):
        return frozenset(), frozenset()
    whole = frozenset[str]().union(*together) == lists
    return (lists, together) if whole else (frozenset(), frozenset())


def _write_groups(ledger: Path) -> None:
    """Read every list anew, and write which of them share a patient. Only the sets that are not within another are needed."""
    lists = {path.stem: found for path in sorted(folder(ledger).glob("*.txt")) if (found := _load(path))}
    lists_of: dict[str, set[str]] = {}
    for name, people in lists.items():
        for who in people:
            lists_of.setdefault(who, set()).add(name)
    touched = {frozenset(mine) for mine in lists_of.values()}
    most = sorted(sorted(mine) for mine in touched if not any(mine < other for other in touched))
    replace(groups_file(ledger), chain.line({"kind": "header", "lists": sorted(lists), "groups": most}, None))


def _load(path: Path) -> frozenset[str] | None:
    """The patients of a list, or none where it is not known for certain."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return frozenset(data.decode("ascii").split()) if hashlib.sha256(data).hexdigest() == path.stem else None
