"""How far each site's ledger had come when it last answered: a second witness, outside the hospital, of what was spent there.

Every update says how many records the site's ledger holds, and the hash of the last (public already: it tells what the coordinator
asked for). A ledger can only grow.

    FOLDER/ledgers.json         of a federation over a network: it outlives runs
    RUN/server/ledgers.json     of a run on one machine

Guarantee     an update that comes with a ledger shorter than one that was shown when its question was put, or as long and with
              another end, is not used, until the hospital's privacy office has decided and `fedsynth server accept-ledger` has
              written down who and why, in the journal

| edge case                                            | what happens                                                       |
|------------------------------------------------------|--------------------------------------------------------------------|
| a site that never showed a ledger (a simulation)     | nothing is kept of it                                              |
| one that showed a ledger and now shows none          | rejected: absence is not innocence                                 |
| the same reply again, after a restart                | the same count and hash: taken                                     |
| two runs at once, whose replies are opened in another order than they were made | compared with what stood when each was asked |
| a longer ledger that does not begin with the one before | not seen here: only its end is told; the hospital's own verifier looks |
| the coordinator's file is gone or damaged            | LedgerError: nothing runs until somebody has looked                |
| the coordinator's file is older than it was          | not seen: whoever may write the folder can do that                 |

Left out: the hospital's own marks (its ledger, its journal).
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field

from server import journal
from shared.config.record import Positive, Record
from shared.errors import FederationError, LedgerError, MessageError
from shared.files import write_bytes
from shared.journal import journal as journals

FILE = "ledgers.json"
Shown = tuple[int, str]  # records, hash of the last
REMEDY = "put it back from a copy; where there is none, `{}` in it takes every site's next ledger as it comes"


class Mark(Record):
    """The end of a ledger."""

    records: Positive
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Entry(Record):
    """Of one site: the newest ledger that was taken, and one that was shown since and was not."""

    taken: Mark
    refused: Mark | None = None


class Book(Record):
    """The file."""

    sites: dict[str, Entry] = Field(default={})


class Ledgers:
    """The marks of all sites, for one run. `run`: its folder."""

    def __init__(self, run: Path) -> None:
        self.folder = journal.folder_of(run)

    def standing(self) -> dict[str, Shown]:
        """What each site has shown so far. LedgerError where the file is gone or damaged."""
        return {site: (e.taken.records, e.taken.hash) for site, e in _read(self.folder).sites.items()}

    def check(self, site: str, shown: Shown, since: Mapping[str, Shown]) -> None:
        """MessageError, and a note of what was shown, when a ledger has gone back. `since`: what stood when the site was asked."""
        with _held(self.folder) as book:
            entry = book.sites.get(site)
            if entry is None:
                return
            now = (entry.taken.records, entry.taken.hash)
            if _follows(now, shown) or _follows(since.get(site, now), shown):
                return
            if shown[0]:
                refused = Mark(records=shown[0], hash=shown[1])
                _write(self.folder, book, site, entry.model_copy(update={"refused": refused}))
        records, last = since.get(site, now)
        what = "is not" if shown[0] == records else "is shorter than"
        has = f"{shown[0]} records, {shown[1][:12]}" if shown[0] else "it shows none"
        raise MessageError(
            f"its ledger ({has}) {what} the one that it showed before ({records} records, {last[:12]}); its privacy office must "
            "decide, then `fedsynth server accept-ledger`"
        )

    def keep(self, site: str, shown: Shown) -> None:
        """Remember the ledger of a site whose update was taken, on the disk, unless a later one was shown meanwhile."""
        if not shown[0]:
            return
        with _held(self.folder) as book:
            entry = book.sites.get(site)
            if entry is None or shown[0] > entry.taken.records:
                _write(self.folder, book, site, Entry(taken=Mark(records=shown[0], hash=shown[1])))


def accept(folder: Path, site: str, why: str) -> Mark:
    """Take the ledger that a site showed last, and that was refused, for its own from now on. `folder`: of the federation."""
    if not why.strip():
        raise FederationError("say who decided at the hospital, and why, with --why")
    with _held(folder) as book:
        entry = book.sites.get(site)
        if entry is None or entry.refused is None:
            known = ", ".join(sorted(name for name, e in book.sites.items() if e.refused)) or "none"
            raise FederationError(f"no ledger of `{site}` was refused; sites of which one was: {known}")
        new = entry.refused
        told = {"records": new.records, "end": new.hash, "before": entry.taken.records}
        journals.write(folder, "ledger_accepted", site=site, reason=why, **told)
        _write(folder, book, site, Entry(taken=new))
    return new


def alarms(folder: Path) -> list[str]:
    """What a person must look at, one line each."""
    try:
        book = _read(folder)
    except LedgerError as error:
        return [str(error)]
    return [
        f"the ledger of {site} was refused ({e.refused.records} records after {e.taken.records}); its privacy office must decide, "
        "then `fedsynth server accept-ledger`"
        for site, e in sorted(book.sites.items())
        if e.refused
    ]


def _follows(before: Shown, after: Shown) -> bool:
    return after[0] > before[0] or after == before


def _read(folder: Path) -> Book:
    path = folder / FILE
    try:
        return Book.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        begun = any(entry["kind"] == "ledgers_begun" for entry in journals.read(folder))
    except (OSError, ValueError) as error:
        raise LedgerError(f"{path} cannot be read, and it says what each site's ledger held; {REMEDY}") from error
    if begun:
        raise LedgerError(f"{path} is gone, and it says what each site's ledger held; {REMEDY}")
    return Book()


@contextmanager
def _held(folder: Path) -> Iterator[Book]:
    """The book, and nobody else writes meanwhile: several runs of one federation keep one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{FILE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _read(folder)


def _write(folder: Path, book: Book, site: str, entry: Entry) -> None:
    path = folder / FILE
    if not path.exists():
        journals.write(folder, "ledgers_begun")
    whole = Book(sites={**book.sites, site: entry})
    write_bytes(path, whole.model_dump_json(indent=2).encode())
