"""One written DICOM file, judged byte by byte.

Left out: the meaning of the picture; text and faces in it; an identifier that is a number inside the range of a numeric
attribute (scanners repeat the same numbers in many places, so equality says nothing).
"""

from __future__ import annotations

import struct

import numpy as np

from client.verification import dicom_parser, expected_attributes
from client.verification.findings import Verification
from client.verification.search import Search, in_samples

PIXELS = 0x7FE00010
REQUIRED = frozenset({0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00080016, 0x00080018, 0x0020000D, 0x0020000E}
                     | {0x00100020, 0x00120062, 0x00120063, 0x00120064, 0x00280303, 0x00280010, 0x00280011, PIXELS}
                     | {0x00280100, 0x00280101, 0x00280103})  # fmt: skip
SOP_CLASS = 0x00020002  # in the file meta, before everything that it decides about
TWICE = ((0x00020002, 0x00080016), (0x00020003, 0x00080018))  # file meta repeats the dataset


class Needles:
    """The searches for one source's values; without a source they find nothing."""

    def __init__(self, needles: frozenset[bytes] = frozenset()) -> None:
        self.count = len(needles)
        self.text = Search(needles)
        self.samples = {bits: in_samples(needles, bits) for bits in (8, 16)}


def check(content: bytes, name: str, file: str, needles: Needles, result: Verification) -> None:
    """Add to `result` whatever is wrong with these bytes.

    name   of the file, which must be its UID
    file   how the findings call it
    """
    if not expected_attributes.PREAMBLE.fullmatch(content[:128]):
        result.add(file, "preamble", 0)
    for offset, _ in needles.text.find(content[:128].replace(*_said(content))):
        result.add(file, "source-value", offset)
    residue = bytearray(content)
    residue[:128] = bytes(128)
    found: dict[int, dicom_parser.Element] = {}
    sop_class = ""
    try:
        for element in dicom_parser.elements(content):
            if element.tag == SOP_CLASS and not element.path:
                sop_class = element.value.rstrip(b"\0").decode("ascii", "replace")
            _element(element, sop_class, file, needles, residue, result)
            if not element.path:
                found[element.tag] = element
    except dicom_parser.Fault as fault:
        result.add(file, fault.rule, fault.offset)
    else:
        for _ in REQUIRED - found.keys():
            result.add(file, "missing")
        _uids(found, name, file, result)
        _pixels(found, content, file, needles, result)
    pixels = found.get(PIXELS)
    if pixels is not None:
        residue[pixels.start : pixels.start + len(pixels.value)] = bytes(len(pixels.value))
    for offset, _ in needles.text.find(bytes(residue)):
        result.add(file, "source-value", offset)


def _said(content: bytes) -> tuple[bytes, bytes]:
    """What to blank of the preamble: all of it when it is ours."""
    start = content[:128]
    return (start, bytes(128)) if expected_attributes.PREAMBLE.fullmatch(start) else (b"\0", b"\0")


def _element(
    element: dicom_parser.Element,
    sop_class: str,
    file: str,
    needles: Needles,
    residue: bytearray,
    result: Verification,
) -> None:
    """Judge one element; what is exactly as the table says is blanked, so that our own words are not searched."""
    if element.tag >> 16 & 1:
        result.add(file, "private", element.start)
        return
    shapes = expected_attributes.shapes(sop_class, element.path, element.tag, element.vr)
    if not shapes:
        result.add(file, "unknown-attribute", element.start)
        return
    shape = next((shape for shape in shapes if shape.fits(element.vr, element.value)), None)
    if shape is None:
        result.add(file, "value", element.start)
        return
    if shape.said in {"pixels", "patient"}:
        return
    # A UID holds digits by chance: it is compared whole. A number inside its range is not searched at all.
    if shape.said == "uid" and element.value.strip(b" \0") in needles.text:
        result.add(file, "source-value", element.start)
    residue[element.start : element.start + len(element.value)] = bytes(len(element.value))


def _uids(found: dict[int, dicom_parser.Element], name: str, file: str, result: Verification) -> None:
    for meta, data in TWICE:
        if meta in found and data in found and found[meta].value != found[data].value:
            result.add(file, "uid", found[meta].start)
    instance = found.get(0x00080018)
    if instance is not None and name != f"{instance.value.rstrip(bytes(1)).decode('ascii', 'replace')}.dcm":
        result.add(file, "uid", instance.start)


def _pixels(
    found: dict[int, dicom_parser.Element], content: bytes, file: str, needles: Needles, result: Verification
) -> None:
    pixels = found.get(PIXELS)
    numbers = {tag: found.get(tag) for tag in (0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280103)}
    if pixels is None or any(element is None or len(element.value) != 2 for element in numbers.values()):
        return
    rows, columns, allocated, stored, signed = (
        struct.unpack("<H", element.value)[0] for element in numbers.values() if element is not None
    )
    frames = found.get(0x00280008)
    count = int(frames.value) if frames is not None and frames.value.strip().isdigit() else 1
    length = rows * columns * count * allocated // 8
    if allocated not in (8, 16) or not 0 < stored <= allocated:
        result.add(file, "value", numbers[0x00280100].start)  # type: ignore[union-attr]
        return
    if len(pixels.value) != length + length % 2 or any(pixels.value[length:]):
        result.add(file, "pixel-length", pixels.start)
    samples = np.frombuffer(pixels.value[: len(pixels.value) // 2 * 2], f"<{'i' if signed else 'u'}{allocated // 8}")
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    if len(samples) and (samples.min() < low or samples.max() > high):
        result.add(file, "spare-bits", pixels.start)
    for offset, _ in needles.samples[allocated].find(pixels.value):
        result.add(file, "source-samples", pixels.start + offset)
