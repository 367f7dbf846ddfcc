"""Whose a file is, by its path: of NIfTI and of pictures alike. What does not say the person is not used.

The first of these that says something decides (`people: auto`):

1. `sub-LABEL` anywhere in the path, as BIDS names a subject. Sessions, runs and folders around it are of one person.
2. a word that means a person, with a number (`patient01`, `subject-7`, `IXI002`, `OAS1_0001`), or a beginning of a folder's or
   file's name that the table of labels lists: in a folder's name before the file's.
3. the first folder whose name is no word of images, visits, dates or classes (`T1`, `ses-2`, `2021`, `rawdata`).

A flat file whose name says none of this could be anybody's: two such files may be one person, and one would count as two. The
hospital may say how it is instead: `people: folder` (each first folder is a person), `people: image` (each file is another
person) or a table with the columns file,person.

| two names in one path (`sub-01/sub-02.nii`)    | withheld                                                     |
| one name in two trees, visits or contrasts     | one person                                                   |
| names that differ in case, zeros, blanks alone | two people, counted as alike                                 |

Left out: birth dates or hashes in names; whether a folder that looks like a person's holds one person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.deidentification import pseudonym
from client.deidentification.manifest import Reason, Withheld
from client.readers import persons, tables
from shared.errors import DataError

SUBJECT = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+)", re.IGNORECASE)
PERSON = re.compile(
    r"(?<![A-Za-z0-9])((?:(?:subject|subj|sub|patient|paciente|pat|participant|person|proband|ixi)[-_ ]?[a-z]?|oas\d?[-_]?)\d+)",
    re.IGNORECASE,
)
THING = re.compile(  # words that are of images, of times and of places in a tree
    r"(?:(?:raw_?|source)?data(?:set)?|raw|bids|niftis?|nii|dicoms?|images?|imgs?|pictures|pngs?|jpe?gs?|scans?|slices?|volumes?"
    r"|series|brains?|heads?|input|export|train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|anat|func|dwi|dti|fmap|perf|pet|mri?|ct"
    r"|mprage|t1w?|t2w?|t1ce|t1gd|t1c|pdw?|flair|swi|bold|adc|mra|study|session|visit|ses|run|exam|scan|series|baseline|screening"
    r"|follow[-_ ]?up|time[-_ ]?points?|tp|month|year|week|day|v|m|y|(?:19|20)\d\d)[-_ ]?\d{0,3}"
    r"|ses-\w+|(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])(?:[-_.]?[0-3]\d)?",
    re.IGNORECASE,
)
SESSION = re.compile(r"(?<![A-Za-z0-9])(ses-[A-Za-z0-9]+)", re.IGNORECASE)
BREAK = re.compile(r"[-_. ]|$")
ENDING = re.compile(r"(?:\.nii)?\.[A-Za-z]{2,4}$", re.IGNORECASE)
TABLE = {"file": ("path", "file_name", "filename"), "person": ("patient", "patient_id", "participant_id")}


@dataclass(frozen=True)
class People:
    """How the paths of one site say whose a file is.

    said      "auto", "folder", "image", or "table"
    above     folders above the people in the layout: 1 for pictures (the class), 0 for NIfTI
    classes   their names are no people
    listed    keyed tokens of the identifiers that the table of labels has
    table     keyed token of a file's path -> the person, which is patient data
    """

    key: bytes = field(default=b"", repr=False)
    said: str = "auto"
    above: int = 0
    classes: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    table: Mapping[str, str] = field(default_factory=dict, repr=False)

    def person(self, parts: tuple[str, ...]) -> str:
        """The name of the person a file belongs to: patient data. Raises Withheld."""
        if len(parts) <= self.above:
            raise Withheld(Reason.NO_PATIENT)
        match self.said:
            case "table":
                found = self.table.get(_token(self.key, "/".join(parts)), "")
            case "image":
                found = "/".join(parts)
            case "folder":
                found = parts[self.above] if len(parts) > self.above + 1 else ""
            case _:
                found = self._named(parts[self.above :])
        if not found:
            raise Withheld(Reason.NO_PATIENT)
        return found

    def _named(self, parts: tuple[str, ...]) -> str:
        *folders, file = parts
        names = [*folders, ENDING.sub("", file)]
        for say in (_subjects, self._words):
            said = [name for part in names for name in say(part)]
            if len({persons.plain(name) for name in said}) > 1:
                raise Withheld(Reason.TWO_NAMES)
            if said:
                return said[0]
        return next((folder for folder in folders if not self._is_thing(folder)), "")

    def _words(self, part: str) -> list[str]:
        found = PERSON.findall(part)
        if found:
            return list(found)
        beginnings = [part[: end.start()] for end in BREAK.finditer(part) if end.start()]
        return [name for name in reversed(beginnings) if pseudonym.token(self.key, "label", name) in self.listed][:1]

    def _is_thing(self, folder: str) -> bool:
        return bool(THING.fullmatch(folder)) or folder in self.classes


def _subjects(part: str) -> list[str]:
    return list(SUBJECT.findall(part))


def session(parts: tuple[str, ...]) -> str:
    """The session in a path, empty where none is named."""
    return next((found[1] for part in parts if (found := SESSION.search(part))), "")


def spellings(person: str) -> frozenset[str]:
    """The identifiers under which a table of labels may have a person."""
    return frozenset({person, person[4:]} if SUBJECT.fullmatch(person) else {person})


def read(path: Path, key: bytes) -> dict[str, str]:
    """A table of people: keyed token of each file's path -> person. DataError names rows, never values."""
    found: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, row in tables.rows(path, "table of people", "people", TABLE):
        if not row["file"] or not row["person"]:
            raise DataError(f"row {number} of the table of people lacks the file or the person")
        token = _token(key, row["file"].replace("\\", "/").removeprefix("./"))
        if found.setdefault(token, row["person"]) != row["person"]:
            raise DataError(f"rows {first[token]} and {number} of the table of people give one file to two people")
        first.setdefault(token, number)
    return found


def fits(table: Mapping[str, str], files: Iterator[tuple[str, ...]], key: bytes) -> None:
    """DataError where a table of people has no file that is there."""
    if not any(_token(key, "/".join(parts)) in table for parts in files):
        raise DataError(
            "no file of the table of people is there; its column `file` holds the path below `data`, such as a/0001.nii.gz"
        )


def _token(key: bytes, path: str) -> str:
    return pseudonym.token(key, "file", path)
