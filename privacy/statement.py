"""A signed statement of what a hospital's ledger holds, for its privacy office: checked offline, without the ledger or with it.

Says          cohort, unit of privacy, neighbouring relation, delta, cap; every plan that was reserved, its events and which of its
              rounds were drawn; epsilon per patient as the filter counts it, and what was spent if nothing was chosen by
              what was seen (the largest, and of each group of patients that the ledger counts apart); every decision to go
              on without lost records; the hash of the last record and how many there are, the software, the time by this
machine's clock Guarantee     not a byte was changed since the holder of the key signed it (shared/crypto/signing.py). With the
              ledger at hand: its chain runs through the record that the statement names, and the figures follow from it
Not in it     patients, their number or their pseudonyms

A statement of version 1, whose epsilon is what version 2 calls spent, is checked too.

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

from privacy import accounting, ledger, ledger_members, reservations
from privacy.accounting import Event
from privacy.reservations import Reservation
from shared.crypto import signing
from shared.errors import LedgerError, SignatureError
from shared.journal.chain import Record

KIND, VERSIONS = "fedsynth-privacy-statement", (1, 2)
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
    return signing.seal(key, body(path, ledger.checked_records(path)))


def body(path: Path, records: list[Record]) -> dict[str, Any]:
    """What is signed, for the first records of the ledger at `path`. An infinite epsilon or cap is null."""
    header, delta = records[0], ledger.delta_now(records)
    held, draws = reservations.read(records)
    groups = ledger_members.counted(path, records, held)
    return {
        "kind": KIND,
        "version": VERSIONS[-1],
        "cohort": header["cohort"],
        "unit_of_privacy": header["unit_of_privacy"],
        "neighbouring_relation": header["neighbouring_relation"],
        "delta": delta,
        "cap": next((r["cap"] for r in reversed(records) if "cap" in r), None),
        "accountant": f"PLD, dp-accounting {version('dp-accounting')}; Gaussian filter between plans",
        "epsilon": _finite(ledger.counted(groups, delta)),
        "spent": _finite(ledger.spent(groups, delta)),
        "groups": [
            {
                "epsilon": _finite(ledger.counted([group], delta)),
                "spent": _finite(ledger.spent([group], delta)),
                "steps": sum(event.steps for r in group for event in r.events),
            }
            for group in groups
        ],
        "plans": [
            {
                "record": r.record,
                "name": r.name,
                "time": records[r.record]["time"],
                "epsilon": _finite(accounting.epsilon(r.events, delta)),
                "rounds": len(r.rounds),
                "events": [event.to_dict() for event in merged(r)],
                "drawn": [{"round": number, "run": run} for number, run in sorted(r.drawn.items())],
            }
            for r in held
        ],
        "draws": len(draws),
        "accepted": accepted(records),
        "records": len(records),
        "last_hash": records[-1]["hash"],
        "software": f"fedsynth {version('fedsynth')}",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def merged(reservation: Reservation) -> list[Event]:
    """All rounds' events of a reservation, equal ones added up, in order."""
    steps: dict[tuple[float, float], int] = {}
    for event in reservation.events:
        key = (event.noise_multiplier, event.sampling_rate)
        steps[key] = steps.get(key, 0) + event.steps
    return [Event(noise, rate, count) for (noise, rate), count in steps.items()]


def accepted(records: list[Record]) -> list[dict[str, Any]]:
    """The privacy office's decisions to go on without lost records."""
    return [{key: r[key] for key in ("who", "why", "time", "lost")} for r in records if r["kind"] == "accepted"]


def check(
    data: bytes, *, public: Ed25519PublicKey | None = None, path: Path | None = None
) -> tuple[dict[str, Any], Ed25519PublicKey]:
    """The body of a statement and the key that signed it.

    public   the key that must have signed; none: compare the fingerprint of the returned one with one that you know
    path     the ledger that the statement must follow from; it may have grown since

    Raises SignatureError when a byte was changed or it is no privacy statement, LedgerError when it is not of this ledger.
    """
    said, signer = signing.unseal(data, public)
    if said.get("kind") != KIND or said.get("version") not in VERSIONS:
        raise SignatureError(
            f"this is a signed document of kind {said.get('kind')} {said.get('version')}, not {KIND} {VERSIONS[-1]}"
        )
    old = said["version"] == VERSIONS[0]
    numbers = {"epsilon": "spent"} if old else {"epsilon": "epsilon", "spent": "spent"}  # said -> as it is called now
    lacking = {*FOLLOWS, *numbers, "runs" if old else "plans", "time"} - set(said)
    count = said.get("records")
    if lacking or not isinstance(count, int) or count < 1:
        raise SignatureError(f"the statement lacks {sorted(lacking)[0] if lacking else 'a number of records'}")
    if path is not None:
        records = ledger.checked_records(path)
        if count > len(records) or records[count - 1]["hash"] != said["last_hash"]:
            raise LedgerError(
                f"{path.name} does not run through the record that the statement names (number {count - 1}): it is "
                "another ledger, was cut, or was written anew"
            )
        found = body(path, records[:count])
        wrong = [key for key in FOLLOWS if found[key] != said[key]]
        wrong += [name for name, now in numbers.items() if not _close(found[now], said[name])]
        if not old:
            wrong += [key for key in ("accepted", "draws") if found[key] != said.get(key)]
            wrong += [] if _plain(found["plans"]) == _plain(said["plans"]) else ["plans"]
        if wrong:
            raise LedgerError(f"the statement's {wrong[0]} does not follow from {path.name}")
    return said, signer


def _plain(plans: Any) -> list[Any]:
    """What a statement says of each plan, without epsilon, which another version of the accountant may discretise otherwise."""
    return [{key: value for key, value in plan.items() if key != "epsilon"} for plan in plans]


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=CLOSE)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
