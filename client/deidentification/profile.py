"""The allow-list: everything that a rebuilt record may hold. What is not in these tables cannot survive.

Each rule names one attribute, how its value is made, and the range that a number must lie in. Numbers are parsed, rounded
and written anew, never copied as text; words survive only when they stand in the rule. Ranges and rounding leave an
identifier little room to hide as a number; they cannot exclude it.

A modality is a table for each of its SOP classes and an entry of MODALITIES. To add one (X-ray, ultrasound): write its
table from PS3.3, rule by rule, with ranges in which no identifier fits; enter it below; write the same by hand into
`client.verification.expected_attributes`, which judges what was written (a test compares the two); say in
`client.readers.series` which series is used and how its values become grey; and run the planted identifiers through it. X-ray
and ultrasound also need their own answer to burned-in text, which is usual there: today such a series is withheld, not cleaned.

Sources: attribute types from DICOM PS3.3 (MR Image, Enhanced MR Image, CT Image); actions from PS3.15 2026d, Annex E.

Left out: Enhanced CT; the optional retention profiles (dates, devices, characteristics, descriptors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydicom.datadict import dictionary_description, tag_for_keyword

Kind = Literal["number", "word", "uid", "patient", "constant", "empty", "group", "pixels"]

METHOD = "fedsynth: rebuilt from an allow-list, DICOM PS3.15 2026d"
BASIC_PROFILE = {
    "CodeValue": "113100",
    "CodingSchemeDesignator": "DCM",
    "CodeMeaning": "Basic Application Confidentiality Profile",
}
CLEAN_PIXEL_DATA = {  # with Burned In Annotation NO, only where text was looked for in every frame: PS3.15, E.3.1
    "CodeValue": "113101",
    "CodingSchemeDesignator": "DCM",
    "CodeMeaning": "Clean Pixel Data Option",
}
CLEAN_FEATURES = {
    "CodeValue": "113102",
    "CodingSchemeDesignator": "DCM",
    "CodeMeaning": "Clean Recognizable Visual Features Option",
}


@dataclass(frozen=True)
class Rule:
    """One attribute of the output.

    kind      number: parsed, checked against [low, high], rounded to `decimals`; word: kept only if in `words`;
              uid: replaced by a keyed UID; patient: the pseudonym; constant: `constant`, whatever the source says;
              empty: present without a value; group: a sequence made from GROUPS; pixels: the masked samples
    required  without a valid value the record is quarantined; else the attribute is left out
              (`empty_if_unknown`: written without a value, as PS3.3 Type 2 demands)
    """

    keyword: str
    kind: Kind
    low: float = 0
    high: float = 0
    decimals: int = 0
    count: int = 1
    words: tuple[str, ...] = ()
    constant: str | int | Mapping[str, str] | None = None
    required: bool = False
    empty_if_unknown: bool = False
    unit: str = ""


def _number(keyword: str, low: float, high: float, decimals: int = 0, unit: str = "", *, count: int = 1,
            required: bool = False, empty_if_unknown: bool = False) -> Rule:  # fmt: skip
    return Rule(keyword, "number", low, high, decimals, count, required=required,
                empty_if_unknown=empty_if_unknown, unit=unit)  # fmt: skip


def _word(keyword: str, words: str, count: int = 1, *, required: bool = False, empty_if_unknown: bool = False) -> Rule:
    return Rule(keyword, "word", count=count, words=tuple(words.split()), required=required,
                empty_if_unknown=empty_if_unknown)  # fmt: skip


def _uid(keyword: str) -> Rule:
    return Rule(keyword, "uid", required=True)


def _constant(keyword: str, value: str | int | Mapping[str, str]) -> Rule:
    return Rule(keyword, "constant", constant=value)


def _empty(*keywords: str) -> tuple[Rule, ...]:
    return tuple(Rule(keyword, "empty") for keyword in keywords)


IDENTITY_OF_ANY = (
    _uid("SOPInstanceUID"),
    _uid("StudyInstanceUID"),
    _uid("SeriesInstanceUID"),
    _uid("FrameOfReferenceUID"),
    Rule("PatientID", "patient", required=True),
    _constant("PatientIdentityRemoved", "YES"),
    _constant("DeidentificationMethod", METHOD),
    _constant("DeidentificationMethodCodeSequence", BASIC_PROFILE),
    _constant("LongitudinalTemporalInformationModified", "REMOVED"),
    *_empty("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate",
            "PatientSex", "StudyID", "SeriesNumber", "PositionReferenceIndicator"),
)  # fmt: skip
IDENTITY = (*IDENTITY_OF_ANY, _constant("Modality", "MR"))

PIXELS = (
    _number("SamplesPerPixel", 1, 1, required=True),
    _word("PhotometricInterpretation", "MONOCHROME1 MONOCHROME2", required=True),
    _number("Rows", 1, 4096, required=True),
    _number("Columns", 1, 4096, required=True),
    _number("BitsAllocated", 8, 16, required=True),
    _number("BitsStored", 1, 16, required=True),
    _number("HighBit", 0, 15, required=True),
    _number("PixelRepresentation", 0, 1, required=True),
    _word("LossyImageCompression", "00 01"),
    Rule("PixelData", "pixels", required=True),
)

PLANE_POSITION = (_number("ImagePositionPatient", -2000, 2000, 4, "mm", count=3, required=True),)
PLANE_ORIENTATION = (_number("ImageOrientationPatient", -1, 1, 6, count=6, required=True),)
MEASURES = (
    _number("PixelSpacing", 0.05, 20, 6, "mm", count=2, required=True),
    _number("SliceThickness", 0.05, 100, 4, "mm", empty_if_unknown=True),
    _number("SpacingBetweenSlices", 0.05, 100, 4, "mm"),
)
RESCALE = (
    _number("RescaleIntercept", -1e6, 1e6, 6),
    _number("RescaleSlope", 1e-8, 1e6, 8),
)

SINGLE_FRAME = (
    *IDENTITY,
    _constant("ImageType", "ORIGINAL\\PRIMARY\\OTHER"),
    *_empty("Manufacturer", "InstanceNumber", "ScanOptions", "Laterality"),
    _word("ScanningSequence", "SE IR GR EP RM", 5, required=True),
    _word("SequenceVariant", "SK MTC SS TRSS SP MP OSP NONE", 8, required=True),
    _word("MRAcquisitionType", "2D 3D", empty_if_unknown=True),
    _word("PatientPosition", "HFS HFP HFDR HFDL FFS FFP FFDR FFDL", empty_if_unknown=True),
    _number("RepetitionTime", 0, 30000, 1, "ms", empty_if_unknown=True),
    _number("EchoTime", 0, 1000, 2, "ms", empty_if_unknown=True),
    _number("EchoTrainLength", 0, 1024, empty_if_unknown=True),
    _number("InversionTime", 0, 10000, 1, "ms"),
    _number("FlipAngle", 0, 360, 1, "degrees"),
    _number("NumberOfAverages", 0, 64, 1),
    _number("MagneticFieldStrength", 0.01, 20, 2, "T"),
    *PLANE_POSITION,
    *PLANE_ORIENTATION,
    *MEASURES,
    *RESCALE,
    *PIXELS,
)

MULTI_FRAME = (
    *IDENTITY,
    _constant("ImageType", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
    _constant("InstanceNumber", 1),
    _constant("Manufacturer", "REMOVED"),
    _constant("ManufacturerModelName", "REMOVED"),
    _constant("DeviceSerialNumber", "REMOVED"),
    _constant("SoftwareVersions", "REMOVED"),
    _number("MagneticFieldStrength", 0.01, 20, 2, "T"),
    _number("NumberOfFrames", 1, 100_000, required=True),
    Rule("SharedFunctionalGroupsSequence", "group"),
    Rule("PerFrameFunctionalGroupsSequence", "group"),
    *PIXELS,
)

CT_FRAME = (
    *IDENTITY_OF_ANY,
    _constant("Modality", "CT"),
    _constant("ImageType", "ORIGINAL\\PRIMARY\\AXIAL"),
    *_empty("Manufacturer", "InstanceNumber", "AcquisitionNumber", "Laterality"),
    _word("PatientPosition", "HFS HFP HFDR HFDL FFS FFP FFDR FFDL", empty_if_unknown=True),
    _number("KVP", 20, 200, 0, "kV", empty_if_unknown=True),
    _number("ExposureTime", 0, 60_000, 0, "ms"),
    _number("XRayTubeCurrent", 0, 2000, 0, "mA"),
    _number("Exposure", 0, 5000, 0, "mAs"),
    _number("DataCollectionDiameter", 100, 1000, 0, "mm"),
    _number("ReconstructionDiameter", 50, 1000, 1, "mm"),
    _number("GantryDetectorTilt", -45, 45, 1, "degrees"),
    *PLANE_POSITION,
    *PLANE_ORIENTATION,
    *MEASURES,
    _number("RescaleIntercept", -10_000, 10_000, 2, "HU", required=True),
    _number("RescaleSlope", 0.001, 100, 4, required=True),
    *PIXELS,
)

# Functional groups of a frame, each one item; a frame's own item wins over the shared one.
GROUPS: dict[str, tuple[Rule, ...]] = {
    "FrameContentSequence": (
        _number("TemporalPositionIndex", 1, 100_000),
        _number("InStackPositionNumber", 1, 100_000),
    ),
    "PlanePositionSequence": PLANE_POSITION,
    "PlaneOrientationSequence": PLANE_ORIENTATION,
    "PixelMeasuresSequence": MEASURES,
    "PixelValueTransformationSequence": (*RESCALE, _constant("RescaleType", "US")),
}

# SOP class UID -> (name in the manifest, its table). Every other class is refused.
SOP_CLASSES: dict[str, tuple[str, tuple[Rule, ...]]] = {
    "1.2.840.10008.5.1.4.1.1.2": ("CT Image", CT_FRAME),
    "1.2.840.10008.5.1.4.1.1.4": ("MR Image", SINGLE_FRAME),
    "1.2.840.10008.5.1.4.1.1.4.1": ("Enhanced MR Image", MULTI_FRAME),
    "1.2.840.10008.5.1.4.1.1.4.4": ("Legacy Converted Enhanced MR Image", MULTI_FRAME),
}


MODALITIES: dict[str, tuple[str, ...]] = {  # of a site -> its SOP classes
    "mr": ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4"),
    "ct": ("1.2.840.10008.5.1.4.1.1.2",),
}


def allowed() -> frozenset[str]:
    """Keywords of every attribute that may stand in a rebuilt record, at any level."""
    rules = [
        *(rule for _, table in SOP_CLASSES.values() for rule in table),
        *(rule for group in GROUPS.values() for rule in group),
    ]
    return frozenset({"SOPClassUID", "BurnedInAnnotation", *GROUPS, *BASIC_PROFILE, *(rule.keyword for rule in rules)})


def describe(modality: str = "mr") -> list[tuple[str, str, str]]:
    """The tables of a modality as rows (tag, attribute, what its value is made of), in the order of their tags."""
    (single, *multi), names = zip(*(SOP_CLASSES[uid][::-1] for uid in MODALITIES[modality]), strict=True)
    rows = {rule.keyword: _words_for(rule) for rule in single}
    for rule in multi[0] if multi else ():
        said = _words_for(rule)
        if rows.setdefault(rule.keyword, said) != said:
            rows[rule.keyword] += f" (multi-frame: {said})"
    rows |= {"SOPClassUID": f"kept; one of {', '.join(names)}"}
    rows |= {"BurnedInAnnotation": "NO, and only where text was looked for in every frame"}
    for group, rules in GROUPS.items() if multi else ():
        rows[group] = "per frame: " + ", ".join(rule.keyword for rule in rules)
        rows |= {rule.keyword: _words_for(rule) for rule in rules}
    tags = {keyword: tag_for_keyword(keyword) or 0 for keyword in rows}
    return [
        (
            f"({tags[keyword] >> 16:04X},{tags[keyword] & 0xFFFF:04X})",
            dictionary_description(tags[keyword]),
            rows[keyword],
        )
        for keyword in sorted(rows, key=lambda keyword: tags[keyword])
    ]


def _words_for(rule: Rule) -> str:
    if rule.kind == "constant":
        value = rule.constant
        shown = " ".join(value.values()) if isinstance(value, Mapping) else value
        return f"always {shown}"
    said = {
        "number": f"{rule.count if rule.count > 1 else 'a'} number{'s' if rule.count > 1 else ''} "
        f"from {rule.low:g} to {rule.high:g}{' ' + rule.unit if rule.unit else ''}, "
        f"{f'to {10.0**-rule.decimals:g}' if rule.decimals else 'whole'}",
        "word": "one of " + " ".join(rule.words) if rule.count == 1 else "any of " + " ".join(rule.words),
        "uid": "replaced by a keyed UID",
        "patient": "replaced by a keyed pseudonym",
        "empty": "always empty",
        "group": "rebuilt from the groups of this table",
        "pixels": "samples only: masked to the bits stored, exact length, uncompressed",
    }[rule.kind]
    return f"{said}; else quarantined" if rule.required else said
