"""A table of labels that does not fit is noticed: matches are counted and said everywhere, a table that mostly misses stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import dataset
from client.deidentification import manifest
from client.readers import labels
from client.readers.ingest import IngestReport, ingest
from client.verification import report, verify
from shared.config.site import Site
from shared.errors import DataError

Write = Callable[..., list[Path]]
TABLE = "patient_id,class\n0001,a\n0002,b\n0003,b\n"


@pytest.fixture
def three(tmp_path: Path, write_series: Write) -> Path:
    for number in (1, 2, 3):
        write_series(tmp_path / "data" / str(number), study=str(number), PatientID=f"000{number}")
    return tmp_path


def run(folder: Path, table: str | bytes | None = None, **site: Any) -> IngestReport:
    if table is not None:
        (folder / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        site["labels"] = folder / "labels.csv"
    values = {"face_removal": "none", "text_check": "none", "minimum_slices": 4, **site}
    settings = Site.model_validate({"name": "a", "data": folder / "data", **values})
    return ingest(settings, classes=("a", "b"), image_size=16, slices_per_patient=4, work=folder / "work")


def found(folder: Path) -> list[int]:
    return sorted(patient.label for patient in dataset.load(folder / "work" / "cohort"))


@pytest.mark.parametrize("table", [
    TABLE.encode("utf-8-sig"), TABLE.encode("utf-16"), TABLE.encode("utf-16-le"), TABLE.encode("utf-16-be"),
    TABLE.replace(",", ";").encode(), TABLE.replace(",", "\t").encode("utf-16"), TABLE.replace("\n", "\r\n").encode(),
    TABLE.replace("patient_id,class", "Patient_ID,Class").encode(),
    TABLE.replace("patient_id,class", " PatientID , CLASS ").encode(),
    TABLE.replace("patient_id,class", "Patient ID,class,remark").replace("a\n", "a,fine; really\n").encode(),
    b"sep=;\r\n" + TABLE.replace(",", ";").encode(), TABLE.replace("patient_id", "participant_id").encode() + b"\n\n",
], ids=["BOM", "UTF-16", "UTF-16-LE", "UTF-16-BE", "semicolons", "tabs in UTF-16", "CRLF", "case", "blanks around", "blank inside",
        "sep=", "participant_id"])  # fmt: skip
def test_person_03_a_table_as_spreadsheets_write_it_is_read(three: Path, table: bytes) -> None:
    counts = run(three, table).labels
    assert found(three) == [0, 1, 1]
    assert counts == {"rows": 3, "matched": 3, "unmatched": 0, "surplus": 0, "alike": 0, "labelled": 3, "unlabelled": 0}


def test_person_03_rows_that_match_and_rows_that_do_not_are_counted_in_every_paper(three: Path) -> None:
    told = run(three, "patient_id,class\n0001,a\n0002,b\n0009,b\nQZJX,a\n")
    counts = {"rows": 4, "matched": 2, "unmatched": 1, "surplus": 2, "alike": 0, "labelled": 2, "unlabelled": 1}
    assert told.labels == counts == manifest.load(three / "work" / "manifest.jsonl").counts["labels"]
    page = report.write(three / "work").read_text(encoding="utf-8")
    assert "2 of 3 patient identifiers have a row in the labels table; 2 of its 4 rows are of nobody here" in page
    assert "1 patient is unlabelled" in page and "QZJX" not in page
    assert not verify.verify_folder(three / "work", three / "data").findings


def test_person_03_without_a_table_nothing_is_said_of_labels(three: Path) -> None:
    assert run(three).labels == {} and "labels table" not in report.write(three / "work").read_text(encoding="utf-8")


@pytest.mark.parametrize(("table", "words"), [
    ("patient_id,class\n1,a\n2,b\n3,b\n", "none of the 3 .* 3 would .* zeros"),
    ("patient_id,class\nA1,a\nA2,b\n", "none of the 3"),
    ("patient_id,class\n0001,a\nA2,b\nA3,b\n", "1 of the 3"),
    ("patient_id,class\n0001,a\n0002,a\n3,b\n", "2 of the 3 .* 1 would .* zeros"),
], ids=["lost zeros", "another hospital's", "most miss", "a part lost zeros"])  # fmt: skip
def test_person_03_a_table_that_misses_stops_before_any_pixel_is_read(
    three: Path, table: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(three)
    before = {path.name: path.read_bytes() for path in (three / "work" / "cohort").iterdir()}
    monkeypatch.setattr(dataset, "save", lambda *_: pytest.fail("a pixel was read"))
    with pytest.raises(DataError, match=words) as caught:
        run(three, table)
    assert "\n" not in str(caught.value) and "0001" not in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in (three / "work" / "cohort").iterdir()}


def test_person_03_a_table_of_a_few_or_of_many_more_is_fine(three: Path) -> None:
    assert run(three, "patient_id,class\n0001,a\n").labels["unmatched"] == 2
    assert run(three, TABLE + "".join(f"X{n},a\n" for n in range(50))).labels["surplus"] == 50


def test_person_03_a_table_without_its_columns_or_of_no_text_is_refused_in_one_line(tmp_path: Path, key: bytes) -> None:
    for content, words in (
        (b"id,class\n1,a\n", "columns patient_id,class"), (b"", "columns patient_id,class"),
        (b"patient_id,class,Class\n1,a,b\n", "column class twice"), (b"patient_id,class\n\xff\xfe,x\n", "not CSV in UTF-8"),
        (b"PK\3\4\0\0\0", "spreadsheet"),
    ):  # fmt: skip
        (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(DataError, match=words):
            labels.read(tmp_path / "labels.csv", ["a"], key)


def test_person_03_the_command_says_it_and_scripts_can_read_it(three: Path) -> None:
    from typer.testing import CliRunner

    from client import cli

    (three / "labels.csv").write_text("patient_id,class\n0001,a\n0002,b\nX,a\n")
    (three / "site.yaml").write_text(
        f"name: a\ndata: {three / 'data'}\nlabels: {three / 'labels.csv'}\nface_removal: none\ntext_check: none\n"
        "minimum_slices: 4\n"
    )
    command = [
        "ingest",
        str(three / "site.yaml"),
        "--work",
        str(three / "work"),
        "--classes",
        "a,b",
        "--jobs",
        "1",
    ]
    said = " ".join(CliRunner().invoke(cli.app, command).output.split())
    assert "2 of 3 patient identifiers have a row in the labels table; 1 of its 3 rows is of nobody here" in said
    said = CliRunner().invoke(cli.app, [*command, "--json"]).output
    assert json.loads(said[said.index("{") :])["labels"]["matched"] == 2
