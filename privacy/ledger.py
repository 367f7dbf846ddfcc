"""The hospital's durable record of what its patients have spent: reserve, then compute.

Guarantee     whatever crashes and whenever, the epsilon on record is at least that of the noise already released: a
              reservation is written and fsynced before `reserve` returns, and nothing is ever refunded
Relation      add or remove all data of one patient of the cohort; all runs and rounds on that cohort compose
Form          JSON lines, append-only, chained by hashes (chain.py); the header is record 0
One writer    an exclusive `flock` spans read, check and append. A second writer waits, then fails with LedgerError

| edge case                            | what happens                                                               |
|--------------------------------------|----------------------------------------------------------------------------|
| the work would pass the cap          | BudgetExceeded; nothing is written                                         |
| noise_multiplier 0                   | epsilon is infinite: BudgetExceeded, but with an infinite cap (rehearsals) |
| killed after the write               | the reservation counts, though nothing may have been computed              |
| last line whole, its newline missing | it counts; the next reservation ends the line first                        |
| last line torn                       | `reserve` had not returned, so nothing was computed: the bytes move to     |
|                                      | <name>.torn-N, and a record of kind "repair" says so                       |
| any byte changed                     | LedgerError names the record; nothing more is reserved                     |
| file empty or gone during use        | LedgerError: a ledger is born together with its header                     |
| another cohort, or a larger delta    | LedgerError                                                                |
| another cap, or a smaller delta      | the hospital's right; every record keeps those under which it was made     |
| who was in the cohort is not known   | the reservation counts for everybody                                       |
| disk full, or fsync fails            | LedgerError, and the caller must not compute                               |

A hash chain cannot show whole records cut from the end, or a ledger rewritten from its start. Keep the last hash that
`verify` returns somewhere else if that must show.

Several cohorts of one hospital, or one that changes from ingest to ingest, share one ledger: see membership.py. A ledger without
lists of patients, as older versions wrote it, is read as it is, and counts for everybody.

Left out: one person under two keys, which are two ledgers; a signed statement (statement.py).
Needs a POSIX file system with flock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from privacy import accounting, membership
from privacy.accounting import Event
from privacy.durable import sync_folder, told, write_new
from shared import chain
from shared.chain import Chain, Record
from shared.errors import BudgetExceeded, LedgerError, PrivacyError

VERSION = 1
TOLERANCE = 1e-9  # of the comparison with the cap: rounding only
POLL_S = 0.02


class Ledger:
    """The ledger of one hospital's key. The file is created when it is absent.

    path        the file; its folder exists
    cohort      name that the key stands for; all work on its patients goes through this one file
    cap         epsilon per patient that the total never passes at `delta`
    separate_cohorts   count only what may have touched a patient of the cohort at hand; else everything counts for everybody
    timeout_s   how long to wait for another writer

    Raises LedgerError when the file is damaged, locked, of another cohort, or began with a smaller delta.
    """

    def __init__(
        self,
        path: Path,
        *,
        cohort: str,
        cap: float,
        delta: float,
        separate_cohorts: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        if not cap > 0 or not 0 < delta < 1:
            raise PrivacyError(f"a ledger needs a positive cap and a delta between 0 and 1, not {cap} and {delta}")
        self.path, self.cohort, self.cap, self.delta, self.timeout_s = Path(path), cohort, cap, delta, timeout_s
        self.separate = separate_cohorts
        if not self.path.exists():
            self._create()
        with _locked(self.path, self.timeout_s, write=True) as file:
            self._open(file)

    def reserve(
        self,
        event: Event,
        *,
        run: str,
        purpose: str,
        members: Collection[str] | None = None,
        then: Sequence[Event] = (),
        told_delta: float | None = None,
    ) -> float:
        """Record `event` as spent, on disk, before it is computed.

        run, purpose   what it is for, in the operator's words, at most 200 characters; no patient data
        members        keyed pseudonyms of all patients that it may touch; none: not known, so it counts for everybody
        then           what the caller is about to reserve next: refused now, together, rather than half-way
        told_delta     delta at which epsilon is returned and named in a refusal, both of which may travel; none: the
                       ledger's own, which may follow from the number of patients. The cap holds at the ledger's own

        Returns epsilon per patient after it, over everything on record that counts. Raises BudgetExceeded, with nothing written,
        when that passes the cap, and LedgerError when the record cannot be made durable. After an error, do not compute.
        """
        if max(len(run), len(purpose)) > 200:
            raise PrivacyError("`run` and `purpose` of a reservation have at most 200 characters each")
        with _locked(self.path, self.timeout_s, write=True) as file:
            found = self._open(file)
            if self.separate and members is not None:
                groups = membership.groups(self.path, found.records, members)
            else:
                groups = [membership.events(found.records)]
            before = max(groups, key=lambda spent: accounting.epsilon([*spent, event, *then], self.delta))
            if not accounting.epsilon([*before, event, *then], self.delta) <= self.cap + TOLERANCE:
                raise self._exceeded(before, [event, *then], told_delta)
            after = self._worst(groups, event, self.delta)
            with told(self.path):
                name = None if members is None else membership.keep(self.path, members)
            limits = {"epsilon": _finite(after), "cap": _finite(self.cap), "delta": self.delta}
            who = {"members": name, "separate_cohorts": self.separate}
            _append(
                file,
                self.path,
                found,
                {"kind": "reserve", **event.to_dict(), "run": run, "purpose": purpose, **limits, **who},
            )
        return self._worst(groups, event, told_delta or self.delta)

    def events(self) -> list[Event]:
        """Everything reserved so far, in order."""
        return membership.events(self.records())

    def epsilon(self) -> float:
        """Epsilon per patient of everything reserved so far, at the ledger's delta: no patient has spent more."""
        return membership.largest(self.path, self.records(), self.delta)

    def records(self) -> list[Record]:
        """Every whole record, the header first."""
        with _locked(self.path, self.timeout_s, write=False) as file:
            return _read(file, self.path).records

    @staticmethod
    def _worst(groups: list[list[Event]], event: Event, delta: float) -> float:
        return max(accounting.epsilon([*before, event], delta) for before in groups)

    def _exceeded(self, before: list[Event], asked: list[Event], told_delta: float | None) -> BudgetExceeded:
        delta = told_delta or self.delta
        spent, alone, after = (accounting.epsilon(events, delta) for events in (before, asked, [*before, *asked]))
        own = (
            ". The cap holds at the site's own delta, at most this one: a smaller `privacy.delta` in the experiment "
            "plans with it, or the hospital sets `delta` in its file"
        )
        return BudgetExceeded(
            f'cohort "{self.cohort}": epsilon {spent:.4f} per patient is spent and {alone:.4f} is asked, together '
            f"{after:.4f}; the cap is {self.cap:.4f} (delta {delta:g}). Nothing was computed. Ask for more noise or "
            f"fewer steps; only the hospital can raise `epsilon_cap`{own if told_delta else ''}"
        )

    def _open(self, file: int) -> Chain:
        """Check the chain and whose it is, and set a torn last line aside. The caller holds the lock for writing."""
        found = _read(file, self.path)
        header = found.records[0]
        for key, mine in (("cohort", self.cohort), ("version", VERSION)):
            if header.get(key) != mine:
                raise LedgerError(
                    f'{self.path.name} is of {key} "{header.get(key)}", not "{mine}"; open it as what it is, or begin '
                    "another ledger for another cohort"
                )
        if self.delta > header["delta"]:
            raise LedgerError(  # without saying which: it may follow from the number of patients, and this line may travel
                f"{self.path.name} is of a smaller delta than {self.delta:g}, and a larger one would weaken what was promised; "
                "`fedsynth privacy ledger show` says which: set `delta` to that or less"
            )
        if not found.torn:
            return found
        with told(self.path):
            number = next(n for n in range(1, 10**6) if not self._aside(n).exists())
            write_new(self._aside(number), found.torn)
            os.truncate(file, found.whole)
        digest = hashlib.sha256(found.torn).hexdigest()
        moved = {"torn_file": self._aside(number).name, "torn_bytes": len(found.torn), "torn_sha256": digest}
        _append(file, self.path, found, {"kind": "repair", **moved})
        return _read(file, self.path)

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.torn-{number}")

    def _create(self) -> None:
        """Born whole: written aside, fsynced, then linked to its name, which yields to whoever was faster."""
        header: Record = {
            "kind": "header",
            "version": VERSION,
            "time": _now(),
            "cohort": self.cohort,
            "delta": self.delta,
            "unit_of_privacy": "patient",
            "neighbouring_relation": "add or remove all data of one patient",
        }
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.{time.monotonic_ns()}")
        with told(self.path):
            try:
                write_new(aside, chain.line(header, None))
                with contextlib.suppress(FileExistsError):
                    self.path.hardlink_to(aside)
            finally:
                aside.unlink(missing_ok=True)
            sync_folder(self.path.parent)


def _finite(value: float) -> float | None:
    """JSON has no infinity: null stands for it."""
    return value if math.isfinite(value) else None


def delta_of(path: Path) -> float | None:
    """The delta with which a ledger began: the largest at which it may be used. None where there is no ledger yet."""
    if not path.exists():
        return None
    with _locked(path, timeout_s=60.0, write=False) as file:
        return float(_read(file, path).records[0]["delta"])


def delta_now(records: list[Record]) -> float:
    """The delta at which the last reservation was counted, or that of the header."""
    return float(next((r["delta"] for r in reversed(records) if "delta" in r), records[0]["delta"]))


def verify(path: Path) -> list[Record]:
    """Check a ledger offline, without changing it, and return its records, the header first.

    Raises LedgerError naming the record when a byte was changed, a link is broken, or the last line is torn.
    """
    with _locked(path, timeout_s=60.0, write=False) as file:
        found = _read(file, path)
    if found.torn:
        raise LedgerError(
            f"{path.name}: record {len(found.records)} is torn: a crash while it was written, before anything was "
            "computed for it; the next use of the ledger sets it aside"
        )
    return found.records


@contextlib.contextmanager
def _locked(path: Path, timeout_s: float, *, write: bool) -> Iterator[int]:
    """The open file, under an exclusive lock for writing or a shared one for reading."""
    with told(path):
        file = os.open(path, os.O_RDWR | os.O_APPEND if write else os.O_RDONLY)
    try:
        patience = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if write else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patience:
                    raise LedgerError(
                        f"{path.name} is held by another writer for more than {timeout_s:g} s; wait for that run to end"
                    ) from None
                time.sleep(POLL_S)
        yield file
    finally:
        os.close(file)


def _read(file: int, path: Path) -> Chain:
    with told(path):
        found = chain.read(os.pread(file, os.fstat(file).st_size, 0), path.name)
    for number, record in enumerate(found.records):
        try:
            membership.events([record])
        except PrivacyError as error:
            raise LedgerError(f"{path.name}: record {number} is damaged ({error})") from error
    return found


def _append(file: int, path: Path, found: Chain, body: Record) -> None:
    """Add one record and wait until it is on the disk."""
    line = chain.line({**body, "time": _now()}, found.records[-1])
    line = line if found.ended else b"\n" + line
    with told(path):
        if os.write(file, line) != len(line):
            raise LedgerError("the disk is full: the reservation could not be written, so nothing may be computed")
        os.fsync(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
