"""A ledger as a file: its lock, its birth, reading it with its marks, adding to it, and the privacy office's decision.

Guarantee     what `append` returned from is on the disk, and so is the mark that says so; files and their folder are fsynced
Relation      none: what the records mean is ledger.py's, and so are the edge cases

Left out: the cap, and what a plan costs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from privacy import high_water, reservations
from privacy.durable import told
from privacy.high_water import Kept, Mark
from shared.errors import LedgerError, PrivacyError
from shared.files import sync_folder, write_new
from shared.journal import chain
from shared.journal.chain import Chain, Record

VERSIONS = (1, 2)  # 2: written by this code; an older version's refuses what it cannot count
POLL_S = 0.02


def begun(path: Path) -> bool:
    """Whether there is or was a ledger, so that `checked_records` has something to say: the file or its mark is there.

    Where it is gone by the privacy office's decision (`accept`), none has begun. Raises LedgerError when the mark is damaged.
    """
    with told(path):
        kept = high_water.load(path)
    return path.exists() or (kept is not None and kept.mark is not None)


def delta_of(path: Path) -> float | None:
    """The delta with which a ledger began: the largest at which it may be used. None where there is no ledger yet."""
    if not path.exists():
        return None
    with locked(path, timeout_s=60.0, write=False) as file:
        return float(read(file, path).records[0]["delta"])


def delta_now(records: Sequence[Record]) -> float:
    """The delta at which the last reservation was counted, or that of the header."""
    return float(next((r["delta"] for r in reversed(records) if "delta" in r), records[0]["delta"]))


def checked_records(path: Path, marks: Sequence[Mark] = ()) -> list[Record]:
    """Check a ledger offline, without changing it, and return its records, the header first.

    marks   high-water marks known from elsewhere, beside the one in its folder

    Raises LedgerError when a byte was changed, a link is broken, the last line is torn, or it does not run through a mark.
    """
    with told(path):
        if not path.exists():
            high_water.missing(path, marks)
    with locked(path, timeout_s=60.0, write=False) as file:
        found = read(file, path)
        with told(path):
            high_water.check(path, found.records, marks)
    if found.torn:
        raise LedgerError(
            f"{path.name}: record {len(found.records)} is torn: a crash while it was written, before anything was "
            "computed for it; the next use of the ledger sets it aside"
        )
    return found.records


def accept(path: Path, who: str, why: str, marks: Sequence[Mark] = ()) -> list[Mark]:
    """Go on although records are lost, by a decision of the privacy office that stays on record. Returns the marks that did
    not hold.

    marks   from elsewhere, as the refusal names them

    Where the ledger is gone, the decision is the first record of the next one. Raises PrivacyError when nothing is lost,
    and LedgerError when the file that is there is damaged: restore it, or move it away first.
    """
    high_water.decision(who, why, [])
    if not path.exists():
        with told(path):
            lost = high_water.known(path, marks)
            if not lost and not high_water.file_of(path).exists():
                raise PrivacyError(f"{path.name} is not there and never was: there is nothing to accept")
            high_water.keep(path, Kept(None, {**high_water.decision(who, why, lost), "time": _now()}))
        return lost
    with locked(path, timeout_s=60.0, write=True) as file:
        found = read(file, path)
        with told(path):
            with contextlib.suppress(LedgerError):
                high_water.check(path, found.records, marks)
                raise PrivacyError(f"{path.name} runs through its mark: there is nothing to accept")
            lost = [mark for mark in high_water.known(path, marks) if not high_water.through(found.records, mark)]
        found = mended(file, path, found, mark=False)
        append(file, path, found, high_water.decision(who, why, lost))
    return lost


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, *, write: bool) -> Iterator[int]:
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


def read(file: int, path: Path) -> Chain:
    """Every record, its link and its meaning, but not the marks."""
    with told(path):
        found = chain.read(os.pread(file, os.fstat(file).st_size, 0), path.name)
    try:
        reservations.read(found.records)
    except PrivacyError as error:
        raise LedgerError(f"{path.name}: {error}") from error
    return found


def append(file: int, path: Path, found: Chain, body: Record, *, mark: bool = True) -> Chain:
    """Add one record and wait until it, and the mark that runs through it, are on the disk. Returns the ledger as it then is."""
    line = chain.line({**body, "time": _now()}, found.records[-1])
    written = line if found.ended else b"\n" + line
    with told(path):
        if os.write(file, written) != len(written):
            raise LedgerError("the disk is full: the record could not be written, so nothing may be computed")
        os.fsync(file)
        grown = Chain([*found.records, json.loads(line)], found.whole + len(written), b"", True)
        if mark:
            high_water.keep(path, Kept(high_water.now(grown.records)))
    return grown


def mended(file: int, path: Path, found: Chain, *, mark: bool = True) -> Chain:
    """Set a torn last line aside, and move the mark up to where the ledger is. The caller has looked at the marks."""
    if found.torn:
        with told(path):
            number = next(n for n in range(1, 10**6) if not _aside(path, n).exists())
            write_new(_aside(path, number), found.torn)
            os.truncate(file, found.whole)
        digest = hashlib.sha256(found.torn).hexdigest()
        moved = {"torn_file": _aside(path, number).name, "torn_bytes": len(found.torn), "torn_sha256": digest}
        return append(file, path, Chain(found.records, found.whole, b"", True), {"kind": "repair", **moved}, mark=mark)
    with told(path):
        now = Kept(high_water.now(found.records))
        if mark and high_water.load(path) != now:
            high_water.keep(path, now)
    return found


def create(path: Path, cohort: str, delta: float, marks: Sequence[Mark]) -> None:
    """Born whole, where it is absent: written aside, fsynced, then linked to its name, which yields to whoever was faster."""
    with told(path):
        kept = high_water.load(path)  # before the look at the ledger, which always comes into being first
        if path.exists():
            return
        if kept is not None or marks:
            high_water.missing(path, marks)
        header: Record = {
            "kind": "header",
            "version": VERSIONS[-1],
            "time": _now(),
            "cohort": cohort,
            "delta": delta,
            "unit_of_privacy": "patient",
            "neighbouring_relation": "add or remove all data of one patient",
        }
        data = chain.line(header, None)
        if kept is not None and kept.decision:
            data += chain.line(kept.decision, chain.read(data, path.name).records[0])
        aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            write_new(aside, data)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(aside)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.torn-{number}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
