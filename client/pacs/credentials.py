"""Files that the site's settings name: secrets that nobody else may read, and certificates.

No message repeats a content or a path: whoever puts a token where its file's name belongs must not find it in a log.

Left out: keys that need a pass phrase; hardware tokens.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from shared.errors import DataError


def private(path: Path, name: str) -> str:
    """The text of a secret file. DataError, without its content or path, when it is missing or others can read it."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        text, mode = "", None
    if mode is None or not stat.S_ISREG(mode):
        raise DataError(f"the file that `{name}` names in the site file cannot be read")
    if mode & 0o077:
        raise DataError(f"the file that `{name}` names can be read by others; run `chmod 600` on it")
    return text


def readable(path: Path, name: str) -> None:
    """DataError when the file that a setting names cannot be read."""
    try:
        path.read_bytes()
    except OSError:
        raise DataError(f"the file that `{name}` names in the site file cannot be read") from None


def context(purpose: ssl.Purpose, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """A TLS context in which both sides show a certificate: ours, and one signed by `ca`."""
    readable(ca, "ca")
    readable(certificate, "certificate")
    private(key, "key")
    try:
        made = ssl.create_default_context(purpose, cafile=str(ca))
        made.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError):
        failed = True
    else:
        failed = False
    if failed:
        raise DataError("`certificate`, `key` and `ca` of the site file are no PEM files that fit together")
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made
