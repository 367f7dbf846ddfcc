"""Groups F and S of the de-identification suite: what surrounds the dataset, and kinds of object that are never accepted.

Cases that stand elsewhere: F05 (truncation, bombs) and symlinks of F07 also in `test_client_bad_input`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from client.deidentification import deidentify, export, reader
from client.deidentification.manifest import Reason, Verdict
from client.verification import verify

Make = Callable[..., FileDataset]
Save = Callable[[Dataset, Path], Path]
Through = Callable[..., tuple[Reason, bytes]]


def as_bytes(ds: FileDataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_f01_text_in_the_preamble_is_replaced(make_slice: Make, through: Through) -> None:
    ds = make_slice()
    ds.preamble = b"QZJX^QZJX 1947".ljust(128, b"\0")
    reason, written = through(ds)
    assert reason is Reason.OK and written.startswith(deidentify.PREAMBLE)


@pytest.mark.parametrize(("keyword", "value"), [
    ("SourceApplicationEntityTitle", "QZJX"), ("SendingApplicationEntityTitle", "QZJX"),
    ("ReceivingApplicationEntityTitle", "QZJX"), ("ImplementationVersionName", "QZJX"),
    ("SourcePresentationAddress", "dicom://qzjx.example"), ("SendingPresentationAddress", "qzjx"),
    ("ReceivingPresentationAddress", "qzjx"), ("ImplementationClassUID", "1.2.826.0.1.3680043.8.498.9"),
    ("PrivateInformationCreatorUID", "1.2.826.0.1.3680043.8.498.9"), ("PrivateInformation", b"QZJX"),
])  # fmt: skip
def test_f02_each_attribute_of_the_file_meta_is_made_anew(
    make_slice: Make, through: Through, keyword: str, value: str | bytes
) -> None:
    ds = make_slice()
    if keyword == "PrivateInformation":
        ds.file_meta.PrivateInformationCreatorUID = "1.2.3"
    setattr(ds.file_meta, keyword, value)
    reason, written = through(ds)
    assert reason is Reason.OK and b"3680043" not in written


@pytest.mark.parametrize(
    "tail", [b"QZJX" * 50, b"\0" * 7, b"\xff", b"PK\5\6" + bytes(18), b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0QZJXQZJX"]
)
def test_f03_bytes_after_the_dataset_are_not_written(make_slice: Make, through: Through, tail: bytes) -> None:
    plain = through(make_slice())[1]
    reason, written = through(as_bytes(make_slice()) + tail)
    assert reason in (Reason.OK, Reason.UNREADABLE, Reason.REQUIRED)
    assert written == (plain if reason is Reason.OK else b"")


def test_f04_every_encoding_gives_the_same_file(make_slice: Make, through: Through) -> None:
    plain = through(make_slice())[1]
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        ds = make_slice()
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
        assert through(ds) == (Reason.OK, plain)


def test_f04_a_dataset_without_file_meta_is_refused(make_slice: Make, through: Through) -> None:
    content = as_bytes(make_slice())
    end = 144 + struct.unpack("<I", content[140:144])[0]
    assert through(content[end:])[0] is Reason.NOT_DICOM
    assert through(bytes(128) + b"DICM" + content[end:])[0].verdict is Verdict.REFUSED
    assert through(content[:132] + content[end:])[0].verdict is not Verdict.PASS


def test_f04_a_lie_about_the_encoding_ends_in_a_verdict(make_slice: Make, through: Through) -> None:
    content = as_bytes(make_slice())
    for lie in (b"1.2.840.10008.1.2\0\0\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.5\0"):
        reason, _ = through(content.replace(b"1.2.840.10008.1.2.1\0", lie, 1))
        assert isinstance(reason, Reason)


def test_f05_a_truncated_file_and_a_bomb_are_not_written(
    make_slice: Make, through: Through, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = as_bytes(make_slice())
    for length in (0, 1, 131, 140, 200, 700, len(content) - 1):
        assert through(content[:length])[0] is not Reason.OK
    ds = make_slice()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = as_bytes(ds)
    start = 144 + struct.unpack("<I", deflated[140:144])[0]
    packer = zlib.compressobj(9, wbits=-15)
    bomb = deflated[:start] + packer.compress(bytes(1 << 24)) + packer.flush()
    monkeypatch.setattr(reader, "LIMIT_INFLATED_BYTES", 1 << 20)
    assert len(bomb) < 40_000 and through(bomb)[0] is Reason.TOO_LARGE


def test_f05_a_deflated_stream_that_breaks_off_is_not_written(make_slice: Make, through: Through) -> None:
    ds = make_slice()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = as_bytes(ds)
    for cut in (10, 60, 200):
        assert through(content[:-cut])[0] is not Reason.OK


def test_f06_a_dicomdir_is_refused(make_slice: Make, through: Through) -> None:
    ds = make_slice(SOPClassUID="1.2.840.10008.1.3.10")
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    assert through(ds, name="DICOMDIR")[0] is Reason.DICOMDIR
    record = Dataset()
    record.PatientName = "QZJX"
    ds = make_slice()
    ds.DirectoryRecordSequence = [record]
    assert through(ds)[0] is Reason.DICOMDIR


def test_f07_names_of_files_and_folders_go_nowhere(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Unicode in both normal forms, spaces, dots, line breaks, bytes that are not UTF-8, and names that look like paths."""
    names = ["Grünewald Ottilie", "Gru\u0308newald", "王小东", "..QZJX", "QZJX\nzweite Zeile", "%2e%2e%2fQZJX", "-rf", "a" * 200,
             os.fsdecode(b"QZJX\xff\xfe"), "\u202eQZJX", "QZJX.dcm.exe"]  # fmt: skip
    for number, name in enumerate(names):
        save(make_slice(number), tmp_path / "data" / name / f"{name}.dcm")
    entries = export.export(tmp_path / "data", tmp_path / "out", key)
    assert [entry.reason for entry in entries] == [Reason.OK] * len(names)
    assert len({entry.file for entry in entries}) == len(names)
    result = verify.verify_folder(tmp_path / "out", tmp_path / "data", key)
    assert not [found for found in result.findings if found.rule not in ("dciodvfy", "dicomqc")]
    assert "QZJX" not in caplog.text and not list(tmp_path.glob("*QZJX*"))


def test_f07_links_out_of_the_folder_are_not_followed(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    save(make_slice(), tmp_path / "elsewhere" / "a.dcm")
    save(make_slice(1), tmp_path / "data" / "b.dcm")
    (tmp_path / "data" / "up").symlink_to("..")
    (tmp_path / "data" / "loop").symlink_to(".")
    (tmp_path / "data" / "out.dcm").symlink_to(tmp_path / "elsewhere" / "a.dcm")
    entries = export.export(tmp_path / "data", tmp_path / "out", key)
    assert sorted(entry.reason.code for entry in entries) == ["ok", "symlink", "symlink", "symlink"]


@pytest.mark.parametrize(
    "start", [b"%PDF-1.7 QZJX", b"MZ\x90\0QZJX", b"\x7fELF QZJX", b"PK\3\4QZJX", b"II*\0QZJX", b"#!/bin/sh\nQZJX"]
)
def test_f08_a_file_that_is_two_things_at_once_becomes_one(make_slice: Make, through: Through, start: bytes) -> None:
    ds = make_slice()
    ds.preamble = start.ljust(128, b"\0")
    reason, written = through(as_bytes(ds) + b"\n%%EOF QZJX")
    assert reason in (Reason.OK, Reason.UNREADABLE, Reason.REQUIRED)
    assert not written or written.startswith(deidentify.PREAMBLE)


OTHERS = {
    "secondary capture": "1.2.840.10008.5.1.4.1.1.7", "multi-frame secondary capture": "1.2.840.10008.5.1.4.1.1.7.2",
    "PDF": "1.2.840.10008.5.1.4.1.1.104.1", "CDA": "1.2.840.10008.5.1.4.1.1.104.2", "STL": "1.2.840.10008.5.1.4.1.1.104.3",
    "structured report": "1.2.840.10008.5.1.4.1.1.88.33", "key objects": "1.2.840.10008.5.1.4.1.1.88.59",
    "presentation state": "1.2.840.10008.5.1.4.1.1.11.1", "RT structures": "1.2.840.10008.5.1.4.1.1.481.3",
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4", "surface": "1.2.840.10008.5.1.4.1.1.66.5",
    "waveform": "1.2.840.10008.5.1.4.1.1.9.1.1", "raw data": "1.2.840.10008.5.1.4.1.1.66",
    "spectroscopy": "1.2.840.10008.5.1.4.1.1.4.2", "enhanced colour MR": "1.2.840.10008.5.1.4.1.1.4.3",
    "video": "1.2.840.10008.5.1.4.1.1.77.1.1.1", "parametric map": "1.2.840.10008.5.1.4.1.1.30",
    "private": "1.3.12.2.1107.5.9.1", "none": "", "of the meta only": "1.2.840.10008.5.1.4.1.1.4.1.9",
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_s_other_kinds_of_object_are_refused(make_slice: Make, through: Through, kind: str) -> None:
    ds = make_slice(SOPClassUID=OTHERS[kind], PatientName="QZJX")
    ds.file_meta.MediaStorageSOPClassUID = OTHERS[kind] or "1.2.3"
    assert through(ds) == (Reason.SOP_CLASS, b"")


def test_s_a_segmentation_that_calls_itself_mr_is_not_used(make_slice: Make, through: Through) -> None:
    """Its class decides, and where that lies its modality or its image type does."""
    assert through(make_slice(Modality="SEG"))[0] is Reason.MODALITY
    assert through(make_slice(ImageType=["DERIVED", "PRIMARY", "SEGMENTATION"]))[0] is Reason.DERIVED
    assert through(make_slice(ConversionType="WSD"))[0] is Reason.CONVERTED


def test_s_a_class_of_the_meta_that_differs_changes_nothing(make_slice: Make, through: Through) -> None:
    """The dataset's class decides; a lie in the file meta is not carried on."""
    ds = make_slice()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    content = io.BytesIO()
    pydicom.dcmwrite(content, ds, enforce_file_format=False, little_endian=True, implicit_vr=False)
    reason, written = through(content.getvalue())
    assert reason is Reason.OK and b"1.2.840.10008.5.1.4.1.1.7\0" not in written
