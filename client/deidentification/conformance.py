"""The DICOM conformance statement of the de-identifier, made from the tables that it works by.

Contents as DICOM PS3.15, E.1.3 asks of an implementation that claims the Basic Application Confidentiality Profile;
arranged after the template of PS3.2, N.11.2.6. Regenerate with `fedsynth client deidentify --conformance`.

Left out: network services (their own statement), and any attribute that is not written: all those are removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from client.deidentification import profile, provenance, reader
from client.deidentification.manifest import Reason, Verdict
from client.verification.report_words import OPTIONS
from shared.modalities.base import modality, names, sop_classes

SYNTAXES = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
}
assert SYNTAXES.keys() == reader.NATIVE


def statement() -> str:
    """The whole statement as Markdown."""
    return "\n".join(_lines()) + "\n"


def _claimed() -> list[Mapping[str, str]]:
    """The option codes that every rebuilt file carries."""
    items = [rule.constant for rule in profile.IDENTITY if rule.keyword == "DeidentificationMethodCodeSequence"]
    return [item for item in items if isinstance(item, Mapping)]


def _lines() -> Iterable[str]:
    claimed = {item["CodeValue"] for item in _claimed()}
    searched = profile.CLEAN_PIXEL_DATA["CodeValue"]
    yield "# DICOM conformance statement: de-identification"
    yield ""
    yield "Made by `fedsynth client deidentify --conformance` from the tables that the software works by; do not edit."
    yield ""
    yield "## 1. Profile and options"
    yield ""
    yield (
        f"fedsynth de-identifies in accordance with the Basic Application Confidentiality Profile of {provenance.EDITION}. "
        "It writes a new data set from an allow-list; it does not edit the old one. Every attribute that is not listed in "
        "section 5 is removed, at every level of nesting, private attributes and attributes unknown to this statement "
        "included. It is a de-identifier only: it does not re-identify, and it writes no Encrypted Attributes Sequence."
    )
    yield ""
    yield from _table(
        ("Code (CID 7050)", "Option", "Claimed", "Note"),
        [
            (code, name, "yes" if code in claimed else "by default" if code == searched else "no",
             f"{meaning}; not claimed with `--no-text-check`" if code == searched else
             meaning if code in claimed or code > "113102" else "not claimed: it does not run on every file")
            for code, (name, meaning) in OPTIONS.items()
        ],
    )  # fmt: skip
    yield "## 2. What is accepted"
    yield ""
    yield from _table(("SOP class UID", "Name"), [(f"`{uid}`", name) for uid, name in sop_classes().items()])
    yield (
        "Every other SOP class is refused, among them secondary captures, encapsulated documents, structured reports, "
        "presentation states, segmentations, waveforms, raw data, spectroscopy, video, and private classes. Input is a Part "
        "10 file with preamble and file meta information. Uncompressed transfer syntaxes: "
        + ", ".join(SYNTAXES[uid] for uid in sorted(SYNTAXES))
        + "; compressed ones: those for which a decoder is installed (RLE, JPEG, JPEG-LS, JPEG 2000). What cannot be decoded "
        "is refused. Output is always Explicit VR Little Endian, uncompressed."
    )
    yield ""
    yield "A file ends with one of these verdicts and reasons, and never half done:"
    yield ""
    for verdict in (Verdict.QUARANTINED, Verdict.REFUSED):
        texts = "; ".join(reason.text for reason in Reason if reason.verdict is verdict)
        yield f"* **{verdict.value.lower()}**: {texts}."
    yield ""
    yield "## 3. What is added or replaced"
    yield ""
    yield from _table(
        ("Where", "Value"),
        [
            ("Patient Identity Removed (0012,0062)", "YES"),
            ("De-identification Method (0012,0063)", profile.METHOD),
            (
                "De-identification Method Code Sequence (0012,0064)",
                "; ".join(" ".join(item.values()) for item in _claimed()),
            ),
            ("The same, by default", " ".join(profile.CLEAN_PIXEL_DATA.values())),
            ("Burned In Annotation (0028,0301)", "NO, by default; absent with `--no-text-check`"),
            ("Longitudinal Temporal Information Modified (0028,0303)", "REMOVED"),
            ("File preamble", "128 bytes of our own, naming the software and the profile"),
            ("File Meta Information", "made anew; nothing of the source but the SOP class"),
            ("UIDs", "`2.25.` and a version 8 UUID made by HMAC-SHA-256 under a key of the hospital: equal for equal sources "
             "under one key. Only frames of reference that the standard names are kept. References to other objects are "
             "removed."),
            ("Patient ID (0010,0020)", "a pseudonym of 16 letters and digits made by HMAC-SHA-256 under the same key from "
             "issuer and identifier"),
            ("Pixel Data (7FE0,0010)", "decoded, masked to Bits Stored, written at exact length"),
        ],
    )  # fmt: skip
    yield "## 4. Limits"
    yield ""
    limits = [
        "Dates and times are removed, not shifted: no temporal option is claimed.",
        "Numbers are kept when they lie in the stated range. A number of the right size cannot be told from an identifier.",
        "Skull-stripped or not, a head scan can be linked to other scans of the same person.",
    ]
    limits.insert(
        0,
        "Text in the pixel data is looked for by optical character recognition; a series that shows any is withheld, and none is "
        "removed. Faint text, single characters and handwriting may be missed: `client/readers/text.py` says what was measured.",
    )
    if "113102" not in claimed:
        limits.insert(0, "Faces are not removed from rebuilt files, and Recognizable Visual Features is not written.")
    yield from (f"* {limit}" for limit in limits)
    yield ""
    yield "## 5. Every attribute that is written"
    yield ""
    yield f"Allow-list, SHA-256 `{provenance.table_digest()}`."
    yield ""
    for name in names():
        if rows := profile.describe(name):
            yield f"### {modality(name).code}: {modality(name).title}"
            yield ""
            yield from _table(("Tag", "Attribute", "Value"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    cells = [list(head), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    yield "| " + " | ".join(cells[0]) + " |"
    yield "|" + " --- |" * len(cells[0])
    for row in cells[1:]:
        yield "| " + " | ".join(row) + " |"
    yield ""
