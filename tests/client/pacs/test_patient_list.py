"""The list of patients means exactly the patients that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.pacs import patient_list
from shared.errors import DataError

WORD = "QZJX"


@pytest.mark.parametrize(("text", "found"), [
    ("A\nB\n\nA\n", {"A": set(), "B": set()}),
    ("patient_id\n 007 \n", {"007": set()}),
    ("issuer,name,patient_id\nnorth,x,7\nsouth,y,7\n,z,8\n", {"7": {"north", "south"}, "8": set()}),
    ("patient_id,issuer\n7,north\n7,\n", {"7": set()}),
    ("\ufeffpatient_id\nMüller-1\n", {"Müller-1": set()}),
])  # fmt: skip
def test_the_list_names_each_patient_once(tmp_path: Path, text: str, found: dict[str, set[str]]) -> None:
    (tmp_path / "list").write_text(text, encoding="utf-8")
    assert patient_list.read(tmp_path / "list") == found


@pytest.mark.parametrize(("text", "said"), [
    (b"A\nQZJX*\n", "row 2"), (b"QZJX?\n", "row 1"), (b"patient_id\nQZJX\\QZJX\n", "row 2"), (b"QZJX" * 17 + b"\n", "row 1"),
    (b"QZJX,B\n", "several columns"), (b"patient_id,issuer\n,QZJX\n", "row 2"), (b"", "none"), (b"patient_id\n", "none"),
    (b"\xff\xfe\x00QZJX", "none"), (b"A\nQZJX\x07\n", "row 2"),
])  # fmt: skip
def test_an_identifier_that_a_query_would_read_as_a_pattern_is_refused_and_not_repeated(
    tmp_path: Path, text: bytes, said: str
) -> None:
    (tmp_path / "list").write_bytes(text)
    with pytest.raises(DataError, match=said) as caught:
        patient_list.read(tmp_path / "list")
    assert WORD not in str(caught.value) and caught.value.__context__ is None
