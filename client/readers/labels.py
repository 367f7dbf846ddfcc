"""Labels of patients from a table with the columns patient_id,class, and how well that table fits the patients.

The identifiers are patient data: they are turned into keyed tokens line by line, and no message repeats a value.

A row counts only when its identifier is the patient's, sign by sign: a spreadsheet that dropped zeros from the front does not
get them guessed back, because 42 and 0042 may be two people. So that nobody trains without labels unawares, the rows are matched
before any pixel is read, the counts stand in every paper, and these stop the ingest:

* no patient has a row;
* more than half of the patients have no row, while more than half of the rows are of nobody here: the table is of others;
* at least one patient in ten has no row but would have one, were case, zeros, blanks and signs ignored: they were lost.

A table of a few of the patients, or of many more than the patients, is none of these.

Left out: labels of single studies or slices; the same identifier from two issuers (both get the row's label).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.deidentification import pseudonym
from client.readers import persons, tables
from shared.errors import DataError

COLUMNS = {"patient_id": ("patientid", "participant_id"), "class": ()}
GROUPS = ("group", "diagnosis", "dx", "label")  # where participants.tsv has no column `class`
LOST = 0.1  # of the patients


@dataclass(frozen=True)
class Labels:
    """Keyed tokens alone.

    by_identifier   of each identifier -> index into the classes
    plain           the same without case, zeros in front, blanks and signs: for counting, never for matching
    """

    by_identifier: Mapping[str, int] = field(default_factory=dict)
    plain: Mapping[str, str] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> int | None:
        """The label of a person who has any of these tokens; -1 where the table says two things, None where it says nothing."""
        said = {self.by_identifier[name] for name in names if name in self.by_identifier}
        return None if not said else said.pop() if len(said) == 1 else -1

    def match(self, identifiers: Iterable[Collection[str]], key: bytes) -> dict[str, int]:
        """Counts of rows and of patient identifiers, matched and not; raises DataError where the table misses.

        identifiers   each with all the spellings under which a table may have it
        """
        met = [{name: pseudonym.token(key, "label", name) for name in names} for names in identifiers]
        used = {token for names in met for token in names.values() if token in self.by_identifier}
        missing = [names for names in met if not used & set(names.values())]
        left = {token: looks for token, looks in self.plain.items() if token not in used}
        lost = set(left.values())
        alike = sum(any(_looks(key, name) in lost for name in names) for names in missing)
        counts = {
            "rows": len(self.by_identifier),
            "matched": len(met) - len(missing),
            "unmatched": len(missing),
            "surplus": len(self.by_identifier) - len(used),
            "alike": alike,
        }
        mostly = 2 * len(missing) > len(met) and 2 * counts["surplus"] > counts["rows"]
        if met and (not used or mostly or alike >= LOST * len(met)):
            raise DataError(_misses(counts))
        return counts


def _looks(key: bytes, identifier: str) -> str:
    return pseudonym.token(key, "alike", persons.plain(identifier))


def _misses(counts: Mapping[str, int]) -> str:
    number = counts["matched"] + counts["unmatched"]
    near = ""
    if counts["alike"]:
        near = (
            f"; {counts['alike']} would if case, leading zeros, blanks and signs were ignored: a spreadsheet may have changed "
            "them, so make the table again with patient_id as text"
        )
    return (
        f"the labels table does not fit: {counts['matched'] or 'none'} of the {number} patient identifiers have a row in it, and "
        f"{counts['surplus']} of its {counts['rows']} rows are of nobody here{near}; correct it, or leave `labels` out of the site "
        "file"
    )


def read(path: Path, classes: Sequence[str], key: bytes) -> Labels:
    """The hospital's table. DataError names rows and classes, never values."""
    found: dict[str, int] = {}
    plain: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, row in tables.rows(path, "labels table", "labels", COLUMNS):
        if row["class"] not in classes:
            raise DataError(f"row {number} of the labels table: the class is not one of {', '.join(classes)}")
        if not row["patient_id"]:
            raise DataError(f"row {number} of the labels table has no patient_id")
        token = pseudonym.token(key, "label", row["patient_id"])
        if found.setdefault(token, classes.index(row["class"])) != classes.index(row["class"]):
            raise DataError(f"rows {first[token]} and {number} of the labels table give one patient two classes")
        first.setdefault(token, number)
        plain[token] = _looks(key, row["patient_id"])
    return Labels(found, plain)


def participants(paths: Iterable[Path], classes: Sequence[str], key: bytes) -> Labels:
    """What the participants.tsv of BIDS trees say; empty where they have no column of our classes. Others' words are no label."""
    found: dict[str, set[int]] = {}
    plain: dict[str, str] = {}
    for path in paths:
        for column in ("class", *GROUPS):
            try:
                rows = list(tables.rows(path, "table of participants", "labels", {"participant_id": (), column: ()}))
            except DataError:
                continue
            rows = [row for row in rows if row[1][column] in classes and row[1]["participant_id"]]
            for _, row in rows:
                token = pseudonym.token(key, "label", row["participant_id"])
                found.setdefault(token, set()).add(classes.index(row[column]))
                plain[token] = _looks(key, row["participant_id"])
            if rows:
                break
    return Labels({token: said.pop() for token, said in found.items() if len(said) == 1}, plain)
