"""Labels of patients from a table with the columns patient_id,class.

The identifiers are patient data: they are turned into keyed tokens line by line, and no message repeats a value.

Left out: labels of single studies or slices; the same identifier from two issuers (both get the row's label).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from client.rebuild import pseudonym
from shared.errors import DataError

COLUMNS = {"patient_id", "class"}


def locate(labels: Path, data: Path) -> Path:
    """The table's path as given, or below the data folder when it is only there."""
    return labels if labels.is_absolute() or labels.is_file() else data / labels


def read(path: Path, classes: Sequence[str], key: bytes) -> dict[str, int]:
    """Keyed token of each identifier -> index into `classes`. DataError names rows and classes, never values."""
    found: dict[str, int] = {}
    rows: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if not set(table.fieldnames or ()) >= COLUMNS:
                raise DataError("the labels table must have the columns patient_id,class in its first row")
            for number, row in enumerate(table, start=2):
                identifier, kind = (row["patient_id"] or "").strip(), (row["class"] or "").strip()
                if kind not in classes:
                    raise DataError(f"row {number} of the labels table: the class is not one of {', '.join(classes)}")
                if not identifier:
                    raise DataError(f"row {number} of the labels table has no patient_id")
                token = pseudonym.token(key, "label", identifier)
                if found.setdefault(token, classes.index(kind)) != classes.index(kind):
                    raise DataError(f"rows {rows[token]} and {number} of the labels table give one patient two classes")
                rows.setdefault(token, number)
    except OSError as error:
        raise DataError(f"cannot read the labels table: {error.strerror}; set `labels` in the site file") from None
    except (UnicodeDecodeError, csv.Error):
        failed = True
    else:
        failed = False
    if failed:
        raise DataError("the labels table is not CSV in UTF-8")
    return found
