"""Written DICOM bytes, walked one element at a time by a reader that shares nothing with the writer.

Only what we write is understood: a Part 10 file in explicit VR little endian. Every byte of the file belongs to the
preamble, the prefix or one element; whatever cannot be read that way is a fault with an offset. Source: DICOM PS3.5,
sections 7.1.2 and 7.5; PS3.10, section 7.1.

Left out: every other transfer syntax, compressed pixels, and any meaning of the values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"}
    | {b"ST", b"TM", b"UI", b"UL", b"US"}
)
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
DEPTH = 8  # ours nest three deep


@dataclass(frozen=True)
class Element:
    """One element. `path`: tags of the sequences around it; `value`: its bytes at `start` (none of a sequence)."""

    path: tuple[int, ...]
    tag: int
    vr: bytes
    start: int
    value: bytes


class Fault(Exception):
    """The bytes are not what we write. `rule` is a fixed word; `offset` where it shows."""

    def __init__(self, rule: str, offset: int) -> None:
        super().__init__(f"{rule} at byte {offset}")
        self.rule, self.offset = rule, offset


def elements(content: bytes) -> Iterator[Element]:
    """Every element of a whole file in order, those of the meta group first. Raises Fault at the first odd byte."""
    if len(content) < 144 or content[128:132] != b"DICM":
        raise Fault("not-part-10", 128)
    if content[132:140] != b"\x02\0\0\0UL\x04\0":
        raise Fault("meta-length", 132)
    end = 144 + struct.unpack_from("<I", content, 140)[0]
    if end > len(content):
        raise Fault("meta-length", 140)
    yield Element((), 0x00020000, b"UL", 140, content[140:144])
    for element in _dataset(content, 144, end, ()):
        if element.tag >> 16 != 0x0002:
            raise Fault("meta-group", element.start)
        yield element
    for element in _dataset(content, end, len(content), ()):
        if element.tag >> 16 <= 0x0007 and not element.path:
            raise Fault("meta-group", element.start)
        yield element


def _dataset(content: bytes, place: int, end: int, path: tuple[int, ...]) -> Iterator[Element]:
    """The elements from `place` to exactly `end`."""
    last = -1
    while place < end:
        tag, vr, start, length = _head(content, place, end)
        if tag <= last:
            raise Fault("order", place)
        last = tag
        if vr == b"SQ":
            yield Element(path, tag, vr, start, b"")
            inner = _Items(content, start, end, length, (*path, tag))
            yield from inner
            place = inner.end
        else:
            if length == UNDEFINED or length % 2 or start + length > end:
                raise Fault("length", place)
            yield Element(path, tag, vr, start, content[start : start + length])
            place = start + length


class _Items:
    """The items of a sequence; `end` is known when they have been walked."""

    def __init__(self, content: bytes, start: int, limit: int, length: int, path: tuple[int, ...]) -> None:
        if len(path) > DEPTH:
            raise Fault("depth", start)
        if length != UNDEFINED and start + length > limit:
            raise Fault("length", start)
        self.content, self.path, self.end = content, path, start
        self.limit = limit if length == UNDEFINED else start + length
        self.open = length == UNDEFINED

    def __iter__(self) -> Iterator[Element]:
        place = self.end
        while place < self.limit or self.open:
            tag, length = _item_head(self.content, place, self.limit)
            if tag == SEQUENCE_END and self.open and length == 0:
                place += 8
                break
            if tag != ITEM:
                raise Fault("item", place)
            stop = self._item_end(place + 8) if length == UNDEFINED else place + 8 + length
            if stop > self.limit:
                raise Fault("length", place)
            yield from _dataset(self.content, place + 8, stop, self.path)
            place = stop + (8 if length == UNDEFINED else 0)
        self.end = place

    def _item_end(self, place: int) -> int:
        """Where an item of undefined length ends: its delimiter, with the elements before it skipped by their lengths."""
        depth = 0
        while place < self.limit:
            tag, length = _item_head(self.content, place, self.limit)
            if tag == ITEM_END and not depth:
                return place
            if tag in (ITEM, ITEM_END, SEQUENCE_END):
                depth += {ITEM_END: -1, SEQUENCE_END: -1, ITEM: int(length == UNDEFINED)}[tag]
                place += 8
                continue
            _, vr, start, length = _head(self.content, place, self.limit)
            if vr == b"SQ":
                depth += int(length == UNDEFINED)
                place = start
            else:
                place = start + length
        raise Fault("item", place)


def _head(content: bytes, place: int, end: int) -> tuple[int, bytes, int, int]:
    """(tag, VR, where the value starts, its length)."""
    if place + 8 > end:
        raise Fault("trailing", place)
    group, number, vr = struct.unpack_from("<HH2s", content, place)
    if vr in SHORT:
        return group << 16 | number, vr, place + 8, struct.unpack_from("<H", content, place + 6)[0]
    if vr not in LONG or place + 12 > end or content[place + 6 : place + 8] != b"\0\0":
        raise Fault("trailing" if not place < end - 12 else "vr", place)
    return group << 16 | number, vr, place + 12, struct.unpack_from("<I", content, place + 8)[0]


def _item_head(content: bytes, place: int, end: int) -> tuple[int, int]:
    if place + 8 > end:
        raise Fault("item", place)
    group, number, length = struct.unpack_from("<HHI", content, place)
    return group << 16 | number, length
