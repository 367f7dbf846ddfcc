"""Folders of pictures and NIfTI trees become patients the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from client import dataset
from client.deidentification import manifest
from client.deidentification.manifest import Reason, Withheld
from client.readers import images, nifti, volumes
from client.readers.ingest import IngestReport, ingest
from client.verification import verify
from client.verification.report import write as write_report
from shared.config.site import Site
from shared.errors import DataError

CANARY = "QZJX0001"


def run(
    folder: Path, kind: str, *, classes: tuple[str, ...] = ("a", "b"), slices: int = 6, **site: Any
) -> IngestReport:
    settings = Site(name="a", data=folder / "data", format=kind, face_removal="none", **site)
    return ingest(settings, classes=classes, image_size=16, slices_per_patient=slices, work=folder / "work")


def picture(path: Path, value: int, size: tuple[int, int] = (16, 16), mode: str = "L", **options: Any) -> None:
    """One grey, and one bright pixel: a picture of one grey alone is withheld."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, value)
    image.putpixel((0, 0), min(value + 150, 255))
    image.convert(mode).save(path, **options)


def scan(path: Path, affine: np.ndarray | None = None, values: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(
        values if values is not None else np.zeros((4, 4, 4)), np.eye(4) if affine is None else affine
    )
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = CANARY, CANARY, CANARY
    nibabel.save(image, path)


def reasons(folder: Path) -> dict[str, int]:
    return manifest.reasons(manifest.read(folder / "work" / "manifest.jsonl"))


def test_pictures_keep_their_order_their_patient_and_their_class(tmp_path: Path) -> None:
    for kind, name, base in (("a", "p1", 10), ("b", "p2", 110)):
        for number in range(12):
            picture(tmp_path / "data" / kind / name / f"{number:02d}.png", base + number)
    report = run(tmp_path, "images")
    assert (report.patients, report.slices, report.passed) == (2, 12, 24)
    for patient in dataset.load(tmp_path / "work" / "cohort"):
        values = patient.x_SHW[:, 8, 8].astype(int)
        assert values.tolist() == [(10, 110)[patient.label] + step for step in (1, 3, 5, 7, 9, 11)]


def test_pictures_are_squared_without_distortion_and_say_nothing_else(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", CANARY)
    picture(tmp_path / "data" / "a" / CANARY / f"{CANARY}.png", 200, (32, 16), "RGB", pnginfo=notes)
    picture(tmp_path / "data" / "a" / CANARY / f"{CANARY}.jpg", 200, (16, 32), comment=CANARY.encode())
    assert run(tmp_path, "images").passed == 2
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    tall, wide = patient.x_SHW > 100
    assert wide[4:12].all() and not wide[:4].any() and not wide[12:].any()
    assert tall[:, 4:12].all() and not tall[:, :4].any()
    for path in (tmp_path / "work").rglob("*"):
        assert CANARY not in str(path.relative_to(tmp_path)) and (
            path.is_dir() or CANARY.encode() not in path.read_bytes()
        )


def test_a_16_bit_picture_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "x.png")
    assert np.allclose(images.grey(tmp_path / "x.png"), 100)


def test_pictures_that_are_in_doubt_are_withheld(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "a" / "p1" / "0.png", 9)
    picture(data / "a" / "twice" / "0.png", 9)
    picture(data / "b" / "twice" / "0.png", 9)
    picture(data / "a" / "nobody.png", 9)
    (data / "a" / "p1" / "1.jpg").write_bytes(b"\xff\xd8 no picture")
    (data / "a" / "p1" / "2.png").write_bytes((data / "a" / "p1" / "0.png").read_bytes()[:40])
    (data / "a" / "p1" / "notes.txt").write_text("x")
    (data / "a" / "p1" / "link.png").symlink_to(data / "a" / "p1" / "0.png")
    assert run(tmp_path, "images").patients == 1
    assert reasons(tmp_path) == {"two-classes": 2, "unreadable": 2, "no-patient": 1, "not-an-image": 1, "symlink": 1}


def test_a_huge_picture_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "x.png", 1, (100, 100))
    monkeypatch.setattr(images, "LIMIT_PIXELS", 99 * 99)
    with pytest.raises(Withheld) as caught:
        images.grey(tmp_path / "x.png")
    assert caught.value.reason is Reason.TOO_LARGE


def test_an_unknown_class_folder_is_named_by_its_number_only(tmp_path: Path) -> None:
    picture(tmp_path / "data" / "a" / "p1" / "0.png", 9)
    picture(tmp_path / "data" / CANARY / "p2" / "0.png", 9)
    with pytest.raises(DataError, match=r"class folder 1 of 2.*a, b") as caught:
        run(tmp_path, "images")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "AIL"])
def test_any_storage_order_gives_the_same_volume(tmp_path: Path, head: np.ndarray, codes: str) -> None:
    reference = nibabel.Nifti1Image(head.astype(np.float32), np.diag([1.25, 1.5, 2, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(reference.affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    nibabel.save(reference.as_reoriented(turn), tmp_path / "x.nii.gz")
    volume, spacing_mm = nifti.volume(tmp_path / "x.nii.gz")
    assert np.array_equal(volume, head.astype(np.float32)) and spacing_mm == pytest.approx((1.25, 1.5, 2))


def test_nifti_and_dicom_of_one_head_give_the_same_pictures(head: np.ndarray, tmp_path: Path) -> None:
    scan(tmp_path / "x.nii", np.diag([1.25, 1.5, 2, 1]), head.astype(np.uint16))
    volume, spacing_mm = nifti.volume(tmp_path / "x.nii")
    direct = volumes.axial(head.astype(np.uint16).astype(np.float32), (1.25, 1.5, 2), size=16, count=6)
    assert np.array_equal(volumes.axial(volume, spacing_mm, size=16, count=6), direct)


def test_trees_of_nifti_give_one_patient_a_person(tmp_path: Path, head: np.ndarray) -> None:
    values = head.astype(np.int16)
    scan(tmp_path / "data" / "sub-01" / "ses-1" / "anat" / "sub-01_T1w.nii.gz", values=values)
    scan(tmp_path / "data" / "sub-01" / "ses-1" / "anat" / "sub-01_T2w.nii.gz", values=np.tile(values, (1, 1, 2)))
    scan(tmp_path / "data" / "sub-01" / "ses-2" / "anat" / "sub-01_T1w.nii.gz", values=values)
    scan(tmp_path / "data" / "sub-02" / "x.nii", values=values)
    scan(tmp_path / "data" / "derivatives" / "sub-01" / "mask.nii.gz", values=values)
    scan(tmp_path / "data" / f"{CANARY}.nii.gz", values=np.stack([values, values * 2], axis=-1))
    (tmp_path / "data" / "sub-01" / "sidecar.json").write_text(json.dumps({"PatientName": CANARY}))
    (tmp_path / "labels.csv").write_text(f"patient_id,class\nsub-02,b\n{CANARY},a\n")
    report = run(tmp_path, "nifti", labels=tmp_path / "labels.csv")
    assert (report.patients, report.passed) == (3, 4)
    assert reasons(tmp_path) == {"derivatives": 1, "not-an-image": 1, "other-series": 1}
    assert sorted(patient.label for patient in dataset.load(tmp_path / "work" / "cohort")) == [-1, 0, 1]
    for path in (tmp_path / "work").rglob("*"):
        assert path.is_dir() or (CANARY.encode() not in path.read_bytes() and CANARY not in path.name)


NOISE = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)


@pytest.mark.parametrize(("reason", "values", "offset"), [
    (Reason.ORIENTATION, NOISE, 252),  # both codes say that nothing is known
    (Reason.GEOMETRY, NOISE, 312),  # the third row of the affine is empty
    (Reason.GEOMETRY, NOISE[0], 0),
    (Reason.LABEL_MAP, np.eye(20, dtype=np.uint8)[:, :, None].repeat(20, 2), 0),
])  # fmt: skip
def test_nifti_in_doubt_is_withheld(tmp_path: Path, reason: Reason, values: np.ndarray, offset: int) -> None:
    scan(tmp_path / "x.nii", values=values)
    if offset:
        content = bytearray((tmp_path / "x.nii").read_bytes())
        content[offset : offset + (4 if offset == 252 else 16)] = bytes(4 if offset == 252 else 16)
        (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(Withheld) as caught:
        nifti.volume(tmp_path / "x.nii")
    assert caught.value.reason is reason


def save(path: Path, x_HW: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x_HW).save(path, **options)


def test_person_07_twelve_bits_in_a_picture_of_sixteen_are_no_black_picture(tmp_path: Path, head: np.ndarray) -> None:
    """One scale for all pictures of a patient: what is darker stays darker."""
    for number in range(4, 12):
        save(tmp_path / "data" / "a" / "p" / f"{number:02d}.png", (head[:, :, number] * 3).astype(np.uint16))
    assert run(tmp_path, "images", text_check="none").passed == 8
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    assert patient.x_SHW.max() == 255 and patient.x_SHW.mean() > 40
    tops = head[:, :, 4:12].max(axis=(0, 1))
    assert np.argsort(patient.x_SHW.max(axis=(1, 2)).astype(int))[0] == np.argsort(tops)[0]


def test_person_07_flat_and_nearly_black_pictures_are_withheld_and_the_others_are_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    save(tmp_path / "data" / "a" / "p" / "0.png", rng.integers(0, 256, (16, 16), dtype=np.uint8))
    save(tmp_path / "data" / "a" / "p" / "1.png", np.full((16, 16), 90, np.uint8))
    save(tmp_path / "data" / "a" / "p" / "2.png", np.full((16, 16), 65535, np.uint16))
    save(tmp_path / "data" / "a" / "p" / "3.png", np.zeros((16, 16), np.uint16))
    save(tmp_path / "data" / "a" / "p" / "4.jpg", rng.integers(0, 8, (16, 16), dtype=np.uint8))
    save(tmp_path / "data" / "b" / "q" / "0.png", np.full((16, 16), 90, np.uint8))
    report = run(tmp_path, "images", text_check="none")
    assert (report.patients, report.slices, report.reasons) == (1, 1, {"flat": 3, "black": 2})


def test_person_07_the_manifest_and_the_report_say_how_grey_levels_were_made(tmp_path: Path) -> None:
    save(tmp_path / "data" / "a" / "p" / "0.png", np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    run(tmp_path, "images", text_check="none")
    said = manifest.load(tmp_path / "work" / "manifest.jsonl").header["scaling"]
    assert "8-bit samples as they are" in said
    assert said in write_report(tmp_path / "work").read_text(encoding="utf-8")
    assert not verify.verify_folder(tmp_path / "work", tmp_path / "data").findings
