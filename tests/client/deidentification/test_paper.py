"""The papers that a privacy office reads: report, conformance statement, trace of requirements."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.sr import codedict

from client.deidentification import conformance, export, manifest, profile, provenance
from client.deidentification.manifest import Entry, Reason
from client.readers.ingest import ingest
from client.verification import report, report_words, verify
from shared.config.site import Site
from shared.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
Write = Callable[..., list[Path]]


@pytest.fixture
def work(tmp_path: Path, write_series: Write, head: np.ndarray) -> Path:
    for number in range(2):
        write_series(tmp_path / "data" / str(number), head[:, :, :6], study=str(number + 1), PatientID=f"QZJX{number}")
    (tmp_path / "data" / "QZJX.txt").write_text("QZJX")
    site = Site(name="a", data=tmp_path / "data", face_removal="none", text_check="none", minimum_slices=6)
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    return tmp_path / "work"


def text_of(path: Path) -> str:
    page = path.read_text(encoding="utf-8").split("</style>")[1]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_report_says_what_became_of_every_file(work: Path) -> None:
    path = report.write(work)
    said = text_of(path)
    assert "13 each has exactly one verdict" in said and "12 of 2 patients" in said
    assert "not a DICOM file 1" in said and "pseudonymised in the sense of GDPR Article 4(5)" in said
    assert "113100 Basic Application Confidentiality Profile claimed" in said
    assert manifest.load(work / "manifest.jsonl").last_hash in said and provenance.table_digest() in said
    assert path.stat().st_mode & 0o777 == 0o600 and "QZJX" not in path.read_text()


def test_the_report_needs_nothing_but_itself(work: Path) -> None:
    page = report.write(work).read_text(encoding="utf-8")
    assert not re.search(r"<script|https?:|<link|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_the_contact_sheet_shows_what_was_kept_and_nothing_else(work: Path, tmp_path: Path, key: bytes) -> None:
    def sheet(folder: Path) -> Image.Image | None:
        found = re.search(r"base64,([^\"]*)", report.write(folder).read_text())
        return Image.open(io.BytesIO(base64.b64decode(found[1]))) if found else None

    assert (sheet(work) or pytest.fail()).size == (2 * report.SIDE, report.SIDE)
    export.export(tmp_path / "data", tmp_path / "out", key)
    picture = sheet(tmp_path / "out")
    assert picture is not None and picture.size == (2 * report.SIDE, report.SIDE) and np.asarray(picture).max() > 200
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "x").write_text("x")
    export.export(tmp_path / "data2", tmp_path / "none", key)
    assert sheet(tmp_path / "none") is None


def test_the_report_claims_what_ran_and_no_more(work: Path) -> None:
    assert "faces may remain" in text_of(report.write(work)) and "burned-in text may remain" in text_of(
        report.write(work)
    )
    found = manifest.load(work / "manifest.jsonl")
    options = [*found.header["options"], {"CodeValue": "113101"}, {"CodeValue": "113102"}]
    manifest.write(
        found.entries, work / "manifest.jsonl", {**found.header, "options": options, "models": {"masker": "ab"}}
    )
    said = text_of(report.write(work))
    assert "no face was found in what was kept" in said and "no text was found" in said and "Model masker" in said


def test_a_report_that_was_edited_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = report.write(work)
    assert not verify.verify_folder(work).findings
    path.write_text(path.read_text().replace("quarantined", "quarantine", 1))
    assert {finding.rule for finding in verify.verify_folder(work).findings} == {"report"}


def test_a_report_of_a_damaged_manifest_is_refused(work: Path) -> None:
    (work / "manifest.jsonl").write_bytes((work / "manifest.jsonl").read_bytes()[:-5])
    with pytest.raises(DataError, match="manifest"):
        report.write(work)


def test_every_reason_fits_on_the_report(tmp_path: Path) -> None:
    manifest.write([Entry(f"{n:024x}", reason, file=f"{n:024x}") for n, reason in enumerate(Reason)],
                   tmp_path / "manifest.jsonl", provenance.header())  # fmt: skip
    said = text_of(report.write(tmp_path))
    assert all(reason.text in said for reason in Reason)


def test_option_names_are_those_of_the_standard() -> None:
    known = {}
    for name in codedict.codes.cid7050.dir():
        code = getattr(codedict.codes.cid7050, name)
        known[code.value] = code.meaning
    assert {code: name for code, (name, _) in report_words.OPTIONS.items()} == known


def test_m03_the_committed_conformance_statement_is_the_regenerated_one() -> None:
    committed = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert committed == conformance.statement(), (
        "the tables changed: run `fedsynth client deidentify --conformance > docs/conformance.md` and commit it"
    )


def test_m03_the_conformance_statement_names_every_attribute_that_is_written() -> None:
    said = conformance.statement()
    assert all(f"| {tag} | {name} |" in said for tag, name, _ in profile.describe())
    assert "PS3.15 2026d" in said and "| 113100 | Basic Application Confidentiality Profile | yes |" in said
    assert re.findall(r"\| (\d{6}) \| [^|]* \| yes \|", said) == ["113100"]


def chromium() -> str | None:
    return shutil.which("chromium")


@pytest.mark.debian("chromium")
@pytest.mark.skipif(chromium() is None, reason="needs Debian's chromium")
def test_a_browser_draws_the_report(work: Path, tmp_path: Path) -> None:
    command = [chromium() or "", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={tmp_path / 'page.png'}",
               "--window-size=1000,1400", f"file://{report.write(work)}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert pixels.shape == (1400, 1000) and 0.02 < (pixels < 128).mean() < 0.5


def trace() -> list[list[str]]:
    """The rows of the trace: id, requirement, status, tests, note."""
    lines = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("id", "---")]


def test_every_requirement_has_a_status_and_tests_that_exist() -> None:
    known = {name for path in (ROOT / "tests").rglob("test_*.py")
             for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)}  # fmt: skip
    assert len(trace()) > 50
    for identifier, requirement, status, tests, note in trace():
        assert requirement and status in ("met", "partly", "not claimed", "not applicable"), identifier
        named = [name.strip() for name in tests.split(",") if name.strip()]
        assert set(named) <= known, f"{identifier} names tests that do not exist: {sorted(set(named) - known)}"
        assert named or status == "not applicable", identifier
        assert note or status not in ("partly", "not applicable"), f"{identifier}: say what is missing"
    identifiers = [row[0] for row in trace()]
    assert len(set(identifiers)) == len(identifiers)


def test_every_pain_has_a_test_that_bears_its_number() -> None:
    pains = [row for row in trace() if row[0].startswith("PAIN-")]
    assert [row[0] for row in pains] == [f"PAIN-{n:02d}" for n in range(1, 21)]
    for identifier, _, status, tests, _ in pains:
        assert status == "not applicable" or f"test_pain{identifier[-2:]}_" in tests, identifier


def test_every_case_of_the_suite_is_on_the_trace_or_carries_its_number() -> None:
    """Each named case (`test_h07_...`) of the groups H F S U L M G is either on the trace or in a test's name."""
    text = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
    cases = {name for path in (ROOT / "tests").rglob("test_suite_*.py")
             for name in re.findall(r"^def (test_[hfsulmg]\d*_\w+)", path.read_text(encoding="utf-8"), re.M)}  # fmt: skip
    unnamed = {name for name in cases if name not in text}
    assert len(cases) > 50 and len(unnamed) < len(cases) // 3, sorted(unnamed)


def test_every_reason_has_its_cure() -> None:
    assert report_words.CURES.keys() == {reason.code for reason in Reason if reason is not Reason.OK}


def test_the_report_names_the_cure_of_what_was_withheld(work: Path) -> None:
    assert report_words.CURES["not-dicom"] in text_of(report.write(work))
