"""Tables as spreadsheets write them: UTF-8 or UTF-16, with or without a byte order mark; commas, semicolons or tabs; any case.

| what                                                       | becomes                                            |
|------------------------------------------------------------|----------------------------------------------------|
| `Patient ID`, ` PATIENT_ID `, `participant_id`             | the column patient_id                              |
| a first line `sep=;`                                       | skipped                                            |
| empty rows, and columns that nobody asked for              | skipped                                            |
| a column twice, a workbook (.xlsx), bytes that are no text | DataError, in one line, without a value            |

Left out: other encodings (an umlaut in Latin-1 would be guessed), and repairing values: lost zeros are lost.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import DataError

DELIMITERS = ",;\t"
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
WORKBOOKS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")  # .xlsx, .ods; .xls


def locate(table: Path, data: Path) -> Path:
    """The table's path as given, or below the data folder when it is only there."""
    return table if table.is_absolute() or table.is_file() else data / table


def rows(
    path: Path, what: str, setting: str, columns: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """(number as a spreadsheet counts, values of the wanted columns without blanks around them) of every row that is not empty.

    what      "labels table": how messages call it     setting   the key of the site file that names it
    columns   name of each wanted column -> the other names that it may have
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the {what}: {error.strerror}; set `{setting}` in the site file") from None
    text = _text(content, what)
    lines = text.splitlines(keepends=True)
    skipped = 1 if lines and lines[0].strip().lower().startswith("sep=") else 0
    lines = lines[skipped:]
    head, delimiter = _head(lines[0] if lines else "", columns, what)
    try:
        for number, cells in enumerate(csv.reader(lines[1:], delimiter=delimiter), start=2 + skipped):
            if any(cell.strip() for cell in cells):
                yield number, {name: cells[at].strip() if at < len(cells) else "" for name, at in head.items()}
    except csv.Error:
        broken = True
    else:
        broken = False
    if broken:
        raise _no_text(what)


def _text(content: bytes, what: str) -> str:
    if content.startswith(WORKBOOKS):
        raise DataError(f"the {what} is a spreadsheet's own file; save it as CSV")
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), None)
    if encoding is None:  # without a mark, every second byte of a Latin text in UTF-16 is zero
        start = content[:400]
        encoding = "utf-16-be" if b"\0" in start[0::2] else "utf-16-le" if b"\0" in start[1::2] else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        pass
    raise _no_text(what)


def _no_text(what: str) -> DataError:
    return DataError(f"the {what} is not CSV in UTF-8 or UTF-16; save it as `CSV UTF-8`")


def _head(line: str, columns: Mapping[str, Sequence[str]], what: str) -> tuple[dict[str, int], str]:
    """Where each wanted column stands, and what separates them."""
    names = {other: name for name, others in columns.items() for other in (name, *others)}
    for delimiter in DELIMITERS:
        (cells,) = list(csv.reader(io.StringIO(line), delimiter=delimiter)) or [[]]
        found: dict[str, int] = {}
        for at, cell in enumerate(cells):
            name = names.get(cell.strip().casefold().replace(" ", "_").replace("-", "_"))
            if name in found:
                raise DataError(f"the {what} has the column {name} twice; leave one of them out")
            if name is not None:
                found[name] = at
        if found.keys() == columns.keys():
            return found, delimiter
    raise DataError(f"the {what} must have the columns {','.join(columns)} in its first row")
