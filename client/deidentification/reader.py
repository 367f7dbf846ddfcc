"""Opening files that nobody vouches for.

Links are not followed and special files are never opened. A file larger than the limit is refused before it is read, and
deflated data is unpacked with a limit. Only Part 10 files with a preamble and file meta information are DICOM here.

Left out: files without preamble and meta; a limit on time.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from shared.errors import DataError

LIMIT_BYTES = 2 << 30  # of one file
LIMIT_INFLATED_BYTES = 256 << 20  # of one deflated dataset
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"})


def files_in(folder: Path) -> Iterator[tuple[Path, Reason | None]]:
    """Every entry below `folder` that is not a plain folder, in sorted order, with the reason not to open it if any."""
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted(names + linked):
            path = Path(parent) / name
            yield path, _unfit(path)


def _unfit(path: Path) -> Reason | None:
    try:
        status = path.lstat()
    except OSError:
        return Reason.UNREADABLE
    if stat.S_ISLNK(status.st_mode):
        return Reason.SYMLINK
    if not stat.S_ISREG(status.st_mode):
        return Reason.NOT_REGULAR
    return Reason.TOO_LARGE if status.st_size > LIMIT_BYTES else None


def listing(folder: Path, ignore: Collection[Path] = ()) -> list[tuple[Path, Reason | None]]:
    """`files_in` as a list; DataError when the folder is missing or holds no file. `ignore`: files that are not input."""
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist; set `data` in the site file")
    found = [item for item in files_in(folder) if item[0] not in ignore]
    if not found:
        raise DataError(f"the data folder {folder} holds no files; set `data` in the site file")
    return found


def header(path: Path, wanted: frozenset[str]) -> FileDataset:
    """The attributes named in `wanted`, without pixels. Raises Withheld."""
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in sorted(wanted)]
    return guarded(Reason.UNREADABLE, lambda: _parse(path, tags))


def whole(path: Path) -> FileDataset:
    """The whole dataset. Raises Withheld."""
    return guarded(Reason.UNREADABLE, lambda: _parse(path, None))


def instance_of(path: Path) -> str:
    """The instance's UID as the file meta information has it, without a look at the dataset; empty when there is none."""
    try:
        return guarded(Reason.UNREADABLE, lambda: str(read_file_meta_info(path).get("MediaStorageSOPInstanceUID", "")))
    except Withheld:
        return ""


def _parse(path: Path, tags: list[BaseTag | int] | None) -> FileDataset:
    with path.open("rb") as opened:
        if opened.read(132)[128:] != b"DICM":
            raise Withheld(Reason.NOT_DICOM)
        opened.seek(0)
        # Only the meta group: the dataset itself must not be touched before its packing is known.
        meta = read_file_meta_info(path)
        syntax = str(meta.get("TransferSyntaxUID", ""))
        file: BinaryIO = opened
        if syntax == DeflatedExplicitVRLittleEndian:
            file = _inflated(opened, meta)
        elif syntax not in NATIVE:
            _must_decode(syntax)
        if syntax != DeflatedExplicitVRLittleEndian and tags is None:
            file = io.BytesIO(opened.read())  # pydicom asks for its place after each element: slow of a file
        order = _Order(stop_at_pixels=tags is not None)
        source = read_partial(file, order, specific_tags=tags)
        if not source:  # pydicom returns nothing at all when the file ends inside an element
            raise Withheld(Reason.UNREADABLE)
        if order.broken:
            raise Withheld(Reason.REQUIRED)
        return source


def _must_decode(syntax: str) -> None:
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise Withheld(Reason.TRANSFER_SYNTAX)


def _inflated(file: BinaryIO, meta: FileMetaDataset) -> BinaryIO:
    """The same content as explicit little endian; refused when it unpacks to more than the limit."""
    file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    content = unpacker.decompress(file.read(), LIMIT_INFLATED_BYTES)
    if unpacker.unconsumed_tail:
        raise Withheld(Reason.TOO_LARGE)
    return io.BytesIO(bytes(128) + b"DICM\x02\0\x10\0UI\x14\0" + ExplicitVRLittleEndian.encode() + b"\0" + content)


class _Order:
    """Watches the top-level tags go by; `broken` when one repeats or steps back, which two readers may read differently."""

    def __init__(self, *, stop_at_pixels: bool) -> None:
        self.broken = False
        self._stop_at_pixels = stop_at_pixels
        self._last = -1
        self._asked_before = False

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        number = int(tag)
        repeated = number == self._last and not self._asked_before
        self.broken = self.broken or number < self._last or repeated
        # With an unexpected encoding pydicom asks about the first tag an extra time, with length 0.
        self._asked_before = self._last == -1 and length == 0
        self._last = number
        return self._stop_at_pixels and number in PIXEL_TAGS
