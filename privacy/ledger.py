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
| another cohort or another delta      | LedgerError                                                                |
| another cap than last time           | the hospital's right; every record keeps the cap under which it was made   |
| disk full, or fsync fails            | LedgerError, and the caller must not compute                               |

A hash chain cannot show whole records cut from the end, or a ledger rewritten from its start. Keep the last hash that
`verify` returns somewhere else if that must show.

Left out: one patient in two cohorts (compose both `events()` with `accounting.epsilon`), and a signed statement.
Needs a POSIX file system with flock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from privacy import accounting, chain
from privacy.accounting import Event
from privacy.chain import Chain, Record
from shared.errors import BudgetExceeded, LedgerError, PrivacyError

VERSION = 1
TOLERANCE = 1e-9  # of the comparison with the cap: rounding only
POLL_S = 0.02


class Ledger:
    """One cohort's ledger at one hospital. The file is created when it is absent.

    path        the file; its folder exists
    cohort      name of the group of patients; all work on them goes through this one file
    cap         epsilon per patient that the total never passes at `delta`
    timeout_s   how long to wait for another writer

    Raises LedgerError when the file is damaged, locked, or of another cohort or delta.
    """

    def __init__(self, path: Path, *, cohort: str, cap: float, delta: float, timeout_s: float = 60.0) -> None:
        if not cap > 0 or not 0 < delta < 1:
            raise PrivacyError(f"a ledger needs a positive cap and a delta between 0 and 1, not {cap} and {delta}")
        self.path, self.cohort, self.cap, self.delta, self.timeout_s = Path(path), cohort, cap, delta, timeout_s
        if not self.path.exists():
            self._create()
        with _locked(self.path, self.timeout_s, write=True) as file:
            self._open(file)

    def reserve(self, event: Event, *, run: str, purpose: str) -> float:
        """Record `event` as spent, on disk, before it is computed.

        run, purpose   what it is for, in the operator's words, at most 200 characters; no patient data

        Returns epsilon per patient after it, over everything on record. Raises BudgetExceeded, with nothing written,
        when that passes the cap, and LedgerError when the record cannot be made durable. After an error, do not compute.
        """
        if max(len(run), len(purpose)) > 200:
            raise PrivacyError("`run` and `purpose` of a reservation have at most 200 characters each")
        with _locked(self.path, self.timeout_s, write=True) as file:
            found = self._open(file)
            before = _events(found.records)
            after = accounting.epsilon([*before, event], self.delta)
            if not after <= self.cap + TOLERANCE:
                raise self._exceeded(before, event, after)
            told = {"run": run, "purpose": purpose, "epsilon": _finite(after), "cap": _finite(self.cap)}
            _append(file, self.path, found, {"kind": "reserve", **event.to_dict(), **told})
        return after

    def events(self) -> list[Event]:
        """Everything reserved so far, in order."""
        return _events(self.records())

    def epsilon(self) -> float:
        """Epsilon per patient of everything reserved so far, at the ledger's delta."""
        return accounting.epsilon(self.events(), self.delta)

    def records(self) -> list[Record]:
        """Every whole record, the header first."""
        with _locked(self.path, self.timeout_s, write=False) as file:
            return _read(file, self.path).records

    def _exceeded(self, before: list[Event], event: Event, after: float) -> BudgetExceeded:
        spent, alone = accounting.epsilon(before, self.delta), accounting.epsilon([event], self.delta)
        return BudgetExceeded(
            f'cohort "{self.cohort}": epsilon {spent:.4f} per patient is spent and {alone:.4f} is asked, together '
            f"{after:.4f}; the cap is {self.cap:.4f} (delta {self.delta:g}). Nothing was computed. Ask for more noise or "
            "fewer steps; only the hospital can raise `epsilon_cap`"
        )

    def _open(self, file: int) -> Chain:
        """Check the chain and whose it is, and set a torn last line aside. The caller holds the lock for writing."""
        found = _read(file, self.path)
        header = found.records[0]
        for key, mine in (("cohort", self.cohort), ("delta", self.delta), ("version", VERSION)):
            if header.get(key) != mine:
                raise LedgerError(
                    f'{self.path.name} is of {key} "{header.get(key)}", not "{mine}"; open it as what it is, or begin '
                    "another ledger for another cohort"
                )
        if not found.torn:
            return found
        with _told(self.path):
            number = next(n for n in range(1, 10**6) if not self._aside(n).exists())
            _write_new(self._aside(number), found.torn)
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
        with _told(self.path):
            try:
                _write_new(aside, chain.line(header, None))
                with contextlib.suppress(FileExistsError):
                    self.path.hardlink_to(aside)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(self.path.parent)


def _finite(value: float) -> float | None:
    """JSON has no infinity: null stands for it."""
    return value if math.isfinite(value) else None


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
    with _told(path):
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
    with _told(path):
        found = chain.read(os.pread(file, os.fstat(file).st_size, 0), path.name)
    for number, record in enumerate(found.records):
        try:
            _events([record])
        except PrivacyError as error:
            raise LedgerError(f"{path.name}: record {number} is damaged ({error})") from error
    return found


def _events(records: list[Record]) -> list[Event]:
    keys = ("noise_multiplier", "sampling_rate", "steps")
    return [Event.from_dict({key: r.get(key) for key in keys}) for r in records if r.get("kind") == "reserve"]


def _append(file: int, path: Path, found: Chain, body: Record) -> None:
    """Add one record and wait until it is on the disk."""
    line = chain.line({**body, "time": _now()}, found.records[-1])
    line = line if found.ended else b"\n" + line
    with _told(path):
        if os.write(file, line) != len(line):
            raise LedgerError("the disk is full: the reservation could not be written, so nothing may be computed")
        os.fsync(file)


def _write_new(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if os.write(file, data) != len(data):
            raise LedgerError(f"the disk is full: {path.name} could not be written")
        os.fsync(file)
    finally:
        os.close(file)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"cannot use the ledger {path}: {error.strerror or error}; nothing may be computed"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
