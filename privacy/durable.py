"""What the disk refuses, for the ledger and what lies beside it (written by shared/files.py).

Left out: retries. Whatever the operating system refuses becomes a LedgerError, and the caller must not compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from shared.errors import LedgerError


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes one line."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"cannot use the ledger {path}: {error.strerror or error}; nothing may be computed"
        ) from error
