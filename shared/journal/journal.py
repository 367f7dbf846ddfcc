"""A journal, the audit log of either side: what was asked, decided, refused and sent. One format, one verifier.

    journal.jsonl        one entry a line, chained by hashes (chain.py), on the disk before the work goes on
    journal.checkpoint   signed (Ed25519) after every entry: how many records there are, and the hash of the last
    journal.key.pem      signs it; mode 0600. journal.pub.pem is its public half, for whoever verifies elsewhere

No patient data: an entry is one of ENTRIES with its fields alone, which are names, hashes, numbers, and reasons in our words.

| edge case                                       | what happens                                                            |
|-------------------------------------------------|-------------------------------------------------------------------------|
| a byte changed anywhere                         | LedgerError names the record; nothing is appended any more              |
| records cut off the end, the journal gone       | LedgerError says how many are missing, from the checkpoint              |
| the journal written anew, with good hashes      | LedgerError: its records are not those that were signed                 |
| killed between entry and checkpoint             | the entry counts, unsigned; the next one signs both                     |
| killed in the middle of an entry                | it was never acted on: the torn bytes are cut off by the next entry     |
| a journal of an older version, without a key    | goes on, and is signed from the next entry on                           |
| a field that is not in ENTRIES                  | our own mistake: ValueError, nothing is written                         |

A checkpoint shows that records are missing only to who still has it. Whoever may write the folder can also put back an older
journal with its older checkpoint, or sign anew with the key: keep copies of the checkpoint elsewhere, and verify with them.

Left out: trusted time; copies kept by the other side.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.config.record import Record
from shared.crypto import keys, signing
from shared.errors import LedgerError, SignatureError
from shared.files import write_bytes
from shared.journal import chain

FILE, CHECKPOINT, KEY, PUBLIC = "journal.jsonl", "journal.checkpoint", "journal.key.pem", "journal.pub.pem"
REMEDY = "move journal.jsonl and journal.checkpoint away and keep both; new ones begin by themselves"
KIND = "fedsynth journal checkpoint"
LONGEST = 500  # characters of a text

ENTRIES: dict[str, frozenset[str]] = {
    # a hospital
    "joined": frozenset({"federation", "server", "authority"}),
    "approved": frozenset({"bundle", "key"}),
    "withdrawn": frozenset({"bundle", "count"}),
    "started": frozenset({"site", "server", "app_network", "app_files"}),
    "asked": frozenset(
        {"run", "experiment", "round", "epsilon", "about", "bundle", "configuration", "ledger_records", "ledger_hash"}
    ),
    "refused": frozenset({"run", "reason"}),
    "dropped": frozenset({"reason"}),
    "kept back": frozenset({"run", "reason"}),
    "failed": frozenset({"run", "round", "reason"}),
    "sent": frozenset({"run", "round", "epsilon", "tensors", "passed", "refused"}),
    # the coordinator
    "provisioned": frozenset({"made", "authority"}),
    "site_approved": frozenset({"site", "key", "until"}),
    "site_revoked": frozenset({"site", "key"}),
    "ledgers_begun": frozenset(),
    "ledger_accepted": frozenset({"site", "records", "end", "before", "reason"}),
    "serving": frozenset({"federation", "address"}),
    "run_asked": frozenset({"run", "configuration", "sites", "rounds", "epsilon"}),
    "run_launched": frozenset({"run", "configuration", "bundle", "flower"}),
    "run_stopped": frozenset({"run"}),
    "run_started": frozenset({"run", "configuration", "sites", "rounds", "noise_multiplier"}),
    "run_resumed": frozenset({"run", "configuration", "round"}),
    "round_started": frozenset({"run", "round", "asked"}),
    "site_failed": frozenset({"run", "round", "site", "reason"}),
    "round_finished": frozenset({"run", "round", "contributed"}),
    "round_failed": frozenset({"run", "round", "attempt", "reason"}),
    "run_failed": frozenset({"run", "reason"}),
    "run_finished": frozenset({"run", "round"}),
    "site_judged": frozenset({"run", "site", "passed"}),
    "site_did_not_judge": frozenset({"run", "site", "reason"}),
    "release_refused": frozenset({"run", "failed", "reason"}),
    "release_forced": frozenset({"run", "failed", "reason"}),
    "release_passed": frozenset({"run"}),
    "released": frozenset({"run", "sums", "key"}),
}


@dataclass(frozen=True)
class Checkpoint:
    """What was signed: so many records, the hash of the last, when, and by which key (fingerprint)."""

    records: int
    hash: str
    time: str
    key: str


def write(folder: Path, kind: str, **fields: Any) -> None:
    """Append an entry to the journal of a folder, durably, and sign.

    LedgerError when the journal is damaged or cannot be written: then the work does not go on until somebody has looked.
    SignatureError when the key is open to others.
    """
    if kind not in ENTRIES or not fields.keys() <= ENTRIES[kind]:
        raise ValueError(f"a journal has no entry `{kind}` with {sorted(fields)}")
    body = {"kind": kind, "time": keys.now().isoformat(), **{name: _plain(value) for name, value in fields.items()}}
    path = folder / FILE
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _append(file, folder, body)
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}; nothing goes on without it") from error


def _append(file: BinaryIO, folder: Path, body: dict[str, Any]) -> None:
    key = signing.load_or_make(folder / KEY)
    mine = signing.fingerprint(key.public_key())
    signed = checkpoint(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    data = file.read()
    if b"\n" not in data and (signed is None or signed.records == 1):  # none yet, or killed while the first was written
        header = {"kind": "header", "name": "fedsynth journal", "version": 2, "time": body["time"], "key": mine}
        lines = chain.line(header, None)
        records, whole = chain.read(lines, FILE).records, 0
        write_bytes(folder / PUBLIC, signing.public_pem(key.public_key()).encode())
        _sign(folder, key, records)  # first: no journal that names a key is ever without a checkpoint
    else:
        found = chain.read(data, FILE, REMEDY) if data else chain.Chain([], 0, b"", True)
        records, whole, lines = found.records, found.whole, b"" if found.ended else b"\n"
        if (wrong := disagreement(records, signed)) is not None:
            raise LedgerError(f"{FILE}: {wrong[1]}; {REMEDY}")
        if records[0].get("key", mine) != mine:
            raise LedgerError(f"{FILE} is signed by the key {records[0]['key']}, which {KEY} is not; put that one back")
    line = chain.line(body, records[-1])
    file.truncate(whole)  # a torn last line was never acted on
    file.seek(whole)
    file.write(lines + line)
    file.flush()
    os.fsync(file.fileno())
    _sign(folder, key, [*records, json.loads(line)])


def _sign(folder: Path, key: Any, records: list[chain.Record]) -> None:
    body = {"kind": KIND, "records": len(records), "hash": records[-1]["hash"], "time": keys.now().isoformat()}
    write_bytes(folder / CHECKPOINT, signing.seal(key, body))


def checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file. SignatureError when it cannot be read or a byte of it was changed."""
    try:
        body, public = signing.unseal(path.read_bytes())
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {error.strerror or error}") from error
    except SignatureError as error:
        raise SignatureError(f"{path.name}: {error}") from error
    if body.get("kind") != KIND or not isinstance(body.get("records"), int) or body["records"] < 1:
        raise SignatureError(f"{path.name} is not a journal's checkpoint")
    return Checkpoint(body["records"], str(body.get("hash")), str(body.get("time")), signing.fingerprint(public))


def disagreement(records: list[chain.Record], signed: Checkpoint | None) -> tuple[str, str] | None:
    """How records with good hashes differ from what was signed: "cut", "altered" or "unsigned", and a sentence; none: not at all.

    A journal that names no key was begun by an older version, and need not be signed yet.
    """
    if signed is None:
        if not records or "key" not in records[0]:
            return None
        return "unsigned", "its checkpoint is missing, so nobody can tell whether records were cut off its end"
    if len(records) < signed.records:
        gone = signed.records - len(records)
        return "cut", f"{gone} of the {signed.records} records that were signed at {signed.time} are missing at the end"
    if records[signed.records - 1]["hash"] != signed.hash or records[0].get("key", signed.key) != signed.key:
        return (
            "altered",
            f"its hashes are good, but its first {signed.records} records are not those that were signed at {signed.time}: "
            "it was written anew",
        )
    return None


def read(folder: Path) -> list[chain.Record]:
    """All entries, oldest first, once every link and the checkpoint are checked; empty when there is none."""
    path = folder / FILE
    signed = checkpoint(folder / CHECKPOINT) if (folder / CHECKPOINT).exists() else None
    data = path.read_bytes() if path.exists() else b""  # after the checkpoint: it may have grown in between
    if not data and (signed is None or signed.records == 1):
        return []
    records = chain.read(data, FILE, REMEDY).records if data else []
    if (wrong := disagreement(records, signed)) is not None:
        raise LedgerError(f"{FILE}: {wrong[1]}; {REMEDY}")
    return records[1:]


def configuration(settings: Record | dict[str, Any]) -> str:
    """The SHA-256 of settings: of one experiment the same at the coordinator and at every site that was asked with it."""
    tree = settings.model_dump(mode="json") if isinstance(settings, Record) else settings
    return hashlib.sha256(signing.canonical(tree)).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON can hold, and no longer than a line should be."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:LONGEST]
