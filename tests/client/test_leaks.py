"""Identifiers are planted wherever a DICOM file has room; none may be found in anything that is written or said."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset

from client import cli
from client.deidentification import acceptance, pseudonym, redaction
from client.deidentification.manifest import Reason, Withheld
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import FedsynthError
from simulations.cohorts.planted import UID, WORD, Canaries, plant, plant_oddities

SLICES = 5


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture
def planted(tmp_path: Path, write_series: Callable[..., list[Path]], head: np.ndarray, canaries: Canaries) -> Path:
    """A hospital's folder: one series full of canaries under names that are canaries, its labels, and broken files."""
    data = tmp_path / "data" / f"{canaries.word()} Straße"

    def change(index: int, ds: FileDataset) -> None:
        kept = {name: ds[name].value for name in ("PatientID", "InstanceNumber") if index >= 0}
        plant(ds, canaries)
        plant_oddities(ds, canaries)
        ds.PatientID, ds.IssuerOfPatientID, ds.InstanceNumber = f"{WORD}-MRN", f"{WORD}-ISSUER", kept["InstanceNumber"]
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    with pydicom.config.disable_value_validation():
        paths = write_series(data, head[:, :, :SLICES], change=change)
    for path in paths:
        path.rename(path.with_name(f"{canaries.word()}.dcm"))
    (data / f"{canaries.word()}.txt").write_text(canaries.word())
    (data / "truncated.dcm").write_bytes(next(data.glob("*.dcm")).read_bytes()[:5000])
    (data / "labels.csv").write_text(f"patient_id,class,name\n{WORD}-MRN,lesion,{canaries.word()}\n")
    return tmp_path / "data"


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all files, with the members of archives unpacked."""
    for path in folder.rglob("*"):
        yield str(path.relative_to(folder)), str(path.relative_to(folder)).encode()
        if path.is_file():
            content = path.read_bytes()
            yield str(path.relative_to(folder)), content
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    for member in archive.namelist():
                        yield f"{path.name}:{member}", archive.read(member)


opened: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        ):
            opened.append(os.fspath(arguments[0]))


sys.addaudithook(_watch)


@pytest.fixture
def written() -> Iterator[list[str]]:
    """Every path that is opened for writing while the test runs."""
    global opened  # noqa: PLW0603  (an audit hook cannot be removed, only silenced)
    opened = []
    yield opened
    opened = None


def test_no_planted_identifier_is_written_or_said(
    planted: Path,
    tmp_path: Path,
    canaries: Canaries,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    written: list[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    written.clear()  # pytest's own capturing opens files between set-up and call
    site = Site(
        name="a", data=planted, labels=next(planted.rglob("labels.csv")), face_removal="none", minimum_slices=SLICES
    )
    report = ingest(site, classes=["healthy", "lesion"], image_size=16, slices_per_patient=8, work=tmp_path / "work")
    cli.app(["deidentify", str(planted), str(tmp_path / "out"), "--key", str(tmp_path / "work" / "pseudonym.key")],
            standalone_mode=False)  # fmt: skip
    assert (report.patients, report.passed) == (1, SLICES)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == SLICES
    assert len(canaries.made) > 2000
    said = capfd.readouterr()
    spoken = "\n".join((said.out, said.err, caplog.text, *(str(record.__dict__) for record in caplog.records)))
    assert not canaries.found_in(spoken.replace(str(tmp_path), "").encode())
    leaks = {name: marks for place in ("work", "out") for name, content in everything_in(tmp_path / place)
             if (marks := canaries.found_in(content))}  # fmt: skip
    assert not leaks
    strangers = [path for path in written if not Path(path).is_relative_to(tmp_path / "work")
                 and not Path(path).is_relative_to(tmp_path / "out") and path != os.devnull]  # fmt: skip
    assert not strangers
    assert not canaries.found_in("\n".join(written).replace(str(tmp_path), "").encode())


def test_the_search_would_find_a_canary(planted: Path, canaries: Canaries) -> None:
    hits = [name for name, content in everything_in(planted) if canaries.found_in(content)]
    assert len(hits) >= 2 * SLICES


def test_p02_spare_bits_carry_no_canary(planted: Path, tmp_path: Path) -> None:
    """The nibbles above the bits stored hold one; a byte search cannot see it, so the bits themselves are looked at."""
    cli.app(["deidentify", str(planted), str(tmp_path / "out"), "--key", str(tmp_path / "key")], standalone_mode=False)
    for path in (tmp_path / "out").glob("*.dcm"):
        rebuilt = pydicom.dcmread(path)
        assert not (np.frombuffer(rebuilt.PixelData, np.uint16) & 0xF000).any()
        assert len(rebuilt.PixelData) == rebuilt.Rows * rebuilt.Columns * 2


def test_no_hash_of_an_identifier_can_be_recomputed(planted: Path, tmp_path: Path) -> None:
    """Every unkeyed hash of the patient's identifier and of the UIDs is absent."""
    import hashlib

    site = Site(name="a", data=planted, face_removal="none", minimum_slices=SLICES)
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    everything = b"".join(content for _, content in everything_in(tmp_path / "work"))
    for secret in (f"{WORD}-MRN", f"{WORD}-ISSUER\0{WORD}-MRN", f"{UID}.1", f"{UID}.2", f"{UID}.3"):
        for name in ("md5", "sha1", "sha256", "sha512"):
            assert hashlib.new(name, secret.encode()).hexdigest()[:16].encode() not in everything


def test_the_key_is_nowhere_but_in_its_file(planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = Site(name="a", data=planted, face_removal="none", minimum_slices=SLICES)
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    secret = (tmp_path / "work" / "pseudonym.key").read_bytes()
    for name, content in everything_in(tmp_path / "work"):
        assert name == "pseudonym.key" or (secret not in content and secret.hex().encode() not in content)
    assert secret.hex() not in caplog.text


def test_labels_reach_the_right_patient_and_not_the_disk(planted: Path, tmp_path: Path) -> None:
    site = Site(
        name="a", data=planted, labels=next(planted.rglob("labels.csv")), face_removal="none", minimum_slices=SLICES
    )
    ingest(site, classes=["healthy", "lesion"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    (path,) = (tmp_path / "work" / "cohort").glob("*.npz")
    secret = (tmp_path / "work" / "pseudonym.key").read_bytes()
    assert path.stem == pseudonym.pseudonym(secret, f"{WORD}-ISSUER", f"{WORD}-MRN")
    assert int(np.load(path)["label"]) == 1


def test_manifest_lines_hold_nothing_but_tokens_and_fixed_words(planted: Path, tmp_path: Path) -> None:
    site = Site(name="a", data=planted, face_removal="none", minimum_slices=SLICES)
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    lines = [json.loads(line) for line in (tmp_path / "work" / "manifest.jsonl").read_text().splitlines()]
    texts = (
        {reason.text for reason in Reason}
        | {reason.code for reason in Reason}
        | {reason.verdict.value for reason in Reason}
    )
    chained = {"kind", "index", "previous", "hash"}
    named = {"token", "verdict", "reason", "text", "patient", "sop_class", "sha256", "series", "file", "face"}
    for line in lines[1:-1]:
        assert set(line) == named | chained
        assert {line["verdict"], line["reason"], line["text"]} <= texts
        assert line["sop_class"] in {None, "MR Image"}
        for name, length in (("token", 24), ("file", 24), ("series", 24), ("sha256", 64), ("patient", 16)):
            assert line[name] is None or (len(line[name]) == length and line[name].isalnum())


def test_warnings_and_logs_of_the_reader_lose_their_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with redaction.redacted() as seen:
        warnings.warn(f"Invalid value for VR DA: '{WORD}'", UserWarning, stacklevel=1)
        logging.getLogger("pydicom.dataset").warning("value %s", WORD)
    logging.getLogger("fedsynth").warning("our own words stay")
    assert WORD not in caplog.text and redaction.WITHHELD in caplog.text and "our own words stay" in caplog.text
    assert seen == {"UserWarning": 1, "log WARNING": 1}


def test_a_failed_read_carries_no_value_cause_or_context() -> None:
    def read() -> None:
        raise ValueError(f"cannot convert {WORD}")

    with pytest.raises(Withheld) as caught:
        redaction.guarded(Reason.UNREADABLE, read)
    error = caught.value
    assert error.__cause__ is None and error.__context__ is None
    assert WORD not in f"{error}{error.args}{error.__dict__}"


def test_errors_name_rows_and_classes_but_no_value(tmp_path: Path, planted: Path) -> None:
    for text, said in (("patient_id,class\nQZJX1,QZJX2\n", "row 2"), ("QZJX,QZJX\n1,2\n", "columns"),
                       ("patient_id,class\nQZJX,a\nQZJX,b\n", "rows 2 and 3"), ("patient_id,class\n,a\n", "row 2"),
                       ("patient_id,class\nQZJX\n", "row 2")):  # fmt: skip
        table = tmp_path / "labels.csv"
        table.write_text(text)
        site = Site(name="a", data=planted, labels=table, face_removal="none", minimum_slices=SLICES)
        with pytest.raises(FedsynthError, match=said) as caught:
            ingest(site, classes=["a", "b"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
        assert WORD not in str(caught.value) and "\n" not in str(caught.value) and caught.value.__context__ is None


def test_gates_compare_words_and_never_repeat_them() -> None:
    ds = Dataset()
    ds.add_new(0x00080016, "UI", f"{UID}.9")
    with pytest.raises(Withheld) as caught:
        acceptance.check(ds)
    assert "77123" not in str(caught.value)
