"""Bad input ends in a verdict or one line, never in a crash, a hang or a word about a patient."""

from __future__ import annotations

import gzip
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.deidentification import deidentify, export, manifest, pixels, reader, redaction
from client.deidentification.manifest import Reason, Withheld
from client.readers import nifti
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

Make = Callable[..., FileDataset]
Save = Callable[[Dataset, Path], Path]


def reason_of(path: Path, key: bytes) -> Reason:
    """The verdict on one file."""
    try:
        deidentify.rebuild(reader.whole(path), key)
    except Withheld as withheld:
        return withheld.reason
    return Reason.OK


def test_a_missing_or_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, said in (("missing", "does not exist"), ("empty", "holds no files")):
        site = Site(name="a", data=tmp_path / name, face_removal="none")
        with pytest.raises(DataError, match=f"{said}; set `data`") as caught:
            ingest(site, classes=["a"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
        assert "\n" not in str(caught.value)


def test_links_and_special_files_are_never_opened(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    outside = save(make_slice(), tmp_path / "outside" / "a.dcm")
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.dcm").symlink_to(outside)
    (data / "folder").symlink_to(outside.parent)
    (data / "gone.dcm").symlink_to(tmp_path / "nowhere")
    os.mkfifo(data / "pipe.dcm")
    entries = export.export(data, tmp_path / "out", key)
    assert sorted(entry.reason.code for entry in entries) == ["not-regular", "symlink", "symlink", "symlink"]


def test_a_file_cut_anywhere_gets_a_verdict(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    whole = save(make_slice(), tmp_path / "a.dcm").read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(0, len(whole) - 1, 37):
        cut.write_bytes(whole[:length])
        assert reason_of(cut, key) is not Reason.OK
    cut.write_bytes(whole[:-20])
    assert reason_of(cut, key) is Reason.TRUNCATED


def test_files_that_are_not_dicom_are_refused(tmp_path: Path, key: bytes) -> None:
    path = tmp_path / "x.dcm"
    for content in (b"", b"%PDF-1.4", bytes(132), os.urandom(500), b"PK\3\4" + bytes(300)):
        path.write_bytes(content)
        assert reason_of(path, key) is Reason.NOT_DICOM
    path.write_bytes(bytes(128) + b"DICM")
    assert reason_of(path, key).verdict.value == "REFUSED"


def test_a_deflated_file_is_read_and_a_bomb_is_not_unpacked(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_slice()
    plain = deidentify.rebuild(source, key)
    source.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save(source, tmp_path / "a.dcm")
    assert deidentify.rebuild(reader.whole(path), key) == plain
    content = path.read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    monkeypatch.setattr(reader, "LIMIT_INFLATED_BYTES", 1 << 20)
    packer = zlib.compressobj(wbits=-15)
    path.write_bytes(content[:start] + packer.compress(bytes(1 << 23)) + packer.flush())
    assert reason_of(path, key) is Reason.TOO_LARGE


@pytest.mark.parametrize(("syntax", "marker", "place"), [("1.2.840.10008.1.2.4.90", b"\xff\x51", 6)])
def test_a_picture_that_unpacks_to_another_size_is_not_decoded(
    tmp_path: Path,
    make_slice: Make,
    key: bytes,
    monkeypatch: pytest.MonkeyPatch,
    syntax: str,
    marker: bytes,
    place: int,
) -> None:
    source = make_slice(0, np.arange(4096).reshape(64, 64))
    source.compress(syntax, generate_instance_uid=False)
    content = bytearray(source.PixelData)
    start = content.index(marker) + place
    content[start : start + 8] = struct.pack(">2I", 60000, 60000)
    source.PixelData = bytes(content)
    monkeypatch.setattr(pixels, "get_decoder", lambda syntax: pytest.fail("it was decoded"))
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(source, key)
    assert caught.value.reason is Reason.PIXEL_FORMAT


def test_a_panic_in_a_decoder_is_a_verdict() -> None:
    class PanicError(BaseException):
        """What a panic in a Rust extension looks like to Python."""

    def read() -> None:
        raise PanicError

    with pytest.raises(Withheld):
        redaction.guarded(Reason.UNREADABLE, read)


def test_a_file_over_the_limit_is_refused_unread(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_slice(), tmp_path / "data" / "a.dcm")
    monkeypatch.setattr(reader, "LIMIT_BYTES", 100)
    monkeypatch.setattr(reader, "whole", lambda path: pytest.fail("it was opened"))
    (entry,) = export.export(tmp_path / "data", tmp_path / "out", key)
    assert entry.reason is Reason.TOO_LARGE


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    path = save(make_slice(), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    assert reason_of(path, key) is Reason.TRANSFER_SYNTAX


@pytest.mark.parametrize("order", ["repeated", "backwards"])
def test_elements_out_of_order_are_withheld(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes, order: str
) -> None:
    """Two readers may take different ones of a repeated element."""
    path = save(make_slice(), tmp_path / "a.dcm")
    content = path.read_bytes()
    patient = b"\x10\0\x20\0LO\x02\0P1"
    place = content.index(patient) + len(patient) if order == "repeated" else content.index(b"\x28\0\x02\0")
    path.write_bytes(content[:place] + patient.replace(b"P1", b"P2") + content[place:])
    assert reason_of(path, key) is Reason.REQUIRED


def test_bytes_after_the_dataset_do_not_survive(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    path = save(make_slice(), tmp_path / "data" / "a.dcm")
    path.write_bytes(path.read_bytes() + b"QZJX" * 50)
    export.export(tmp_path / "data", tmp_path / "out", key)
    assert not any(b"QZJX" in file.read_bytes() for file in (tmp_path / "out").iterdir())


def test_mutated_files_get_a_verdict(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    whole = save(make_slice(), tmp_path / "a.dcm").read_bytes()
    rng = random.Random(5)
    path = tmp_path / "mutated.dcm"
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(132, len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            place = rng.randrange(132, len(content))
            del content[place : place + rng.randint(1, 9)]
        path.write_bytes(content)
        try:
            written = deidentify.encode(deidentify.rebuild(reader.whole(path), key))
        except Withheld:
            continue
        assert export.within_allow_list(written)


def test_a_nifti_volume_that_grows_over_the_limit_as_numbers_is_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte a voxel in the file, four in memory."""
    image = nibabel.Nifti1Image(np.zeros((32, 32, 32), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    monkeypatch.setattr(nifti, "LIMIT_BYTES", 100_000)
    with pytest.raises(Withheld) as caught:
        nifti.volume(tmp_path / "a.nii")
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_nifti_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "LIMIT_BYTES", 1 << 20)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(1 << 23)))
    with pytest.raises(Withheld) as caught:
        nifti.volume(path)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_nifti_header_that_promises_too_much_is_withheld(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[42:48] = struct.pack("<3h", 32000, 32000, 32000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").write_bytes(content)
    (tmp_path / "data" / "b.nii").write_bytes(b"\x5c\1\0\0" + os.urandom(400))
    (tmp_path / "data" / "c.nii.gz").write_bytes(gzip.compress(bytes(content))[:-30])
    with zipfile.ZipFile(tmp_path / "data" / "d.zip", "w") as archive:
        archive.writestr("x", "x")
    site = Site(name="a", data=tmp_path / "data", format="nifti", face_removal="none")
    with pytest.raises(DataError, match="no usable patient among 4 files"):
        ingest(site, classes=["a"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    assert len(manifest.read(tmp_path / "work" / "manifest.jsonl")) == 4


def test_the_output_must_not_lie_inside_the_input(tmp_path: Path, make_slice: Make, save: Save, key: bytes) -> None:
    save(make_slice(), tmp_path / "data" / "a.dcm")
    with pytest.raises(DataError, match="inside"):
        export.export(tmp_path / "data", tmp_path / "data" / "out", key)
    site = Site(name="a", data=tmp_path / "data", face_removal="none")
    with pytest.raises(DataError, match="inside"):
        ingest(site, classes=["a"], image_size=16, slices_per_patient=4, work=tmp_path / "data" / "work")
    with pytest.raises(DataError, match="does not exist"):
        export.export(tmp_path / "typo", tmp_path / "out", key)


def test_a_damaged_manifest_or_cohort_is_one_line(tmp_path: Path) -> None:
    from client import dataset

    (tmp_path / "m.jsonl").write_text('{"token": 1}\n')
    with pytest.raises(DataError, match="record 0"):
        manifest.read(tmp_path / "m.jsonl")
    (tmp_path / "x.npz").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="damaged"):
        dataset.load(tmp_path)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(DataError, match="no patients"):
        dataset.load(tmp_path)
