"""The list of patients that a hospital wants fetched: its own file, and the only patients a PACS is asked about.

The identifiers are patient data: no message repeats one. Every identifier must mean exactly one patient to a PACS, so
characters that a query reads as a pattern are refused (PS3.4, C.2.2.2.4).

Left out: lists by study or accession number.
"""

from __future__ import annotations

import csv
from pathlib import Path

from shared.errors import DataError

PATTERN = frozenset("*?\\")
LONGEST = 64  # PS3.5, 6.2: LO


def read(path: Path) -> dict[str, frozenset[str]]:
    """Patient identifier -> issuers that are wanted (none: any), in the order of the file.

    path   one identifier a line, or CSV whose first row holds the columns patient_id[,issuer]
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise DataError(f"cannot read the list of patients: {error.strerror}; set `pacs.patients`") from None
    except (UnicodeDecodeError, csv.Error):
        rows = []
    named = bool(rows) and "patient_id" in (columns := [cell.strip() for cell in rows[0]])
    place, issuer_place = (columns.index("patient_id"), _index(columns, "issuer")) if named else (0, None)
    found: dict[str, set[str] | None] = {}
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if (named and number == 1) or not any(cells):
            continue
        if not named and len(cells) > 1:
            raise DataError(
                f"row {number} of the list of patients has several columns; name them patient_id,issuer first"
            )
        identifier = _checked(cells[place] if place < len(cells) else "", number)
        issuer = cells[issuer_place] if issuer_place is not None and issuer_place < len(cells) else ""
        issuers = found.setdefault(identifier, set())
        if not issuer:
            found[identifier] = None  # any issuer
        elif issuers is not None:
            issuers.add(issuer)
    if not found:
        raise DataError("the list of patients holds none, or is not text in UTF-8; set `pacs.patients`")
    return {identifier: frozenset(issuers or ()) for identifier, issuers in found.items()}


def _checked(identifier: str, number: int) -> str:
    if not identifier:
        raise DataError(f"row {number} of the list of patients has no patient_id")
    if PATTERN & set(identifier) or not identifier.isprintable() or len(identifier) > LONGEST:
        raise DataError(f"row {number} of the list of patients: not one identifier (a pattern such as *, or too long)")
    return identifier


def _index(columns: list[str], name: str) -> int | None:
    return columns.index(name) if name in columns else None
