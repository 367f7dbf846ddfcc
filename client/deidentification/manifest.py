"""One verdict for every input file, in words from a fixed table, chained so that a changed byte names its record.

A line of `manifest.jsonl` holds keyed tokens instead of the file's name and UIDs, the verdict, a reason from `Reason`, and
where known the patient's pseudonym, the series' token, the name of the SOP class and the SHA-256 of the bytes it went into.
No string of the source can stand in it, because no field takes one.

Record 0 says by which software and tables (`client.deidentification.provenance`); the last one holds the totals. Each carries
the hash of the one before (`shared.journal.chain`). A line that was changed, removed, added or moved breaks a link, and lines
cut from the end take the totals with them. Whoever rewrites the whole file leaves no trace in it: keep the last hash somewhere
else.

Left out: a signature over the last hash.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from shared import files
from shared.errors import DataError, LedgerError
from shared.journal import chain

REMEDY = "it was changed after the run that wrote it; run that again, or restore the manifest from a backup"
CHAIN = ("kind", "index", "previous", "hash")  # what every record of the chain carries


class Verdict(Enum):
    PASS = "PASS"  # noqa: S105  (a verdict, not a password)
    QUARANTINED = "QUARANTINED"  # the right kind of file, but in doubt, or not the one that was chosen
    REFUSED = "REFUSED"  # never accepted: another kind of file, or one that cannot be read


class Reason(Enum):
    """code = (verdict, fixed text)."""

    OK = (Verdict.PASS, "used")
    SYMLINK = (Verdict.REFUSED, "symbolic link; copy the file itself")
    NOT_REGULAR = (Verdict.REFUSED, "not a regular file")
    TOO_LARGE = (Verdict.REFUSED, "larger than the limit, or unpacks to more")
    NOT_DICOM = (Verdict.REFUSED, "not a DICOM file")
    DICOMDIR = (Verdict.REFUSED, "a DICOMDIR is a list of names, not an image")
    UNREADABLE = (Verdict.REFUSED, "cannot be read")
    NOT_AN_IMAGE = (Verdict.REFUSED, "not an image of the stated format")
    SOP_CLASS = (Verdict.REFUSED, "kind of object that is never accepted")
    MODALITY = (Verdict.REFUSED, "not of the site's modality")
    TRANSFER_SYNTAX = (Verdict.REFUSED, "transfer syntax that cannot be decoded")
    COLOUR = (Verdict.REFUSED, "not a single-channel grey image")
    PIXEL_FORMAT = (Verdict.REFUSED, "pixel format outside the table")
    SYNTHETIC = (Verdict.REFUSED, "synthetic data, not acquired from a person")
    QUALITY_CONTROL = (Verdict.REFUSED, "a phantom or a quality control image, not a person")
    ANIMAL = (Verdict.REFUSED, "an animal, or a subject whose species is not said to be human")
    CONVERTED = (Verdict.REFUSED, "scanned, digitised or captured from a screen")
    TRUNCATED = (Verdict.QUARANTINED, "fewer pixel bytes than the header says")
    REQUIRED = (Verdict.QUARANTINED, "a required attribute is missing, repeated or out of range")
    NO_PATIENT = (Verdict.QUARANTINED, "no patient identifier; it cannot be grouped by patient")
    TWO_NAMES = (Verdict.QUARANTINED, "the path names two people")
    NO_ISSUER = (Verdict.QUARANTINED, "no issuer, while other files name several for the same patient identifier")
    MANY_NAMES = (Verdict.QUARANTINED, "more patient identifiers in one study than one person can have")
    SHARED_STUDY = (Verdict.QUARANTINED, "a study of this patient belongs to another wanted identifier as well")
    BURNED_IN = (Verdict.QUARANTINED, "text may be burned into the pixels")
    TEXT = (Verdict.QUARANTINED, "text was seen in the pixels of the series")
    DERIVED = (Verdict.QUARANTINED, "derived or secondary, not as acquired")
    LOCALIZER = (Verdict.QUARANTINED, "localizer")
    NOT_MAGNITUDE = (Verdict.QUARANTINED, "phase, real, imaginary or parameter map")
    MOSAIC = (Verdict.QUARANTINED, "mosaic: many slices tiled in one picture")
    NOT_AXIAL = (Verdict.QUARANTINED, "not acquired in axial slices")
    NOT_A_HEAD = (Verdict.QUARANTINED, "field of view or coverage is not that of a head")
    DUPLICATE = (Verdict.QUARANTINED, "the same instance was met before")
    TWO_CLASSES = (Verdict.QUARANTINED, "the same patient lies under two classes")
    FEW_SLICES = (Verdict.QUARANTINED, "fewer slices than the site's minimum")
    GEOMETRY = (Verdict.QUARANTINED, "not one regularly spaced volume")
    OTHER_VOLUME = (Verdict.QUARANTINED, "another volume of the same series was chosen")
    AMBIGUOUS = (Verdict.QUARANTINED, "several volumes that cannot be told apart")
    OTHER_SERIES = (Verdict.QUARANTINED, "another series of the same study was chosen")
    ORIENTATION = (Verdict.QUARANTINED, "orientation is not stated")
    LABEL_MAP = (Verdict.QUARANTINED, "a mask or label map, or without contrast")
    FLAT = (Verdict.QUARANTINED, "a picture without contrast: all of it is nearly one grey")
    BLACK = (Verdict.QUARANTINED, "a picture that is nearly black")
    NOT_CLEAN = (Verdict.QUARANTINED, "what was written did not pass its own check")
    DERIVATIVES = (Verdict.QUARANTINED, "inside a folder of derived data")
    INCOMPLETE = (Verdict.QUARANTINED, "a study that the PACS did not deliver whole; asked for again next time")
    NOT_REACHED = (Verdict.QUARANTINED, "a patient for whom the PACS gave no answer; asked for again next time")
    NOT_FOUND = (Verdict.QUARANTINED, "a patient of whom the PACS has no image of the wanted kind")
    OTHER_PATIENT = (Verdict.QUARANTINED, "belongs to another patient than the one asked for")
    NOT_T1 = (Verdict.QUARANTINED, "not T1-weighted: faces are removed from T1-weighted heads only")
    COVERAGE = (Verdict.QUARANTINED, "too little of the head in view to check that the face is gone")
    NO_BRAIN = (Verdict.QUARANTINED, "no brain was found in it")
    BRAIN_VOLUME = (Verdict.QUARANTINED, "brain mask of an impossible volume")
    BRAIN_PIECES = (Verdict.QUARANTINED, "brain mask in several pieces")
    MASKS_DIFFER = (Verdict.QUARANTINED, "two independent brain masks disagree")
    FACE_LEFT = (Verdict.QUARANTINED, "the brain mask reaches into the face")
    BRAIN_LOW = (Verdict.QUARANTINED, "the brain lies too low in the volume: upside down, or cut off")
    OUTSIDE_MASK = (Verdict.QUARANTINED, "values were left outside the brain mask")

    @property
    def verdict(self) -> Verdict:
        return self.value[0]

    @property
    def text(self) -> str:
        return self.value[1]

    @property
    def code(self) -> str:
        return self.name.lower().replace("_", "-")


class Withheld(DataError):
    """This file is not used; the reason, and numbers for the manifest, are all that is said about it."""

    def __init__(self, reason: Reason, evidence: dict[str, float | str] | None = None) -> None:
        super().__init__(reason.text)
        self.reason = reason
        self.evidence = evidence


@dataclass(frozen=True)
class Entry:
    """One input file. `sop_class` is a name of a fixed table, or "image" or "nifti"; tokens are keyed.

    token   of the instance where known, else of the file
    file    of the path below the data folder: different for every input
    face    measures and mask digests of the removal of the face, where it ran
    """

    token: str
    reason: Reason
    patient: str | None = None
    sop_class: str | None = None
    series: str | None = None
    sha256: str | None = None
    file: str | None = None
    face: dict[str, float | str] | None = None

    def because(self, reason: Reason) -> Entry:
        return replace(self, reason=reason)


@dataclass(frozen=True)
class Manifest:
    """A manifest whose chain holds. `last_hash` stands for all of it; `counts`: what else was counted, by subject."""

    header: dict[str, Any]
    entries: list[Entry]
    last_hash: str
    counts: dict[str, dict[str, int]]


def write(
    entries: Iterable[Entry],
    path: Path,
    header: Mapping[str, Any] | None = None,
    counts: Mapping[str, Mapping[str, int]] | None = None,
) -> str:
    """Write header, one line for each entry in the order of their tokens, and totals; under a temporary name first.

    counts   what else is known of the input as a whole, by subject: it stands beside the totals

    Returns the last hash, which stands for the whole file.
    """
    ordered = sorted(entries, key=lambda entry: (entry.token, entry.file or ""))
    bodies: list[dict[str, Any]] = [{"kind": "header", **(header or {})}]
    bodies += [{"kind": "file", **asdict(entry), **_words(entry.reason)} for entry in ordered]
    bodies.append(
        {"kind": "totals", **_totals(ordered), "counts": {name: dict(of) for name, of in (counts or {}).items()}}
    )
    lines: list[bytes] = []
    before: chain.Record | None = None
    for body in bodies:
        lines.append(chain.line(body, before))
        before = json.loads(lines[-1])
    assert before is not None
    files.replace(path, b"".join(lines))
    return str(before["hash"])


def read(path: Path) -> list[Entry]:
    """The entries of a manifest; DataError when it is missing or damaged."""
    return load(path).entries


def load(path: Path) -> Manifest:
    """Check every link of a manifest and read it. DataError names the first damaged record, by its number from 0."""
    try:
        content = path.read_bytes()
    except OSError:
        raise DataError("the manifest cannot be read; run the ingest again") from None
    try:
        found = chain.read(content, "the manifest", REMEDY)
    except LedgerError as error:
        raise DataError(str(error)) from None
    *lines, last = found.records
    if found.torn or not found.ended or last.get("kind") != "totals":
        raise DataError(f"the manifest: its end is missing after record {len(found.records) - 1}; {REMEDY}")
    entries = [_entry(number, line) for number, line in enumerate(lines[1:], start=1)]
    files = [entry.file for entry in entries if entry.file is not None]
    if len(set(files)) < len(files):
        raise DataError("the manifest: one input has two verdicts; run the ingest again")
    if {key: last.get(key) for key in _totals(entries)} != _totals(entries):
        raise DataError(f"the manifest: its counts do not add up; {REMEDY}")
    header = {key: value for key, value in lines[0].items() if key not in CHAIN}
    return Manifest(header, entries, str(last["hash"]), dict(last.get("counts") or {}))


def _entry(number: int, line: Mapping[str, Any]) -> Entry:
    try:
        reason = Reason[line["reason"].upper().replace("-", "_")]
        fields = {key: value for key, value in line.items() if key not in (*CHAIN, "verdict", "reason", "text")}
        if line["kind"] != "file" or _words(reason) != {key: line[key] for key in _words(reason)}:
            raise ValueError
        return Entry(reason=reason, **fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"the manifest: record {number} is no verdict of this version; run the ingest again") from None


def _words(reason: Reason) -> dict[str, str]:
    return {"verdict": reason.verdict.value, "reason": reason.code, "text": reason.text}


def _totals(entries: list[Entry]) -> dict[str, Any]:
    return {"files": len(entries), "verdicts": verdicts(entries), "reasons": reasons(entries)}


def verdicts(entries: Iterable[Entry]) -> dict[str, int]:
    """How many files had each verdict; every verdict is named."""
    counts = Counter(entry.reason.verdict for entry in entries)
    return {verdict.value: counts[verdict] for verdict in Verdict}


def reasons(entries: Iterable[Entry]) -> dict[str, int]:
    """How many files were withheld for each reason, most frequent first."""
    counts = Counter(entry.reason.code for entry in entries if entry.reason.verdict is not Verdict.PASS)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
