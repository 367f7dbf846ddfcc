"""A second opinion on what may stand in a file that we wrote: made by hand from the standard, not from the allow-list.

`client.deidentification.profile` writes, this table judges; neither reads the other, and a test compares them, so that an
attribute enters the output only when it was thought of twice. A line holds tag, VR and what the value must be:

    -            nothing                          word|word    exactly one of these (several: joined by a backslash)
    any:a b c    any of these words, or nothing   uid          one of our own UIDs, or a frame of reference the standard names
    patient      a pseudonym                      n:LOW:HIGH:DECIMALS[:COUNT]   numbers in this range, or nothing

Sources: DICOM PS3.3, sections C.7 and C.8.3, C.8.13; PS3.15 2026d, Table E.1-1.

Left out: relations between attributes, but for those of the pixels (`client.verification.verify`).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache

PREAMBLE = re.compile(rb"De-identified by fedsynth: rebuilt from an allow-list \(DICOM PS3\.15 2026d(, \d{6})+\)\0+")
OUR_UID = re.compile(rb"2\.25\.[1-9][0-9]{0,38}")
PSEUDONYM = re.compile(rb"[a-z2-7]{16}")
FRAMES_OF_REFERENCE = re.compile(rb"1\.2\.840\.10008\.1\.4\.[1-4]\.[0-9.]{1,6}")
NUMBER = re.compile(rb"-?[0-9]{1,9}(\.([0-9]{1,8}))?")

TOP = 0
ANYWHERE = """
00020000 UL n:0:1024:0
00020001 OB version
00020002 UI 1.2.840.10008.5.1.4.1.1.2|1.2.840.10008.5.1.4.1.1.4|1.2.840.10008.5.1.4.1.1.4.1|1.2.840.10008.5.1.4.1.1.4.4
00020003 UI uid
00020010 UI 1.2.840.10008.1.2.1
00020012 UI 2.25.292614219327341873105482071862411273431
00020013 SH FEDSYNTH_0
00080008 CS ORIGINAL\\PRIMARY\\OTHER|ORIGINAL\\PRIMARY\\AXIAL|ORIGINAL\\PRIMARY\\VOLUME\\NONE
00080016 UI 1.2.840.10008.5.1.4.1.1.2|1.2.840.10008.5.1.4.1.1.4|1.2.840.10008.5.1.4.1.1.4.1|1.2.840.10008.5.1.4.1.1.4.4
00080018 UI uid
00080020 DA -
00080030 TM -
00080050 SH -
00080060 CS CT|MR
00080070 LO |REMOVED
00080090 PN -
00081090 LO REMOVED
00100010 PN -
00100020 LO patient
00100030 DA -
00100040 CS -
00120062 CS YES
00120063 LO fedsynth: rebuilt from an allow-list, DICOM PS3.15 2026d
00120064 SQ sequence
00180020 CS any:SE IR GR EP RM
00180021 CS any:SK MTC SS TRSS SP MP OSP NONE
00180022 CS -
00180023 CS any:2D 3D
00180050 DS n:0.05:100:4
00180060 DS n:20:200:0
00180080 DS n:0:30000:1
00180081 DS n:0:1000:2
00180082 DS n:0:10000:1
00180083 DS n:0:64:1
00180087 DS n:0.01:20:2
00180088 DS n:0.05:100:4
00180090 DS n:100:1000:0
00180091 IS n:0:1024:0
00181000 LO REMOVED
00181020 LO REMOVED
00181100 DS n:50:1000:1
00181120 DS n:-45:45:1
00181150 IS n:0:60000:0
00181151 IS n:0:2000:0
00181152 IS n:0:5000:0
00181314 DS n:0:360:1
00185100 CS any:HFS HFP HFDR HFDL FFS FFP FFDR FFDL
0020000D UI uid
0020000E UI uid
00200010 SH -
00200011 IS -
00200012 IS -
00200013 IS |1
00200032 DS n:-2000:2000:4:3
00200037 DS n:-1:1:6:6
00200052 UI uid
00200060 CS -
00201040 LO -
00280002 US n:1:1:0
00280004 CS MONOCHROME1|MONOCHROME2
00280008 IS n:1:100000:0
00280010 US n:1:4096:0
00280011 US n:1:4096:0
00280030 DS n:0.05:20:6:2
00280100 US n:8:16:0
00280101 US n:1:16:0
00280102 US n:0:15:0
00280103 US n:0:1:0
00280301 CS NO
00280303 CS REMOVED
00281052 DS n:-1000000:1000000:6
00281053 DS n:0.00000001:1000000:8
00282110 CS 00|01
52009229 SQ sequence
52009230 SQ sequence
7FE00010 OB pixels
7FE00010 OW pixels
"""
GROUPS = "00209111 00209113 00209116 00289110 00289145"
INSIDE = {  # the sequence around it -> what else may stand there
    "00120064": "00080100 SH 113100|113101\n00080102 SH DCM\n"
    "00080104 LO Basic Application Confidentiality Profile|Clean Pixel Data Option",
    "52009229": "\n".join(f"{group} SQ sequence" for group in GROUPS.split()),
    "52009230": "\n".join(f"{group} SQ sequence" for group in GROUPS.split()),
    "00209111": "00209057 UL n:1:100000:0\n00209128 UL n:1:100000:0",
    "00209113": "00200032 DS n:-2000:2000:4:3",
    "00209116": "00200037 DS n:-1:1:6:6",
    "00289110": "00280030 DS n:0.05:20:6:2\n00180050 DS n:0.05:100:4\n00180088 DS n:0.05:100:4",
    "00289145": "00281052 DS n:-1000000:1000000:6\n00281053 DS n:0.00000001:1000000:8\n00281054 LO US",
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


@cache
def table() -> dict[tuple[int, int], dict[bytes, Shape]]:
    """(sequence around it or TOP, tag) -> VR -> shape."""
    found: dict[tuple[int, int], dict[bytes, Shape]] = {}
    for around, lines in {f"{TOP:08X}": ANYWHERE, **INSIDE}.items():
        for line in lines.strip().splitlines():
            tag, vr, said = line.split(" ", 2)
            found.setdefault((int(around, 16), int(tag, 16)), {})[vr.encode()] = Shape(said)
    return found


def shape(path: tuple[int, ...], tag: int, vr: bytes) -> Shape | None:
    """The shape of this attribute at this place, or none where it may not stand."""
    return table().get((path[-1] if path else TOP, tag), {}).get(vr)
