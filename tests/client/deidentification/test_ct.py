"""CT heads go through their own table, and only through a site that says that it holds CT."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage

from client import cli, dataset
from client.deidentification import acceptance, deidentify, export, manifest, profile
from client.deidentification.manifest import Reason, Withheld
from client.modalities import ct
from client.readers.ingest import ingest
from client.verification import verify
from shared.config.site import Site
from shared.errors import DataError
from simulations.cohorts.planted import Canaries, plant, plant_oddities

Make = Callable[..., FileDataset]

MR_ONLY = ("ScanningSequence", "SequenceVariant", "MRAcquisitionType", "RepetitionTime", "EchoTime", "InversionTime",
           "FlipAngle", "EchoTrainLength", "NumberOfAverages", "MagneticFieldStrength")  # fmt: skip
STEP_MM, PIXEL_MM = 8.0, 7.0  # 16 slices of 32 x 32: 120 mm of a field of 224 mm
ACQUIRED = {
    "Modality": "CT", "KVP": "120", "ExposureTime": "1000", "XRayTubeCurrent": "250", "Exposure": "250",
    "DataCollectionDiameter": "500", "ReconstructionDiameter": "224.5", "GantryDetectorTilt": "0",
    "PatientPosition": "HFS", "SliceThickness": "8", "SpacingBetweenSlices": "8", "PixelSpacing": [7, 7],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "RescaleIntercept": "-1024", "RescaleSlope": "1",
    "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": 32, "Columns": 32, "BitsAllocated": 16,
    "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "LossyImageCompression": "00",
}  # fmt: skip
EXPECTED = ACQUIRED | {
    "SOPClassUID": CTImageStorage, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": profile.METHOD, "LongitudinalTemporalInformationModified": "REMOVED",
    "ImagePositionPatient": [-112, -112, 0],
}  # fmt: skip
EMPTY = {
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyID", "SeriesNumber", "InstanceNumber", "PositionReferenceIndicator", "Manufacturer", "AcquisitionNumber", "Laterality",
}  # fmt: skip
MADE = {"SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PixelData",
        "DeidentificationMethodCodeSequence"}  # fmt: skip


def head_HU() -> np.ndarray:
    """(right, anterior, superior): air, a skull of 900 HU, a brain of 40 HU on the right and 20 HU on the left."""
    r, a, _ = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32), np.zeros(16), indexing="ij")
    radius = np.hypot(r, a)
    brain = np.where(r > 0, 40.0, 20.0)
    return np.asarray(np.where(radius < 0.7, brain, np.where(radius < 0.85, 900.0, -1000.0)))


@pytest.fixture
def make_ct(make_slice: Make) -> Make:
    """One axial CT slice; any attribute can be overridden, or removed with None."""

    def make(index: int = 0, picture_HU: np.ndarray | None = None, **attributes: Any) -> FileDataset:
        values_HU = np.full((32, 32), 40.0) if picture_HU is None else picture_HU
        ds = make_slice(index, values_HU + 1024)
        for keyword in MR_ONLY:
            delattr(ds, keyword)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.ImageType, ds.ConvolutionKernel = ["ORIGINAL", "PRIMARY", "AXIAL"], "J40s WARD7"
        for keyword, value in ACQUIRED.items():
            setattr(ds, keyword, value)
        ds.ImagePositionPatient = [-112, -112, STEP_MM * index]
        for keyword, value in attributes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        return ds

    return make


@pytest.fixture
def write_ct(make_ct: Make, save: Callable[[Dataset, Path], Path]) -> Callable[..., None]:
    def write(folder: Path, change: Callable[[FileDataset], None] | None = None, **attributes: Any) -> None:
        volume = head_HU()
        for index in range(volume.shape[2]):
            ds = make_ct(index, volume[::-1, ::-1, index].T, **attributes)
            if change is not None:
                change(ds)
            save(ds, folder / f"{index}.dcm")

    return write


def content(ds: Dataset) -> dict[str, Any]:
    values = {element.keyword: element.value for element in ds}
    return {k: list(v) if isinstance(v, pydicom.multival.MultiValue) else v for k, v in values.items()}


def expected(found: dict[str, Any]) -> bool:
    def same(value: Any, wanted: Any) -> bool:
        value, wanted = (item if isinstance(item, list) else [item] for item in (value, wanted))
        return [str(v).removesuffix(".0") for v in value] == [str(v) for v in wanted]

    return (
        found.keys() == EXPECTED.keys() | EMPTY | MADE
        and all(same(found[name], value) for name, value in EXPECTED.items())
        and all(not found[name] for name in EMPTY)
    )


def test_a_rebuilt_slice_is_exactly_the_table(make_ct: Make, key: bytes) -> None:
    assert expected(content(deidentify.rebuild(make_ct(StationName="X", ProtocolName="HEAD DOE"), key, "ct")))


@pytest.mark.parametrize("removed", [rule.keyword for rule in ct.CT_FRAME if rule.kind != "pixels"])
def test_e04_removing_any_one_rule_is_noticed(
    make_ct: Make, key: bytes, removed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuple(rule for rule in ct.CT_FRAME if rule.keyword != removed)
    monkeypatch.setitem(ct.READER.tables, CTImageStorage, table)
    with contextlib.suppress(Withheld):
        assert not expected(content(deidentify.rebuild(make_ct(), key, "ct")))


@pytest.mark.parametrize(("keyword", "value"), [
    ("KVP", "770000123"), ("KVP", "19"), ("Exposure", "19471213"), ("XRayTubeCurrent", "77123"),
    ("DataCollectionDiameter", "1947"), ("GantryDetectorTilt", "77.5"), ("ExposureTime", "120.5"),
])  # fmt: skip
def test_a_number_outside_its_range_is_dropped(make_ct: Make, key: bytes, keyword: str, value: str) -> None:
    source = make_ct()
    source.add(pydicom.DataElement(keyword, "LO", value))
    assert not deidentify.rebuild(source, key, "ct").get(keyword)


@pytest.mark.parametrize(("reason", "attributes"), [
    (Reason.REQUIRED, {"RescaleSlope": None}), (Reason.REQUIRED, {"RescaleIntercept": "-77123.5"}),
    (Reason.PIXEL_FORMAT, {"RescaleType": "US"}), (Reason.DERIVED, {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
    (Reason.LOCALIZER, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}), (Reason.BURNED_IN, {"BurnedInAnnotation": "YES"}),
    (Reason.MODALITY, {"Modality": "PT"}),
])  # fmt: skip
def test_what_is_in_doubt_is_withheld(make_ct: Make, key: bytes, reason: Reason, attributes: dict[str, Any]) -> None:
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(make_ct(**attributes), key, "ct")
    assert caught.value.reason is reason


def test_each_site_refuses_the_other_modality(make_ct: Make, make_slice: Make) -> None:
    for source, modality, other in ((make_ct(), "ct", "mr"), (make_slice(), "mr", "ct")):
        acceptance.check(source, modality)
        with pytest.raises(Withheld) as caught:
            acceptance.check(source, other)
        assert caught.value.reason is Reason.MODALITY


def run(folder: Path, **site: Any) -> dict[str, int]:
    settings = Site(name="a", data=folder / "data", **{"modality": "ct", "face_removal": "none", **site})
    with contextlib.suppress(DataError):
        ingest(settings, classes=["a"], image_size=32, slices_per_patient=4, work=folder / "work")
    return manifest.reasons(manifest.read(folder / "work" / "manifest.jsonl"))


def test_grey_is_the_brain_window(tmp_path: Path, write_ct: Callable[..., None]) -> None:
    write_ct(tmp_path / "data")
    assert run(tmp_path) == {}
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    right, left, bone, air = (int(patient.x_SHW[1, 16, column]) for column in (8, 24, 3, 0))
    assert (right, left, bone, air) == (round(40 / 80 * 255), round(20 / 80 * 255), 255, 0)


def test_an_mr_site_takes_no_ct(tmp_path: Path, write_ct: Callable[..., None]) -> None:
    write_ct(tmp_path / "data")
    assert run(tmp_path, modality="mr") == {"modality": 16}


@pytest.mark.parametrize(("reason", "attributes"), [
    ("not-axial", {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}),
    ("not-a-head", {"PixelSpacing": [15, 15]}),
    ("not-a-head", {"PixelSpacing": [4, 4]}),
])  # fmt: skip
def test_what_is_not_a_head_by_its_geometry_is_withheld(
    tmp_path: Path, write_ct: Callable[..., None], reason: str, attributes: dict[str, Any]
) -> None:
    write_ct(tmp_path / "data", **attributes)
    assert run(tmp_path) == {reason: 16}


def test_too_few_millimetres_are_no_head(tmp_path: Path, write_ct: Callable[..., None]) -> None:
    def flatten(ds: FileDataset) -> None:
        ds.ImagePositionPatient[2] /= 2

    write_ct(tmp_path / "data", flatten)
    assert run(tmp_path) == {"not-a-head": 16}


def test_faces_of_ct_cannot_be_removed_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    site = Site(name="a", data=tmp_path / "data", modality="ct")
    with pytest.raises(DataError, match="of CT no face can be removed"):
        ingest(site, classes=["a"], image_size=32, slices_per_patient=4, work=tmp_path / "work")


def test_no_planted_identifier_comes_through(tmp_path: Path, write_ct: Callable[..., None], key: bytes) -> None:
    canaries = Canaries()
    decisive = ("PatientID", "InstanceNumber", "RescaleType", "SOPInstanceUID")

    def change(ds: FileDataset) -> None:
        kept = {name: ds.get(name) for name in decisive}
        plant(ds, canaries)
        plant_oddities(ds, canaries)
        ds.RescaleType, ds.IssuerOfPatientID = "HU", "QZJX-ISSUER"
        ds.PatientID, ds.InstanceNumber, ds.SOPInstanceUID = "QZJX-MRN", kept["InstanceNumber"], kept["SOPInstanceUID"]
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    with pydicom.config.disable_value_validation():
        write_ct(tmp_path / "data", change)
    entries = export.export(tmp_path / "data", tmp_path / "out", key, modality="ct")
    assert manifest.verdicts(entries)["PASS"] == 16 and len(canaries.made) > 16 * 500
    assert all(canaries.found_in(path.read_bytes()) for path in (tmp_path / "data").iterdir())
    for path in (tmp_path / "out").iterdir():
        assert not canaries.found_in(path.read_bytes())
    assert run(tmp_path) == {}
    for path in (tmp_path / "work").rglob("*"):
        assert path.is_dir() or not canaries.found_in(path.read_bytes())
    assert not verify.verify_folder(tmp_path / "out", tmp_path / "data", key).findings


def test_what_would_survive_is_shown_by_modality(capsys: pytest.CaptureFixture[str]) -> None:
    for modality, here, absent in (("ct", "KVP", "Echo Time"), ("mr", "Echo Time", "KVP")):
        cli.app(["deidentify", "--what-if", "--modality", modality], standalone_mode=False)
        said = capsys.readouterr().out
        assert here in said and absent not in said


@pytest.mark.debian("dicom3tools")
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs Debian's dicom3tools")
def test_an_independent_validator_finds_no_error(tmp_path: Path, write_ct: Callable[..., None], key: bytes) -> None:
    write_ct(tmp_path / "data")
    export.export(tmp_path / "data", tmp_path / "out", key, modality="ct")
    for path in (tmp_path / "out").glob("*.dcm"):
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert "CTImage" in said.stderr + said.stdout and "Error" not in said.stderr + said.stdout
