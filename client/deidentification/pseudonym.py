"""The hospital's key, and everything that is derived from it.

One random key per site turns patient identifiers, UIDs and file names into tokens by HMAC-SHA256. Without the key no
token can be recomputed from a guessed identifier (an unkeyed hash can). The key never leaves the site: whoever has it
and a list of patients can undo every pseudonym.

Left out: a random table instead of HMAC, and shared custody of the key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat
import uuid
from pathlib import Path

from shared.errors import DataError

KEY_BYTES = 32


def load_or_make(path: Path) -> bytes:
    """The key in `path`; made with mode 0600 when absent. Refused when others can read it or its length is wrong."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return load(path)
    except OSError as error:
        raise DataError(f"cannot make the key file {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(KEY_BYTES)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


def load(path: Path) -> bytes:
    """The key in `path`, which must be a private regular file of exactly 32 bytes."""
    try:
        status = path.lstat()
        key = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the key file {path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"the key file {path} must be a regular file, not a link")
    if status.st_mode & 0o077:
        raise DataError(f"the key file {path} can be read by others; run `chmod 600 {path}`")
    if len(key) != KEY_BYTES:
        raise DataError(f"the key file {path} holds {len(key)} bytes, not {KEY_BYTES}; restore it from its backup")
    return key


def _mac(key: bytes, purpose: str, value: str) -> bytes:
    return hmac.new(key, f"{purpose}\0{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()


def token(key: bytes, purpose: str, value: str) -> str:
    """Keyed token of `value`, different for each purpose: 24 hexadecimal digits."""
    return _mac(key, purpose, value).hex()[:24]


def pseudonym(key: bytes, issuer: str, patient_id: str) -> str:
    """The patient's pseudonym, 16 letters and digits. The same number from two issuers is two patients."""
    return base64.b32encode(_mac(key, "patient", f"{issuer}\0{patient_id}")[:10]).decode().lower()


def cohort(key: bytes) -> str:
    """Name of the cohort that this key stands for: the same for every run over the same site."""
    return _mac(key, "cohort", "").hex()[:32]


def uid(key: bytes, source: str) -> str:
    """The UID that replaces `source`: `2.25.` and a version 8 UUID made by HMAC; equal for equal sources.

    A frame of reference that the standard itself names (an atlas) stays; nothing else under the standard's root does,
    because a made-up UID can begin with that root.
    """
    from pydicom.uid import UID_dictionary  # noqa: PLC0415 - training, which needs pseudonyms alone, starts anew every round

    known = UID_dictionary.get(source)
    if known and known[1] == "Well-known frame of reference":
        return source
    raw = bytearray(_mac(key, "uid", source)[:16])
    raw[6] = (raw[6] & 0x0F) | 0x80  # version 8: custom (RFC 9562, section 5.8)
    raw[8] = (raw[8] & 0x3F) | 0x80  # variant
    return f"2.25.{uuid.UUID(bytes=bytes(raw)).int}"
