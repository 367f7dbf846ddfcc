"""Real scanners, real transfer syntaxes, real broken files. The images stay beside the checkout."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from client import dataset
from client.deidentification import deidentify, export, manifest, pixels, profile, reader, rules
from client.deidentification.manifest import Reason, Withheld
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

Real = Callable[[str], Path]
pytestmark = pytest.mark.real_data


@pytest.mark.parametrize(("scanner", "used"), [
    ("siemens_skyra_t1", 96), ("uih_umr770_t1", 48), ("philips_dstream_b0", 40), ("canon_galan_b0", 40), ("ge_mr750_epi", 15),
])  # fmt: skip
def test_every_scanner_flows_through(tmp_path: Path, real_data: Real, scanner: str, used: int) -> None:
    site = Site(name="a", data=real_data(f"dicom/{scanner}"), face_removal="none", text_check="none")
    report = ingest(site, classes=["x"], image_size=64, slices_per_patient=12, work=tmp_path / "work")
    assert (report.patients, report.passed, report.slices) == (1, used, 12)
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    assert patient.x_SHW.shape == (12, 64, 64)
    middle = patient.x_SHW[6].astype(float)
    assert middle.std() > 20 and middle[:, :4].mean() < middle[:, 28:36].mean()


@pytest.mark.parametrize("scanner", ["siemens_skyra_t1", "uih_umr770_t1"])
def test_faces_are_taken_off_t1_heads(tmp_path: Path, real_data: Real, scanner: str) -> None:
    """One is a child, and both are cut off at the sides: the middle of the head, with the whole face in it."""
    site = Site(name="a", data=real_data(f"dicom/{scanner}"), text_check="none")
    ingest(site, classes=["x"], image_size=64, slices_per_patient=12, work=tmp_path / "work")
    used = [e for e in manifest.read(tmp_path / "work" / "manifest.jsonl") if e.reason is Reason.OK]
    assert all(e.face is not None and e.face["in_face"] == 0 and float(e.face["dice"]) >= 0.9 for e in used)
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    assert not patient.x_SHW[:, :3].any() and not patient.x_SHW[:, :, :8].any() and patient.x_SHW[6].std() > 20


@pytest.mark.parametrize(
    ("scanner", "files"), [("philips_dstream_b0", 40), ("canon_galan_b0", 40), ("ge_mr750_epi", 150)]
)
def test_other_contrasts_are_withheld_where_faces_must_go(
    tmp_path: Path, real_data: Real, scanner: str, files: int
) -> None:
    site = Site(name="a", data=real_data(f"dicom/{scanner}"), text_check="none")
    with pytest.raises(DataError, match="not-t1"):
        ingest(site, classes=["x"], image_size=64, slices_per_patient=12, work=tmp_path / "work")
    assert manifest.reasons(manifest.read(tmp_path / "work" / "manifest.jsonl"))["not-t1"] == files


def test_all_transfer_syntaxes_decode_alike(real_data: Real, key: bytes) -> None:
    decoded = {}
    for path in sorted(real_data("deid/dcm_qa_ts_transfer_syntaxes").glob("*.dcm")):
        source = reader.whole(path)
        picture = Dataset()
        rules.apply([rule for rule in profile.PIXELS if rule.kind != "pixels"], source, picture, key)
        decoded[path.name] = pixels.samples(source, str(source.file_meta.TransferSyntaxUID), picture)
    assert len(decoded) == 9 and len(set(decoded.values())) == 1
    assert np.frombuffer(decoded["1.dcm"], np.uint16).max() > 100


def test_no_value_of_the_real_headers_survives(tmp_path: Path, real_data: Real, key: bytes) -> None:
    """Every text, date and UID of the source that has at least six characters, looked for in every written byte."""
    written, values = b"", set()
    for scanner in sorted(real_data("dicom").iterdir()):
        for path in sorted(scanner.glob("*.dcm"))[:2]:
            source = reader.whole(path)
            written += deidentify.encode(deidentify.rebuild(source, key))
            for element in (*source.iterall(), *source.file_meta):
                if element.VR in ("PN", "LO", "SH", "ST", "LT", "UT", "DA", "DT", "TM", "UI", "AE", "AS", "IS"):
                    values |= {str(value).strip() for value in (element.value if element.VM > 1 else [element.value])}
    kept = {"1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1"}
    survivors = [value for value in values - kept if len(value) >= 6 and value.encode() in written]
    assert len(values) > 300 and not survivors


def test_what_must_be_withheld_is_withheld(tmp_path: Path, real_data: Real, key: bytes) -> None:
    """Burned-in ultrasound, a zipped loop, secondary captures, a deflated CT, broken files: nothing passes."""
    entries = export.export(real_data("deid"), tmp_path / "out", key)
    counts = manifest.verdicts(entries)
    assert counts["PASS"] == 0 and counts["REFUSED"] >= 30 and sum(counts.values()) == len(entries) >= 60
    assert {entry.reason for entry in entries} == {
        Reason.SOP_CLASS, Reason.MODALITY, Reason.DERIVED, Reason.MOSAIC, Reason.NOT_DICOM, Reason.UNREADABLE
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]


def test_an_odd_stream_is_decoded_or_withheld(real_data: Real, key: bytes) -> None:
    folder = real_data("deid/dicognito_orig_data/test_pixel_data_with_embedded_sequence_delimiter")
    source = reader.whole(next(folder.glob("*.dcm")))
    with pytest.raises(Withheld):
        deidentify.rebuild(source, key)


def test_demented_patients_are_ingested_whole(tmp_path: Path, real_data: Real) -> None:
    for patient in ("Mild_Demented/Mild_003", "Non_Demented"):
        source = real_data("slices_dementia") / patient
        source = source if patient.count("/") else sorted(source.iterdir())[0]
        shutil.copytree(source, tmp_path / "data" / source.parent.name / source.name)
    site = Site(name="a", data=tmp_path / "data", format="images", face_removal="none")
    classes = ["Non_Demented", "Mild_Demented"]
    report = ingest(site, classes=classes, image_size=64, slices_per_patient=24, work=tmp_path / "work")
    assert (report.patients, report.slices, report.refused) == (2, 48, 0)
    assert {patient.label for patient in dataset.load(tmp_path / "work" / "cohort")} == {0, 1}


def test_multiple_sclerosis_patients_are_read_from_nifti(tmp_path: Path, real_data: Real) -> None:
    site = Site(name="a", data=real_data("nifti_ms"), format="nifti", face_removal="none")
    report = ingest(site, classes=["x"], image_size=64, slices_per_patient=12, work=tmp_path / "work")
    assert (report.patients, report.slices, report.passed) == (2, 24, 2)


@pytest.mark.debian("dicom3tools")
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs Debian's dicom3tools")
def test_an_independent_validator_finds_no_error(tmp_path: Path, real_data: Real, key: bytes) -> None:
    for scanner in sorted(real_data("dicom").iterdir()):
        source = sorted(scanner.glob("*.dcm"))[0]
        path = tmp_path / f"{scanner.name}.dcm"
        path.write_bytes(deidentify.encode(deidentify.rebuild(reader.whole(source), key)))
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert "Error" not in said.stderr + said.stdout
