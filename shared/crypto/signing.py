"""Signed statements: Ed25519 over canonical JSON, one key file per signer.

Guarantee     whoever holds the signer's public key, from somewhere else than the document, can tell that not a byte of it was
              changed since it was signed. The key inside the document proves nothing about who signed: compare `fingerprint`
Source        Ed25519: RFC 8032; keys: PKCS #8 and SubjectPublicKeyInfo in PEM, as OpenSSL reads and writes them
Canonical     sorted keys, no spaces, ASCII, no NaN; a document that is not byte for byte the canonical form of what it says is
              refused, so that spaces, escapes and the case of a digit are covered too

| edge case                                    | what happens                                                      |
|----------------------------------------------|-------------------------------------------------------------------|
| no key yet                                   | made once, mode 0600; two processes at once get the same key      |
| the key file can be read by others, or is a link | SignatureError                                                |
| a key of another kind, or with a passphrase  | SignatureError                                                    |
| a byte changed anywhere in a document        | SignatureError                                                    |

Left out: expiry, revocation and trusted time; keys in hardware.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.errors import SignatureError
from shared.files import sync_folder, write_new

PEM = serialization.Encoding.PEM
PUBLIC = serialization.PublicFormat.SubjectPublicKeyInfo


def canonical(tree: Any) -> bytes:
    """The one spelling of plain values as JSON: equal values give equal bytes. ValueError for NaN and infinity."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_or_make(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`; made with mode 0600 when absent. SignatureError when others can read it."""
    if not path.exists() and not path.is_symlink():
        data = Ed25519PrivateKey.generate().private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            write_new(aside, data)
            with contextlib.suppress(FileExistsError):  # whoever was faster made the key
                path.hardlink_to(aside)
            sync_folder(path.parent)
        except OSError as error:
            raise SignatureError(f"cannot make the key {path}: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)
    return load(path)


def load(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`, which must be a regular file that only its owner can read."""
    try:
        status, data = path.lstat(), path.read_bytes()
    except OSError as error:
        raise SignatureError(f"cannot read the key {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SignatureError(f"the key {path} must be a regular file, not a link")
    if status.st_mode & 0o077:
        raise SignatureError(f"the key {path} can be read by others; run `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path} is not an Ed25519 private key in PEM without a passphrase")
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file."""
    try:
        return _public(path.read_bytes())
    except OSError as error:
        raise SignatureError(f"cannot read the public key {path}: {error.strerror or error}") from error
    except ValueError:
        raise SignatureError(f"{path} is not an Ed25519 public key in PEM") from None


def public_pem(public: Ed25519PublicKey) -> str:
    """The public key as it may be handed to anybody."""
    return public.public_bytes(PEM, PUBLIC).decode("ascii")


def fingerprint(public: Ed25519PublicKey) -> str:
    """What two people read to each other to know that they mean the same key: SHA-256 of its 32 bytes, in hex."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()


def sign(key: Ed25519PrivateKey, payload: bytes) -> str:
    """The signature of `payload`: 128 lower-case hexadecimal digits."""
    return key.sign(payload).hex()


def check_signature(public: Ed25519PublicKey, payload: bytes, signature: str) -> None:
    """Raise SignatureError unless `signature` is that of `payload` by `public`."""
    try:
        raw = bytes.fromhex(signature)
        if raw.hex() != signature:
            raise ValueError
        public.verify(raw, payload)
    except (InvalidSignature, ValueError):
        raise SignatureError(f"the signature does not match the content and the key {fingerprint(public)}") from None


def seal(key: Ed25519PrivateKey, body: dict[str, Any]) -> bytes:
    """A whole document, one canonical line: the body, the public key and the signature over the canonical body."""
    document = {"body": body, "public_key": public_pem(key.public_key()), "signature": sign(key, canonical(body))}
    return canonical(document) + b"\n"


def unseal(data: bytes, public: Ed25519PublicKey | None = None) -> tuple[dict[str, Any], Ed25519PublicKey]:
    """The body of a sealed document and the key that signed it. SignatureError when a byte was changed.

    public   the key that must have signed; none: the one that the document itself names, whose fingerprint the caller compares
    """
    try:
        document = json.loads(data)
        if set(document) != {"body", "public_key", "signature"} or canonical(document) + b"\n" != data:
            raise ValueError
        body, pem, signature = document["body"], document["public_key"], document["signature"]
        named = _public(pem.encode("ascii"))
        if not isinstance(body, dict) or not isinstance(signature, str) or public_pem(named) != pem:
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise SignatureError(
            "not a signed document as fedsynth writes them, or one in which a byte was changed"
        ) from None
    if public is not None and fingerprint(public) != fingerprint(named):
        raise SignatureError(f"the document is signed by the key {fingerprint(named)}, not by {fingerprint(public)}")
    check_signature(named, canonical(body), signature)
    return body, named


def _public(data: bytes) -> Ed25519PublicKey:
    """ValueError for anything but an Ed25519 public key in PEM."""
    try:
        found = serialization.load_pem_public_key(data)
    except UnsupportedAlgorithm as error:
        raise ValueError from error
    if not isinstance(found, Ed25519PublicKey):
        raise ValueError
    return found
