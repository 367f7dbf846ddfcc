"""Files that are there whole or not at all, and on the disk when the call returns, whenever the process or the machine ends.

A file's bytes and its name are two things for the disk: after a rename or a removal the folder is waited for as well, or the old
file would be back after a power cut.

| edge case                                     | what happens                                                            |
|-----------------------------------------------|-------------------------------------------------------------------------|
| killed or out of power at any moment          | the old file or the new one, whole                                      |
| the disk is full                              | OSError; the old file is as it was, and nothing is left beside it       |
| two writers of one file at once               | one after the other; each has its own temporary name                    |

Left out: locks; retries. Errors are the operating system's own: the caller says what they mean.
"""

from __future__ import annotations

import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and, where there is none yet, its folder. Readable as the process' umask says."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    replace(path, data, mode=0o666)


def write_arrays(path: Path, *, mode: int = 0o666, **arrays: Any) -> None:
    """Write arrays by name as compressed NPZ; nothing in it needs pickle, and the same arrays always give the same bytes."""
    import numpy as np  # noqa: PLC0415 - settings are read and written without it

    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, buffer.getvalue(), mode)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that must not exist yet, and wait until it and its name are on the disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file in the place of an older one: whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write_new(aside, data, mode)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Take a file away, and wait until the disk has forgotten its name."""
    path.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
