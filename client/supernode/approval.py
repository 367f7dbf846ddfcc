"""Which code may run here: app bundles by SHA-256, approved by this hospital's own people.

    WORK/node/approvals/<sha256>.bundle         a copy of what was approved, to compare the next one with
    WORK/node/approvals/<sha256>.<signer>.json  one signed statement (Ed25519, shared/crypto/signing.py) per signer
    WORK/node/journal.jsonl                     who approved and what was withdrawn, in order

A bundle may run when `policy.signatures` different keys of `policy.signers` have signed its hash for this site. With no
signers named, the node's own approval key counts, made at the first approval; that shows that somebody with the service's
files approved it, and no more. Name the officers' keys, kept elsewhere, where that is too little.

A signature counts only if all of this is there, and is read anew for every message; what is absent never speaks for the bundle:

| what                                                   | otherwise                                                             |
|--------------------------------------------------------|-----------------------------------------------------------------------|
| the statement, signed by an allowed key for this site  | a changed, foreign or missing one counts for nothing                  |
| its entry in the journal, and no withdrawal after it   | a statement that comes back (a backup, a power cut) counts for nothing|
| the copy of the bundle, with that hash                 | what was approved can no longer be shown: counts for nothing          |
| a bundle without faults (bundle_check.py)              | an older version let it be approved: counts for nothing               |
| no other bundle here whose hash begins alike           | Flower unpacks by eight digits of the hash, and would run the other   |

A journal that is put aside as damaged takes the approvals with it: approve again.

Left out: dependencies, weights and the interpreter. They are the hospital's own installation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from client.supernode import journal, node
from shared.config.site import Site
from shared.crypto import bundle, bundle_check, keys, signing
from shared.errors import PolicyError, SignatureError
from shared.files import remove, write_bytes

VERSION = r"[0-9][0-9a-z.+!]{0,40}"
OWN_KEY = "approval.key"
FLOWER_TELLS_APART = 8  # digits of a hash in the name of the folder that Flower unpacks a bundle to


class FlowerRun(Protocol):
    """What Flower says of a run."""

    fab_id: str
    fab_version: str
    fab_hash: str


def approve(site: Site, work: Path, data: bytes, key: Path | None = None) -> str:
    """Sign a bundle and keep a copy; returns its SHA-256. PolicyError when it may not be signed, or not by this key.

    key   an officer's key file; none: the node's own, made when there is none
    """
    check(work, data)
    signer = signing.load_or_make(node.folder(work) / OWN_KEY) if key is None else signing.load(key)
    name = signing.fingerprint(signer.public_key())
    if name not in signers(site, work):
        raise PolicyError(f"the key {name} is not among `policy.signers` of {site.name}; sign with one that is")
    digest = bundle.sha256(data)
    body = {"kind": "fedsynth-approval", "site": site.name, "bundle": digest, "made": keys.now().isoformat()}
    folder = _folder(work)
    journal.write(work, "approved", bundle=digest, key=name)
    write_bytes(folder / f"{digest}.bundle", data)
    write_bytes(folder / f"{digest}.{name[:16]}.json", signing.seal(signer, body))
    return digest


def check(work: Path, data: bytes) -> None:
    """PolicyError when a bundle must not run, whoever signs it: it could hold more than its reader saw."""
    faults = [*bundle_check.faults(data), *_mistaken(work, bundle.sha256(data))]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise PolicyError(f"{faults[0]}{more}; do not approve it, and ask its sender why")


def missing(site: Site, work: Path, digest: str) -> int:
    """How many signatures the bundle still needs; 0: it may run. LedgerError when the journal is damaged."""
    allowed, found = signers(site, work), set[str]()
    for path in _folder(work).glob(f"{digest}.*.json"):
        try:
            body, key = signing.unseal(path.read_bytes())
        except (SignatureError, OSError):  # also: withdrawn in this moment
            continue
        name = signing.fingerprint(key)
        if name in allowed and body.get("site") == site.name and body.get("bundle") == digest:
            found.add(name)
    found &= _in_force(work, digest) if found else set()
    return max(0, site.policy.signatures - (len(found) if found and _sound(work, digest) else 0))


def admit(site: Site, work: Path, run: FlowerRun, data: bytes) -> None:
    """PolicyError unless these are the bytes that a run names, under our name, and approved; what is not is kept to be read.

    Flower makes a folder's name of what a run says its app and version are: a coordinator's words never become a path here.
    """
    digest = bundle.sha256(data)
    if (run.fab_id, digest) != (bundle.APP, run.fab_hash) or not re.fullmatch(VERSION, run.fab_version):
        raise PolicyError(
            "the app bundle is not the one that the run names, or bears another name than ours", word="code"
        )
    if len(data) > bundle.LIMIT:
        raise PolicyError("the app bundle is larger than any of ours", word="code")
    lacking = missing(site, work, digest)
    if lacking:
        quarantine(work, digest, data)
        raise PolicyError(
            f"{site.name} has not approved the app bundle {digest[:12]} ({lacking} of {site.policy.signatures} "
            "signatures are missing); its people look at it with `fedsynth client approve`",
            word="code",
        )


def withdraw(work: Path, digest: str) -> int:
    """Remove every approval of the bundles whose hash begins so; returns how many. PolicyError when there is none.

    From its entry in the journal on, a withdrawal holds, whatever becomes of the files; and they go even if it cannot be written.
    """
    paths = list(_folder(work).glob(f"{digest}*.json")) if re.fullmatch("[0-9a-f]{6,64}", digest) else []
    if not paths:
        known = sorted({path.name[:12] for path in _folder(work).glob("*.json")})
        raise PolicyError(
            f"there is nothing to withdraw: no approved bundle begins so; give 6 or more digits of one of these: "
            f"{', '.join(known) or 'none is approved'}"
        )
    try:
        journal.write(work, "withdrawn", bundle=digest, count=len(paths))
    finally:
        for path in paths:
            remove(path)
    return len(paths)


def quarantine(work: Path, digest: str, data: bytes) -> None:
    """Keep a refused bundle, never unpacked, for people to look at: WORK/node/refused, the last three."""
    folder = keys.private_folder(node.folder(work) / "refused")
    write_bytes(folder / f"{digest}.bundle", data)
    for old in sorted(folder.glob("*.bundle"), key=lambda p: p.stat().st_mtime_ns)[:-3]:
        old.unlink()


def last(site: Site, work: Path) -> bytes | None:
    """The bundle approved last and still in force, to compare with."""
    order = [str(e.get("bundle")) for e in reversed(journal.read(work)) if e["kind"] == "approved"]
    digest = next((d for d in dict.fromkeys(order) if missing(site, work, d) == 0), None)
    return (_folder(work) / f"{digest}.bundle").read_bytes() if digest else None


def signers(site: Site, work: Path) -> set[str]:
    """Fingerprints of the keys whose signature counts."""
    if site.policy.signers:
        return set(site.policy.signers)
    own = node.folder(work) / OWN_KEY
    return {signing.fingerprint(signing.load(own).public_key())} if own.exists() else set()


def _in_force(work: Path, digest: str) -> set[str]:
    """The keys that approved the bundle since it was last withdrawn, as the journal says."""
    found = set[str]()
    for entry in journal.read(work):
        if entry["kind"] == "approved" and entry.get("bundle") == digest:
            found.add(str(entry.get("key")))
        elif entry["kind"] == "withdrawn" and digest.startswith(str(entry.get("bundle"))):
            found.clear()
    return found


def _sound(work: Path, digest: str) -> bool:
    """Whether the copy is there, is the one that was signed, and may run."""
    try:
        data = (_folder(work) / f"{digest}.bundle").read_bytes()
    except OSError:
        return False
    return bundle.sha256(data) == digest and not bundle_check.faults(data) and not _mistaken(work, digest)


def _mistaken(work: Path, digest: str) -> list[str]:
    """A word for each other bundle that was ever approved here and that Flower takes this one for."""
    alike = _folder(work).glob(f"{digest[:FLOWER_TELLS_APART]}*.bundle")
    return [
        f"the bundle's hash begins with the same {FLOWER_TELLS_APART} digits as that of {path.stem}, approved here before"
        for path in alike
        if path.stem != digest
    ]


def _folder(work: Path) -> Path:
    return keys.private_folder(node.folder(work) / "approvals")
