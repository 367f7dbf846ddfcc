"""Files that are on the disk when the call returns, for the ledger and what lies beside it.

Left out: retries. Whatever the operating system refuses becomes a LedgerError, and the caller must not compute.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from shared.errors import LedgerError


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet, mode 0600, and wait until it and its name are on the disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if os.write(file, data) != len(data):
            raise LedgerError(f"the disk is full: {path.name} could not be written")
        os.fsync(file)
    finally:
        os.close(file)
    sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, in the place of an older one: whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write_new(aside, data)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"cannot use the ledger {path}: {error.strerror or error}; nothing may be computed"
        ) from error
