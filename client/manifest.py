"""One verdict for every input file, in words from a fixed table.

A line of `manifest.jsonl` holds a keyed token instead of the file's name, the verdict, a reason from `Reason`, and where
known the patient's pseudonym, the series' token, the name of the SOP class and the SHA-256 of the bytes it went into. No
string of the source can stand in it, because no field takes one.

Left out: a hash chain and signatures over the lines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

from shared.errors import DataError


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
    TRANSFER_SYNTAX = (Verdict.REFUSED, "transfer syntax that cannot be decoded")
    COLOUR = (Verdict.REFUSED, "not a single-channel grey image")
    PIXEL_FORMAT = (Verdict.REFUSED, "pixel format outside the table")
    CONVERTED = (Verdict.REFUSED, "scanned, digitised or captured from a screen")
    TRUNCATED = (Verdict.QUARANTINED, "fewer pixel bytes than the header says")
    REQUIRED = (Verdict.QUARANTINED, "a required attribute is missing, repeated or out of range")
    NO_PATIENT = (Verdict.QUARANTINED, "no patient identifier; it cannot be grouped by patient")
    NO_ISSUER = (Verdict.QUARANTINED, "no issuer, while the same patient identifier has one in another file")
    BURNED_IN = (Verdict.QUARANTINED, "text may be burned into the pixels")
    DERIVED = (Verdict.QUARANTINED, "derived or secondary, not as acquired")
    LOCALIZER = (Verdict.QUARANTINED, "localizer")
    NOT_MAGNITUDE = (Verdict.QUARANTINED, "phase, real, imaginary or parameter map")
    MOSAIC = (Verdict.QUARANTINED, "mosaic: many slices tiled in one picture")
    DUPLICATE = (Verdict.QUARANTINED, "the same instance was met before")
    TWO_CLASSES = (Verdict.QUARANTINED, "the same patient lies under two classes")
    FEW_SLICES = (Verdict.QUARANTINED, "fewer slices than the site's minimum")
    GEOMETRY = (Verdict.QUARANTINED, "not one regularly spaced volume")
    OTHER_VOLUME = (Verdict.QUARANTINED, "another volume of the same series was chosen")
    AMBIGUOUS = (Verdict.QUARANTINED, "several volumes that cannot be told apart")
    OTHER_SERIES = (Verdict.QUARANTINED, "another series of the same study was chosen")
    ORIENTATION = (Verdict.QUARANTINED, "orientation is not stated")
    LABEL_MAP = (Verdict.QUARANTINED, "a mask or label map, or without contrast")
    NOT_CLEAN = (Verdict.QUARANTINED, "what was written did not pass its own check")
    DERIVATIVES = (Verdict.QUARANTINED, "inside a folder of derived data")

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
    """This file is not used; the reason is all that is said about it."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """One input file. `sop_class` is a name of a fixed table, or "image" or "nifti"; tokens are keyed."""

    token: str
    reason: Reason
    patient: str | None = None
    sop_class: str | None = None
    series: str | None = None
    sha256: str | None = None

    def because(self, reason: Reason) -> Entry:
        return replace(self, reason=reason)


def write(entries: Iterable[Entry], path: Path) -> None:
    """Write all lines in the order of their tokens, under a temporary name first."""
    lines = []
    for entry in sorted(entries, key=lambda entry: entry.token):
        line = asdict(entry)
        line["verdict"] = entry.reason.verdict.value
        line["reason"] = entry.reason.code
        line["text"] = entry.reason.text
        lines.append(json.dumps(line, sort_keys=True))
    partial = path.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> list[Entry]:
    """The entries of a manifest; DataError when it is missing or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise DataError("the manifest cannot be read; run the ingest again") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            tree = json.loads(line)
            reason = Reason[tree.pop("reason").upper().replace("-", "_")]
            if tree.pop("verdict") != reason.verdict.value or tree.pop("text") != reason.text:
                raise ValueError
            entries.append(Entry(reason=reason, **tree))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"line {number} of the manifest is damaged; run the ingest again") from None
    return entries


def verdicts(entries: Iterable[Entry]) -> dict[str, int]:
    """How many files had each verdict; every verdict is named."""
    counts = Counter(entry.reason.verdict for entry in entries)
    return {verdict.value: counts[verdict] for verdict in Verdict}


def reasons(entries: Iterable[Entry]) -> dict[str, int]:
    """How many files were withheld for each reason, most frequent first."""
    counts = Counter(entry.reason.code for entry in entries if entry.reason.verdict is not Verdict.PASS)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
