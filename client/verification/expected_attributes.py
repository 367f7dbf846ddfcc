"""A second opinion on what may stand in a file that we wrote: made by hand from the standard, not from the allow-list.

`client.modalities` writes, this table judges; neither reads the other, and a test compares them, so that an
attribute enters the output only when it was thought of twice. A line holds tag, VR and what the value must be:

    -            nothing                          word|word    exactly one of these (several: joined by a backslash)
    any:a b c    any of these words, or nothing   uid          one of our own UIDs, or a frame of reference the standard names
    patient      a pseudonym                      n:LOW:HIGH:DECIMALS[:COUNT]   numbers in this range, or nothing

What holds for every modality stands here; what one of them adds, in a file of its own in `client.verification.modalities`, found by
its name: SOP_CLASSES (UID -> its name), SCALING (how values became greys, in words), TABLES (UID -> sequence around it -> lines).
A file is judged by the lines of its own SOP class.

Sources: DICOM PS3.3, section C.7; PS3.15 2026d, Table E.1-1.

Left out: relations between attributes, but for those of the pixels (`client.verification.verify`).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from client.verification import modalities

PREAMBLE = re.compile(rb"De-identified by fedsynth: rebuilt from an allow-list \(DICOM PS3\.15 2026d(, \d{6})+\)\0+")
OUR_UID = re.compile(rb"2\.25\.[1-9][0-9]{0,38}")
PSEUDONYM = re.compile(rb"[a-z2-7]{16}")
FRAMES_OF_REFERENCE = re.compile(rb"1\.2\.840\.10008\.1\.4\.[1-4]\.[0-9.]{1,6}")
NUMBER = re.compile(rb"-?[0-9]{1,9}(\.([0-9]{1,8}))?")

TOP = 0
ANYWHERE = """
00020000 UL n:0:1024:0
00020001 OB version
00020003 UI uid
00020010 UI 1.2.840.10008.1.2.1
00020012 UI 2.25.292614219327341873105482071862411273431
00020013 SH FEDSYNTH_0
00080018 UI uid
00080020 DA -
00080030 TM -
00080050 SH -
00080090 PN -
00100010 PN -
00100020 LO patient
00100030 DA -
00100040 CS -
00120062 CS YES
00120063 LO fedsynth: rebuilt from an allow-list, DICOM PS3.15 2026d
00120064 SQ sequence
0020000D UI uid
0020000E UI uid
00200010 SH -
00200011 IS -
00280010 US n:1:4096:0
00280011 US n:1:4096:0
00280100 US n:8:16:0
00280101 US n:1:16:0
00280102 US n:0:15:0
00280103 US n:0:1:0
00280301 CS NO
00280303 CS REMOVED
00282110 CS 00|01
7FE00010 OB pixels
7FE00010 OW pixels
"""
INSIDE = {  # the sequence around it -> what else may stand there
    "00120064": "00080100 SH 113100|113101\n00080102 SH DCM\n"
    "00080104 LO Basic Application Confidentiality Profile|Clean Pixel Data Option",
}


@dataclass(frozen=True)
class Shape:
    """What the value of one attribute must be. `fixed`: a value that fits holds no information about anybody."""

    said: str

    @property
    def fixed(self) -> bool:
        return self.said != "patient" and not self.counts and self.said not in ("uid", "pixels", "sequence")

    @property
    def counts(self) -> bool:
        return self.said.startswith("n:")

    def fits(self, vr: bytes, value: bytes) -> bool:
        """Whether these bytes, padding included, are such a value."""
        if self.said in ("pixels", "sequence"):  # judged elsewhere
            return True
        if self.said == "version":
            return value == b"\0\1"
        if self.counts and vr in INTEGER:
            return len(value) == struct.calcsize(INTEGER[vr]) and self._in_range([*struct.unpack(INTEGER[vr], value)])
        return self._text(value[:-1] if value[-1:] == (b"\0" if vr == b"UI" else b" ") else value)

    def _text(self, text: bytes) -> bool:
        if self.said == "uid":
            return bool(OUR_UID.fullmatch(text) or FRAMES_OF_REFERENCE.fullmatch(text))
        if self.said == "patient":
            return bool(PSEUDONYM.fullmatch(text))
        if not text and (self.counts or self.said == "-" or self.said.startswith("any:")):
            return True
        if self.counts:
            found = [NUMBER.fullmatch(part) for part in text.split(b"\\")]
            decimals = int(self.said.split(":")[3])
            written = all(match is not None and len(match[2] or b"") <= decimals for match in found)
            return written and self._in_range([float(match[0]) for match in found if match])
        words = self.said.removeprefix("any:").encode()
        return (
            set(text.split(b"\\")) <= set(words.split()) if self.said.startswith("any:") else text in words.split(b"|")
        )

    def _in_range(self, values: list[float]) -> bool:
        _, low, high, _, *count = self.said.split(":")
        return len(values) == int(count[0] if count else 1) and all(float(low) <= n <= float(high) for n in values)


INTEGER = {b"US": "<H", b"UL": "<I"}
Table = dict[tuple[int, int], dict[bytes, tuple[Shape, ...]]]


@cache
def judged() -> tuple[ModuleType, ...]:
    """The table of each modality: every file of client/verification/modalities."""
    found = sorted(module.name for module in pkgutil.iter_modules(modalities.__path__))
    return tuple(importlib.import_module(f"{modalities.__name__}.{name}") for name in found)


@cache
def names() -> frozenset[str]:
    """What a manifest may call a SOP class, and how it may say that values became greys."""
    return frozenset(word for module in judged() for word in (*module.SOP_CLASSES.values(), module.SCALING))


@cache
def table(sop_class: str = "") -> Table:
    """(sequence around it or TOP, tag) -> VR -> shapes, of which one must fit; without a SOP class, those of all of them."""
    found: Table = {}
    _read(found, {f"{TOP:08X}": ANYWHERE, **INSIDE})
    for module in judged():
        for uid, tables in module.TABLES.items():
            if sop_class in ("", uid):
                _read(found, tables)
    return found


def _read(found: Table, tables: Mapping[str, str]) -> None:
    for around, lines in tables.items():
        for line in filter(None, lines.splitlines()):
            tag, vr, said = line.split(" ", 2)
            shapes = found.setdefault((int(around, 16), int(tag, 16)), {})
            shapes[vr.encode()] = tuple(dict.fromkeys((*shapes.get(vr.encode(), ()), Shape(said))))


def shapes(sop_class: str, path: tuple[int, ...], tag: int, vr: bytes) -> tuple[Shape, ...]:
    """The shapes of this attribute at this place, of which its value must have one; none where it may not stand.

    sop_class   of the file; one that nobody knows is a finding itself, and the rest is judged by what any file may hold
    """
    known = {uid for module in judged() for uid in module.SOP_CLASSES}
    return table(sop_class if sop_class in known else "").get((path[-1] if path else TOP, tag), {}).get(vr, ())
