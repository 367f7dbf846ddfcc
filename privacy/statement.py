"""A signed statement of what a hospital's ledger holds, for its privacy office: checked offline, without the ledger or with it.

Says          cohort, unit of privacy, neighbouring relation, delta, cap, every event of every run, epsilon per patient by PLD (the
              largest, and of each group of patients that the ledger counts apart), the hash of the last record and how many
              there are, the software, the time by this machine's clock
Guarantee     not a byte was changed since the holder of the key signed it (shared/signing.py). With the ledger at hand: its chain
              runs through the record that the statement names, and the figures follow from it
Not in it     patients, their number or their pseudonyms

Left out: a trusted time, and a proof that the ledger itself was not rewritten before the signature: keep statements, so that a
ledger which no longer runs through an old one shows.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy import accounting, ledger, membership
from shared import signing
from shared.chain import Record
from shared.errors import LedgerError, SignatureError

KIND, VERSION = "fedsynth-privacy-statement", 1
FOLLOWS = (
    "cohort",
    "unit_of_privacy",
    "neighbouring_relation",
    "delta",
    "cap",
    "records",
    "last_hash",
)  # byte for byte
CLOSE = 1e-3  # relative: another version of the accountant may discretise otherwise


def make(path: Path, key: Ed25519PrivateKey) -> bytes:
    """Verify the ledger at `path` and sign what it holds. Raises LedgerError when the ledger is damaged."""
    return signing.seal(key, body(path, ledger.verify(path)))


def body(path: Path, records: list[Record]) -> dict[str, Any]:
    """What is signed, for the first records of the ledger at `path`. An infinite epsilon or cap is null."""
    header, delta = records[0], ledger.delta_now(records)
    spent = [r for r in records if r["kind"] == "reserve"]
    runs: dict[str, list[Record]] = {}
    for record in spent:
        runs.setdefault(record["run"], []).append(record)
    groups = membership.counted(path, records)
    epsilons = [accounting.epsilon(events, delta) for events in groups]
    return {
        "kind": KIND,
        "version": VERSION,
        "cohort": header["cohort"],
        "unit_of_privacy": header["unit_of_privacy"],
        "neighbouring_relation": header["neighbouring_relation"],
        "delta": delta,
        "cap": spent[-1]["cap"] if spent else None,
        "accountant": f"PLD, dp-accounting {version('dp-accounting')}",
        "epsilon": _finite(max(epsilons)),
        "groups": [
            {"epsilon": _finite(e), "steps": sum(event.steps for event in events)}
            for e, events in zip(epsilons, groups, strict=True)
        ],
        "runs": [
            {
                "run": name,
                "epsilon": _finite(accounting.epsilon(membership.events(of), delta)),
                "events": [{key: r[key] for key in ("purpose", "time", *membership.EVENT_KEYS)} for r in of],
            }
            for name, of in runs.items()
        ],
        "records": len(records),
        "last_hash": records[-1]["hash"],
        "software": f"fedsynth {version('fedsynth')}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def check(
    data: bytes, *, public: Ed25519PublicKey | None = None, path: Path | None = None
) -> tuple[dict[str, Any], Ed25519PublicKey]:
    """The body of a statement and the key that signed it.

    public   the key that must have signed; none: compare the fingerprint of the returned one with one that you know
    path     the ledger that the statement must follow from; it may have grown since

    Raises SignatureError when a byte was changed or it is no privacy statement, LedgerError when it is not of this ledger.
    """
    said, signer = signing.unseal(data, public)
    if said.get("kind") != KIND or said.get("version") != VERSION:
        raise SignatureError(
            f"this is a signed document of kind {said.get('kind')} {said.get('version')}, not {KIND} {VERSION}"
        )
    lacking = {*FOLLOWS, "epsilon", "runs", "time"} - set(said)
    count = said.get("records")
    if lacking or not isinstance(count, int) or count < 1:
        raise SignatureError(f"the statement lacks {sorted(lacking)[0] if lacking else 'a number of records'}")
    if path is not None:
        records = ledger.verify(path)
        if count > len(records) or records[count - 1]["hash"] != said["last_hash"]:
            raise LedgerError(
                f"{path.name} does not run through the record that the statement names (number {count - 1}): it is "
                "another ledger, was cut, or was written anew"
            )
        found = body(path, records[:count])
        wrong = [key for key in FOLLOWS if found[key] != said[key]]
        wrong += [] if _close(found["epsilon"], said["epsilon"]) else ["epsilon"]
        if wrong or [r["events"] for r in found["runs"]] != [r.get("events") for r in said["runs"]]:
            raise LedgerError(f"the statement's {(wrong or ['runs'])[0]} does not follow from {path.name}")
    return said, signer


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=CLOSE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
