"""Sums and signature of a release: what its recipient checks before trusting a byte of it.

SHA256SUMS covers every file but itself and SIGNATURE.json, in the format of `sha256sum -c`. SIGNATURE.json is a sealed document
(see `shared.crypto.signing`) over the digest of SHA256SUMS. So whoever has the coordinator's public key from somewhere else than
the release can tell that no byte was changed, no file taken away and none added. What git, a hub's client or a desktop leaves
beside the files (`.git`, `.cache/huggingface`, `.DS_Store`, ...) is listed and passes: it is not part of the release.

The key inside SIGNATURE.json proves nothing about who signed: compare its fingerprint with one that you were given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.crypto import signing
from shared.errors import DataError, SignatureError

SUMS, SIGNATURE = "SHA256SUMS", "SIGNATURE.json"
FORMAT = "fedsynth release 1"
MOST = 20  # faults in one message


@dataclass(frozen=True)
class Verified:
    """A release that is as it was signed. `known`: the signer's key came from outside the release.

    ignored   files beside it that its transport left there; they are not part of it
    """

    experiment: str
    files: int
    fingerprint: str
    known: bool
    ignored: tuple[str, ...] = ()


def close(folder: Path, experiment: str, key: Ed25519PrivateKey | None) -> None:
    """Write SHA256SUMS over every file in the folder, and SIGNATURE.json where there is a key."""
    files = _files(folder)
    sums = "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    (folder / SUMS).write_text(sums, encoding="utf-8")
    if key is not None:
        body = {"format": FORMAT, "experiment": experiment, "files": len(files), "sums_sha256": digest(folder / SUMS)}
        (folder / SIGNATURE).write_bytes(signing.seal(key, body))


def verify_release(
    folder: Path, public_key: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Check a release. SignatureError names what is wrong, all of it; DataError: not a release.

    public_key   the coordinator's key, from somewhere else than the release; none: the one that the signature names
    """
    if not (folder / SUMS).is_file():
        raise DataError(f"{folder} is not a release: it has no {SUMS}")
    if not (folder / SIGNATURE).is_file():
        raise SignatureError(f"the release is not signed: it has no {SIGNATURE}")
    public = None if public_key is None else signing.load_public(public_key)
    body, signer = signing.unseal((folder / SIGNATURE).read_bytes(), public)
    if body.get("format") != FORMAT:
        raise SignatureError(f"{SIGNATURE} signs something other than a release")
    if body.get("sums_sha256") != digest(folder / SUMS):
        raise SignatureError(f"{SUMS} is not the one that was signed")
    listed = {}
    for line in (folder / SUMS).read_text(encoding="utf-8").split("\n"):
        found, _, name = line.partition("  ")
        if name:
            listed[name] = found
    paths = _files(folder)
    present = {path.relative_to(folder).as_posix(): path for path in paths}
    ignored = sorted(name for name in present.keys() - listed.keys() if _of_transport(name))
    wrong = [f"the release lacks {name}" for name in sorted(listed.keys() - present.keys())]
    extra = sorted(present.keys() - listed.keys() - set(ignored))
    wrong += [f"the release holds {name[:80]!r}, which was not signed" for name in extra]
    for number, (name, expected) in enumerate(listed.items(), 1):
        if name in present and (present[name].is_symlink() or digest(present[name]) != expected):
            wrong.append(f"{name} was changed after it was signed")
        if progress:
            progress(number, len(listed))
    if wrong:
        more = f"; and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
        raise SignatureError("; ".join(wrong[:MOST]) + more)
    return Verified(
        str(body.get("experiment")), len(listed), signing.fingerprint(signer), public is not None, tuple(ignored)
    )


def _of_transport(name: str) -> bool:
    """Whether a file is what git, a hub's client or a desktop leaves beside the files that it carries. Nothing here reads it."""
    parts = name.split("/")
    return (
        parts[0] in {".git", "__MACOSX"}
        or parts[:2] == [".cache", "huggingface"]
        or name in {".gitattributes", ".gitignore"}
        or parts[-1] in {".DS_Store", "Thumbs.db", "desktop.ini"}
        or parts[-1].startswith("._")
    )


def digest(path: Path) -> str:
    """SHA-256 of a file in hex, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    """Everything that is not a folder, in one order; hidden files and links too."""
    found = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(path for path in found if path.parent != folder or path.name not in (SUMS, SIGNATURE))
