"""Where one patient's files lie while they are read: in memory if there is room, private, and gone afterwards.

Guarantee: a folder of mode 0700, emptied after each patient and at the end, however the end comes; after a kill or a power
cut the next run over the same work folder empties it first. /dev/shm is memory; without room there the files lie in the
work folder, on the hospital's own disk.

Left out: memory that the system swaps out; overwriting of what is deleted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.deidentification import pseudonym
from shared.errors import DataError

MEMORY = Path("/dev/shm")  # noqa: S108  (the folder made there is private and its name cannot be guessed)
SPARE_BYTES = 256 << 20  # left free in memory for others
INSTANCE_BYTES = 2 << 20  # room that one instance is given: a single slice of 1024 x 1024 of 16 bits


class NoRoom(DataError):
    """What the PACS sends does not fit."""


class Spool:
    """One private folder at a time. `places`: the folders that it may be, the work folder's own last."""

    def __init__(self, work: Path, key: bytes) -> None:
        name = f"fedsynth-{pseudonym.token(key, 'spool', str(work))}"
        memory = [MEMORY / name] if os.access(MEMORY, os.W_OK) else []
        self.places = [*memory, work / "incoming"]

    def clear(self) -> None:
        for place in self.places:
            try:
                shutil.rmtree(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(f"the folder {place} of an earlier run cannot be removed: {error.strerror}") from None

    @contextmanager
    def folder(self, instances: int, *, on_disk: bool = False) -> Iterator[Path]:
        """An empty folder for so many instances, in memory if they seem to fit; it is removed when the block ends."""
        self.clear()
        wanted = instances * INSTANCE_BYTES + SPARE_BYTES
        *memory, disk = self.places
        place = next((place for place in memory if shutil.disk_usage(place.parent).free > wanted and not on_disk), disk)
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            self.clear()


def put(path: Path, content: bytes) -> None:
    """Write a new private file, in place of one that an earlier failure left. Raises NoRoom when it does not fit."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return
    except OSError as error:
        problem = DataError(f"cannot keep what the PACS sends: {error.strerror}")
        if error.errno == errno.ENOSPC:
            problem = NoRoom("no room for what the PACS sends, in memory and in the work folder")
    raise problem


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Refuse a second ingest that keeps its results in the same folder. The lock ends with the process.

    Left out: file systems without locks; there nothing is refused.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    busy = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            busy = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        if busy:
            raise DataError(f"another ingest is writing to {folder.parent}; wait for it, or choose another work folder")
        yield
    finally:
        os.close(descriptor)
