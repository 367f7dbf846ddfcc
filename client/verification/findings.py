"""What the verifier may say: a rule from a fixed table, a file by a name of ours or a number, an offset. Never a value.

Left out: how each rule is checked (`client.verification.verify` and what it calls).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RULES = {
    "link": "a link or a special file",
    "exposed": "others than the owner can read it",
    "unexpected-file": "no file that fedsynth writes here",
    "file-name": "a source value stands in the name",
    "source-value": "a source value stands in the bytes",
    "source-samples": "a source value stands in the samples",
    "preamble": "the preamble is not ours",
    "not-part-10": "not a DICOM file",
    "meta-length": "the file meta group does not end where it says",
    "meta-group": "an element outside its place: file meta, or a group below 0008",
    "order": "elements repeat or step back",
    "vr": "a value representation that we do not write",
    "length": "a value that does not fit its length",
    "item": "a broken sequence",
    "depth": "sequences nested deeper than ours",
    "trailing": "bytes after the last element",
    "private": "a private attribute",
    "unknown-attribute": "an attribute that is not in the verifier's table at this place",
    "value": "a value that the verifier's table does not permit",
    "missing": "a required attribute is absent",
    "uid": "file meta and dataset, or file name, give different UIDs",
    "pixel-length": "the samples are not exactly rows x columns x frames",
    "spare-bits": "bits above Bits Stored are set",
    "manifest": "the manifest is missing or damaged",
    "manifest-field": "a field of the manifest holds something else than a token, a digest or a fixed word",
    "seal": "the seal is damaged, or of another manifest",
    "unlisted": "a file that no record of the manifest vouches for, or with another digest",
    "lost": "a record says that it passed, and no file holds it",
    "verdicts": "inputs without a verdict, or verdicts without an input",
    "cohort-file": "a cohort file that is not exactly its pictures and label",
    "report": "the report is not what this folder gives",
    "key": "the key is damaged or not private, or copied into another file",
    "ledger": "the ledger is damaged",
    "dciodvfy": "dciodvfy reports an error",
    "dicomqc": "dicomqc reports an error",
}

OURS = re.compile(
    r"(cohort/|series/)?(2\.25\.[0-9]{1,39}\.dcm|[a-z2-7]{16}\.npz)"
    r"|(manifest|ledger)\.jsonl|manifest\.seal|report\.html|pseudonym\.key|site\.yaml|cohort|cohort/cohort\.(id|names)|reply\.kept"
    r"|node|node/node\.key|node/kit\.json"
)


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that should not be. `file`: a name of ours, or `#number` in the sorted order of all files."""

    file: str
    rule: str
    offset: int | None = None

    def __post_init__(self) -> None:
        assert self.rule in RULES, self.rule


@dataclass
class Verification:
    """What was looked at, what was found, and what did not run."""

    files: int = 0
    bytes: int = 0
    needles: int = 0
    findings: list[Finding] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def add(self, file: str, rule: str, offset: int | None = None) -> None:
        self.findings.append(Finding(file, rule, offset))


def token(relative: str, number: int) -> str:
    """How a file may be called: only a name that we make is repeated."""
    return relative if OURS.fullmatch(relative) else f"#{number}"
