"""Which code may run here: app bundles by SHA-256, approved by this hospital's own people.

    WORK/node/approvals/<sha256>.bundle         a copy of what was approved, to compare the next one with
    WORK/node/approvals/<sha256>.<signer>.json  one signed statement (Ed25519, shared/signing.py) per signer

A bundle may run when `policy.signatures` different keys of `policy.signers` have signed its hash for this site. With no
signers named, the node's own approval key counts, made at the first approval; that shows that somebody with the service's
files approved it, and no more. Name the officers' keys, kept elsewhere, where that is too little.

Left out: dependencies, weights and the interpreter. They are the hospital's own installation.
"""

from __future__ import annotations

from pathlib import Path

from client.link import journal, node
from shared import bundle, keys, signing
from shared.config import Site
from shared.durable import write_bytes
from shared.errors import PolicyError, SignatureError

OWN_KEY = "approval.key"


def approve(site: Site, work: Path, data: bytes, key: Path | None = None) -> str:
    """Sign a bundle and keep a copy; returns its SHA-256. PolicyError when the key is not one of `policy.signers`.

    key   an officer's key file; none: the node's own, made when there is none
    """
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


def missing(site: Site, work: Path, digest: str) -> int:
    """How many signatures the bundle still needs; 0: it may run. A statement that does not hold counts for nothing."""
    allowed, found = signers(site, work), set[str]()
    for path in _folder(work).glob(f"{digest}.*.json"):
        try:
            body, key = signing.unseal(path.read_bytes())
        except SignatureError:
            continue
        name = signing.fingerprint(key)
        if name in allowed and body.get("site") == site.name and body.get("bundle") == digest:
            found.add(name)
    return max(0, site.policy.signatures - len(found))


def withdraw(work: Path, digest: str) -> int:
    """Remove every approval of the bundles whose hash begins so; returns how many."""
    paths = list(_folder(work).glob(f"{digest}*.json"))
    for path in paths:
        path.unlink()
    journal.write(work, "withdrawn", bundle=digest, count=len(paths))
    return len(paths)


def quarantine(work: Path, digest: str, data: bytes) -> None:
    """Keep a refused bundle, never unpacked, for people to look at: WORK/node/refused, the last three."""
    folder = keys.private_folder(node.folder(work) / "refused")
    write_bytes(folder / f"{digest}.bundle", data)
    for old in sorted(folder.glob("*.bundle"), key=lambda p: p.stat().st_mtime_ns)[:-3]:
        old.unlink()


def last(site: Site, work: Path) -> bytes | None:
    """The bundle approved last, to compare with."""
    copies = sorted(_folder(work).glob("*.bundle"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return next((p.read_bytes() for p in copies if missing(site, work, p.stem) == 0), None)


def signers(site: Site, work: Path) -> set[str]:
    """Fingerprints of the keys whose signature counts."""
    if site.policy.signers:
        return set(site.policy.signers)
    own = node.folder(work) / OWN_KEY
    return {signing.fingerprint(signing.load(own).public_key())} if own.exists() else set()


def _folder(work: Path) -> Path:
    return keys.private_folder(node.folder(work) / "approvals")
