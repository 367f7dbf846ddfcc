"""Identifiers planted wherever a DICOM file has room: every attribute of the standard, nested items, private elements, odd corners.

Each planted identifier (a canary) is unique, so that a survivor can be traced to its place. Used by the tests of the hospital's
door and by `simulations.benchmarks.deidentify`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

WORD, DATE, NUMBER, UID = "QZJX", "19471213", "771234567", "1.3.6.1.4.1.771234567"
# Attributes that decide whether a file is accepted, or without which it is not an image: they keep their values.
DECISIVE = {
    "SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "ConversionType",
    "SecondaryCaptureDeviceManufacturer", "BurnedInAnnotation", "ImageType", "ComplexImageComponent", "NumberOfFrames",
    "DirectoryRecordSequence", "SpecificCharacterSet", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelData", "FloatPixelData", "DoubleFloatPixelData", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ScanningSequence", "SequenceVariant", "EchoTime", "RescaleSlope",
    "RescaleIntercept", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelDataProviderURL",
    "SyntheticData", "QualityControlSubject", "QualityControlImage", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "PatientSexNeutered",
    "StrainDescription", "StrainCodeSequence", "StrainStockSequence", "GeneticModificationsSequence",
}  # fmt: skip
UNIQUE = re.compile(rf"{WORD}[0-9]{{7}}|{re.escape(UID)}\.[0-9]+|{NUMBER}[0-9]{{6}}".encode(), re.IGNORECASE)
SHARED_UIDS = {"StudyInstanceUID": "1", "SeriesInstanceUID": "2", "FrameOfReferenceUID": "3"}


class Canaries:
    """Makes unique identifiers and knows how to find any of them again."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def word(self) -> str:
        self.made.append(f"{WORD}{len(self.made):07d}")
        return self.made[-1]

    def value(self, vr: str) -> Any:  # noqa: PLR0911  (one line per kind of value)
        number = len(self.made)
        match vr:
            case "PN" | "LO" | "SH" | "ST" | "LT" | "UT" | "UC" | "UR" | "AE" | "CS":
                return self.word()
            case "DA" | "DT" | "TM" | "AS":
                return DATE
            case "DS" | "IS":
                made = f"{NUMBER}{number:06d}"
            case "UI":
                made = f"{UID}.{number}"
            case "OB" | "OW" | "UN" | "OF" | "OD" | "OL" | "OV":
                return self.word().encode() + b" "
            case "FD" | "FL":
                return 77123.5
            case "US" | "UL" | "SS" | "SL" | "UV" | "SV":
                return 31123
            case _:
                return None
        self.made.append(made)
        return made

    def survivors(self, content: bytes) -> set[str]:
        """The very canaries that are in `content`: as text, as UTF-16, or with the bytes of each pair swapped."""
        swapped = bytearray(len(content) // 2 * 2)
        swapped[0::2], swapped[1::2] = content[1 : len(swapped) : 2], content[0 : len(swapped) : 2]
        found = [
            match for text in (content, bytes(swapped), content.replace(b"\0", b"")) for match in UNIQUE.findall(text)
        ]
        return {match.decode().upper() for match in found} & set(self.made)

    def found_in(self, content: bytes) -> list[bytes]:
        word = WORD.encode()
        swapped = bytes(word[i ^ 1] for i in range(len(word)))
        wide = WORD.encode("utf-16-le")
        return [mark for mark in (word, word.lower(), swapped, wide, NUMBER.encode(), DATE.encode()) if mark in content]


def plant(ds: Dataset, canaries: Canaries, *, depth: int = 2) -> None:
    """One canary in every attribute of the standard that can hold one, nested ones included."""
    for number, entry in DicomDictionary.items():
        vr, keyword, tag = entry[0].split(" ")[0], entry[4], Tag(number)
        if not keyword or keyword in DECISIVE or tag.group in (0x0000, 0x0002, 0x0004, 0xFFFE):
            continue
        if vr == "SQ":
            if depth and number % 7 == 0:  # a part of all sequences, each with a full item of its own
                ds.add_new(tag, "SQ", [item(canaries, depth - 1)])
        elif keyword in SHARED_UIDS:
            ds.add_new(tag, vr, f"{UID}.{SHARED_UIDS[keyword]}")
        elif (value := canaries.value(vr)) is not None:
            ds.add_new(tag, vr, value)


def item(canaries: Canaries, depth: int) -> Dataset:
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning, inner.PatientName = canaries.word(), canaries.word(), canaries.word()
    inner.ReferencedSOPInstanceUID, inner.TextValue = canaries.value("UI"), canaries.word()
    inner.add_new(0x00990010, "LO", canaries.word())
    inner.add_new(0x00991001, "UN", canaries.word().encode() + b" ")
    if depth:
        inner.ReferencedSeriesSequence = [item(canaries, depth - 1)]
    return inner


def plant_oddities(ds: FileDataset, canaries: Canaries, *, depth: int = 50) -> None:
    """Private elements, overlays, curves, wrong representations, deep nesting, preamble, meta, spare bits, trailing bytes."""
    block = ds.private_block(0x0029, canaries.word(), create=True)
    block.add_new(0x10, "OB", canaries.word().encode() + b" ")
    block.add_new(0x11, "SQ", [item(canaries, 3)])
    ds.add_new(0x00310077, "LO", canaries.word())  # private, without a creator
    ds.add_new(0x60000010, "US", 8)
    ds.add_new(0x60003000, "OW", canaries.word().encode() + b" ")
    ds.add_new(0x60000022, "LO", canaries.word())
    ds.add_new(0x50003000, "OW", canaries.word().encode() + b" ")
    ds.add_new(0x00101001, "UN", canaries.word().encode() + b" ")  # a name as unknown bytes
    ds.add_new(0x00187001, "LO", canaries.word())  # a number as text
    ds.add_new(0x00189999, "LO", canaries.word())  # unknown, even group
    deep = item(canaries, 0)
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedSeriesSequence = [deep]
        deep = outer
    ds.RequestAttributesSequence = [deep]
    ds.add_new(0xFFFCFFFC, "OB", canaries.word().encode() + b" ")
    ds.preamble = (canaries.word().encode() * 16)[:128]
    ds.file_meta.SourceApplicationEntityTitle = canaries.word()
    ds.file_meta.SendingApplicationEntityTitle = canaries.word()
    ds.file_meta.ImplementationVersionName = canaries.word()
    ds.file_meta.PrivateInformationCreatorUID = canaries.value("UI")
    ds.file_meta.PrivateInformation = canaries.word().encode() + b" "
    samples = np.frombuffer(ds.PixelData, np.uint16).copy()
    for place, letter in enumerate(canaries.word().encode()):  # one nibble at a time, above the bits stored
        samples[2 * place] |= (letter & 0xF) << 12
        samples[2 * place + 1] |= (letter >> 4) << 12
    ds.PixelData = samples.tobytes() + canaries.word().encode() + b" "
