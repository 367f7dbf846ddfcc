"""The allow-list: everything that a rebuilt record may hold. What is not in these tables cannot survive.

Each rule names one attribute, how its value is made, and the range that a number must lie in. Numbers are parsed, rounded
and written anew, never copied as text; words survive only when they stand in the rule. Ranges and rounding leave an
identifier little room to hide as a number; they cannot exclude it.

Here is what a rule is, and what the tables of several SOP classes have in common. Each modality has its own tables
(`client.modalities`), written from PS3.3 rule by rule, with ranges in which no identifier fits. Apart from them, by hand, the
judge has his (`client.verification.modalities`); a test compares the two.

Sources: attribute types from DICOM PS3.3; actions from PS3.15 2026d, Annex E.

Left out: the optional retention profiles (dates, devices, characteristics, descriptors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydicom.datadict import dictionary_description, tag_for_keyword

from client import modalities
from shared.modalities.base import DEFAULT
from shared.modalities.base import modality as known

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


def number(keyword: str, low: float, high: float, decimals: int = 0, unit: str = "", *, count: int = 1,
            required: bool = False, empty_if_unknown: bool = False) -> Rule:  # fmt: skip
    return Rule(keyword, "number", low, high, decimals, count, required=required,
                empty_if_unknown=empty_if_unknown, unit=unit)  # fmt: skip


def word(keyword: str, words: str, count: int = 1, *, required: bool = False, empty_if_unknown: bool = False) -> Rule:
    return Rule(keyword, "word", count=count, words=tuple(words.split()), required=required,
                empty_if_unknown=empty_if_unknown)  # fmt: skip


def uid(keyword: str) -> Rule:
    return Rule(keyword, "uid", required=True)


def constant(keyword: str, value: str | int | Mapping[str, str]) -> Rule:
    return Rule(keyword, "constant", constant=value)


def empty(*keywords: str) -> tuple[Rule, ...]:
    return tuple(Rule(keyword, "empty") for keyword in keywords)


IDENTITY = (
    uid("SOPInstanceUID"),
    uid("StudyInstanceUID"),
    uid("SeriesInstanceUID"),
    uid("FrameOfReferenceUID"),
    Rule("PatientID", "patient", required=True),
    constant("PatientIdentityRemoved", "YES"),
    constant("DeidentificationMethod", METHOD),
    constant("DeidentificationMethodCodeSequence", BASIC_PROFILE),
    constant("LongitudinalTemporalInformationModified", "REMOVED"),
    *empty("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate",
            "PatientSex", "StudyID", "SeriesNumber", "PositionReferenceIndicator"),
)  # fmt: skip

PIXELS = (
    number("SamplesPerPixel", 1, 1, required=True),
    word("PhotometricInterpretation", "MONOCHROME1 MONOCHROME2", required=True),
    number("Rows", 1, 4096, required=True),
    number("Columns", 1, 4096, required=True),
    number("BitsAllocated", 8, 16, required=True),
    number("BitsStored", 1, 16, required=True),
    number("HighBit", 0, 15, required=True),
    number("PixelRepresentation", 0, 1, required=True),
    word("LossyImageCompression", "00 01"),
    Rule("PixelData", "pixels", required=True),
)

PLANE_POSITION = (number("ImagePositionPatient", -2000, 2000, 4, "mm", count=3, required=True),)
PLANE_ORIENTATION = (number("ImageOrientationPatient", -1, 1, 6, count=6, required=True),)
MEASURES = (
    number("PixelSpacing", 0.05, 20, 6, "mm", count=2, required=True),
    number("SliceThickness", 0.05, 100, 4, "mm", empty_if_unknown=True),
    number("SpacingBetweenSlices", 0.05, 100, 4, "mm"),
)
RESCALE = (
    number("RescaleIntercept", -1e6, 1e6, 6),
    number("RescaleSlope", 1e-8, 1e6, 8),
)

# Functional groups of a frame, each one item; a frame's own item wins over the shared one.
GROUPS: dict[str, tuple[Rule, ...]] = {
    "FrameContentSequence": (
        number("TemporalPositionIndex", 1, 100_000),
        number("InStackPositionNumber", 1, 100_000),
    ),
    "PlanePositionSequence": PLANE_POSITION,
    "PlaneOrientationSequence": PLANE_ORIENTATION,
    "PixelMeasuresSequence": MEASURES,
    "PixelValueTransformationSequence": (*RESCALE, constant("RescaleType", "US")),
}


def allowed() -> frozenset[str]:
    """Keywords of every attribute that may stand in a rebuilt record, at any level."""
    rules = [
        *(rule for table in modalities.tables().values() for rule in table),
        *(rule for group in GROUPS.values() for rule in group),
    ]
    return frozenset({"SOPClassUID", "BurnedInAnnotation", *GROUPS, *BASIC_PROFILE, *(rule.keyword for rule in rules)})


def describe(modality: str = DEFAULT) -> list[tuple[str, str, str]]:
    """The tables of a modality as rows (tag, attribute, what its value is made of), in the order of their tags."""
    names = list(known(modality).sop_classes.values())
    if not names:
        return []
    single, *multi = (modalities.reader_of(modality).tables[uid] for uid in known(modality).sop_classes)
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
