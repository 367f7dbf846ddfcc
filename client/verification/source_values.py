"""What a source says about people, as byte strings to look for in everything that was written.

Taken from every file below a folder: its path; of DICOM every header value at every level, the parts of names, dates in
several spellings, numbers of five or more digits, UIDs, printable text inside unknown bytes, preamble and meta; of text
files their words. Each is looked for in several encodings, and whole values also as plain MD5, SHA-1, SHA-256 and
hexadecimal, since without a key those can be recomputed by anybody.

Words under four letters and numbers under five digits are not taken: they occur by chance. Values of attributes whose
numbers legitimately survive (geometry, timing) are taken only when they have six or more digits before the point.

Left out: text inside pictures; headers of picture and NIfTI files; base64; attributes after the pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

from client.deidentification import reader
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.verification import expected_attributes

LONGEST = 64  # of a value; the rest is found by its words
LIMIT_TEXT = 4 << 20
TEXT_FILES = frozenset({".csv", ".tsv", ".txt", ".json", ".xml", ".html"})
BINARY = frozenset({VR.OB, VR.OW, VR.OF, VR.OD, VR.OL, VR.OV, VR.UN})
PRINTABLE = re.compile(rb"[\x20-\x7e]{6,}")
STANDARD_UID = re.compile(r"1\.2\.840\.10008(\.\d+)*")
ENCODINGS = (
    "utf-8",
    "latin-1",
    "utf-16-le",
    "utf-16-be",
    "gb18030",
    "shift_jis",
    "euc_jp",
    "iso2022_jp",
    "euc_kr",
    "iso8859_5",
)
SURVIVING = frozenset(
    tag
    for (_, tag), shapes in expected_attributes.table().items()
    if any(shape.counts for several in shapes.values() for shape in several)
)


def needles(source: Path) -> frozenset[bytes]:
    """Byte strings in lower case, each at least four long, for `client.verification.search`."""
    values: set[str] = set()
    raw: set[bytes] = set()
    seen: set[tuple[int, bytes]] = set()
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        relative = path.relative_to(source.parent if source.is_file() else source)
        values.update(
            (*relative.parent.parts, relative.name.split(".", 1)[0] if "." in relative.name[1:] else relative.name)
        )
        try:
            guarded(Reason.UNREADABLE, lambda: _file(path, values, raw, seen))  # noqa: B023
        except Withheld:  # what cannot be read was not rebuilt either; its name still counts
            continue
    texts = {text for value in values for text in parts(value)}
    found = {form for text in texts for form in encoded(text)}
    found |= {form for value in values for form in recomputable(value)}
    found |= {value.lower()[:LONGEST] for value in raw if len(value) >= 6}
    return frozenset(found)


def _file(path: Path, values: set[str], raw: set[bytes], seen: set[tuple[int, bytes]]) -> None:
    with path.open("rb") as opened:
        start = opened.read(132)
    if start[128:] == b"DICM":
        raw.update(match.strip() for match in PRINTABLE.findall(start[:128]))
        with pydicom.config.disable_value_validation():
            syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
            packed = syntax == DeflatedExplicitVRLittleEndian  # the hospital's own reader unpacks with a limit
            header = reader.whole(path) if packed else pydicom.dcmread(path, stop_before_pixels=True)
            _header(header.file_meta, values, raw, seen)
            _header(header, values, raw, seen)
    elif path.suffix.lower() in TEXT_FILES and path.stat().st_size <= LIMIT_TEXT:
        values.update(re.split(r"[\s,;|<>\"{}]+", path.read_text(encoding="utf-8", errors="replace")))


def _header(ds: Dataset, values: set[str], raw: set[bytes], seen: set[tuple[int, bytes]]) -> None:
    """Take every value of a dataset; `seen` are raw elements that another file of the same series had already."""
    for tag in ds.keys():  # noqa: SIM118  (iterating a dataset converts, and may fail at the first odd value)
        item = ds.get_item(tag)
        content = item.value if isinstance(item, RawDataElement) else None
        if isinstance(content, bytes):
            if (int(tag), content) in seen:
                continue
            seen.add((int(tag), content))
        if isinstance(content, bytes) and not content.isascii() and len(content) <= LIMIT_TEXT:
            raw.update(part.strip(b" \0") for part in re.split(rb"[\\^=]", content) if len(content) <= 4 * LONGEST)
        try:
            element = ds[tag]
        except Exception:  # noqa: BLE001  (an odd value: its bytes are all there is)
            raw.update(PRINTABLE.findall(content or b""))
            continue
        if element.VR == VR.SQ:
            for inner in element.value:
                _header(inner, values, raw, seen)
        elif element.VR in BINARY:
            content = element.value if isinstance(element.value, bytes) else b""
            raw.update(match.strip() for match in PRINTABLE.findall(content[:LIMIT_TEXT]))
        elif element.value is not None and element.VR != VR.AT:
            several = element.value if element.VM > 1 else [element.value]
            texts = {str(value) for value in several}
            if int(tag) in SURVIVING:
                texts = {text for text in texts if re.match(r"-?\d{6,}", text)}
            values.update(texts)


def parts(value: str) -> Iterator[str]:
    """A value and what can be recognised in it: words, parts of a name, numbers, other spellings of a date."""
    value = value.strip(" \0")
    if STANDARD_UID.fullmatch(value):
        return
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3,}", value):  # a UID: its components are no numbers
        yield value
        return
    pieces = {value[:LONGEST], *re.split(r"[\s^=,;/\\_]+", value), *re.findall(r"\w+", value)}
    for piece in pieces:
        if piece.isdigit() or re.fullmatch(r"-?\d+\.\d+", piece):
            digits = re.match(r"-?(\d*)", piece)
            if piece.isdigit() and len(piece) >= 5:
                yield piece
            elif digits and len(digits[1]) >= 5:
                yield piece.strip("-")
        elif len(piece) >= 4 or (len(piece) >= 2 and not piece.isascii()):
            yield piece[:LONGEST]
    yield from re.findall(r"\d{5,}", value)
    for year, month, day in re.findall(r"((?:18|19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", value):
        yield f"{year}{month}{day}"
        yield from (f"{year}-{month}-{day}", f"{year}/{month}/{day}", f"{year}.{month}.{day}")
        yield from (f"{a}{sign}{b}{sign}{year}" for a, b in ((day, month), (month, day)) for sign in ("-", "/", "."))
        name = datetime(2000, int(month), 1).strftime("%b")
        yield from (f"{int(day)} {name} {year}", f"{day}{name}{year}", f"{day}-{name}-{year}")


def encoded(text: str) -> Iterator[bytes]:
    """The text as bytes in lower case, in several encodings, also with each pair of bytes exchanged (swapped words)."""
    for form in {text, text.lower(), text.upper()} if not text.isascii() else {text}:
        for encoding in ENCODINGS if not form.isascii() else ENCODINGS[:4]:
            try:
                content = form.encode(encoding)
            except UnicodeEncodeError:
                continue
            if len(content) >= (4 if text.isascii() else 6):
                yield content.lower()
    plain = text.encode("utf-8", errors="replace").lower()
    if len(plain) >= 8:
        for start in (0, 1):
            even = plain[start : start + (len(plain) - start) // 2 * 2]
            yield bytes(even[i ^ 1] for i in range(len(even)))


def recomputable(value: str) -> Iterator[bytes]:
    """The first 16 digits of what anybody can compute from a guessed identifier."""
    content = value.strip(" \0").encode("utf-8", errors="replace")
    if len(content) < 4 or STANDARD_UID.fullmatch(value.strip(" \0")):
        return
    for name in ("md5", "sha1", "sha256"):
        yield hashlib.new(name, content, usedforsecurity=False).hexdigest()[:16].encode()
    if len(content) >= 6:
        yield content.hex().encode()[: 2 * LONGEST]


def words(values: Iterable[str]) -> frozenset[bytes]:
    """The byte strings of some values: what `needles` makes of a whole folder."""
    return frozenset(form for value in values for text in parts(value) for form in encoded(text))
