"""Phantoms as a hospital holds them: one DICOM file a slice, with the headers of a scanner and, where wanted, planted identifiers.

The headers are made up, but they are as full as real ones: names, dates, addresses, private elements, free text. The planted
identifiers are listed in <folder>-planted.txt beside the data, so that a test can look for each of them in everything written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from simulations.cohorts import phantoms

FIELD_OF_VIEW_MM = 220.0
SLICES = 24


def write_hospital(
    folder: Path,
    rng: np.random.Generator,
    *,
    patients: int,
    size: int,
    look: phantoms.Look,
    mix: Sequence[float] | None,
    planted: bool,
    slices: int = SLICES,
) -> None:
    """Write one axial T1 series per patient, and labels.csv (patient_id,class), which is written last.

    size      rows and columns
    mix       probability of each class; equal by default
    planted   fill the headers with identifiers that must not survive
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, secrets = ["patient_id,class"], []
    for number in range(patients):
        kind = phantoms.CLASSES[rng.choice(len(phantoms.CLASSES), p=mix)]
        phantom = phantoms.draw(rng, kind, look)
        patient_id = f"PH{rng.integers(10**9):09d}"
        rows.append(f"{patient_id},{kind}")
        images = phantoms.render(phantom, slices, size)
        secrets += _write_series(folder / f"patient-{number:03d}", images, phantom, patient_id, number, planted)
    if planted:
        folder.with_name(f"{folder.name}-planted.txt").write_text("\n".join(secrets) + "\n", encoding="utf-8")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_series(
    folder: Path, images: NDArray[np.uint8], phantom: phantoms.Phantom, patient_id: str, number: int, planted: bool
) -> list[str]:
    folder.mkdir(exist_ok=True)
    study, series, frame = (generate_uid(entropy_srcs=[patient_id, what]) for what in ("study", "series", "frame"))
    spacing_mm = FIELD_OF_VIEW_MM / images.shape[1]
    step_mm = phantom.span_mm / (len(images) - 1)
    secrets: list[str] = []
    for index, pixels in enumerate(images):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[patient_id, str(index)]
        )
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.Modality, ds.ImageType = "MR", ["ORIGINAL", "PRIMARY", "M", "ND"]
        ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = (
            patient_id,
            f"PHANTOM^NUMBER{number}",
            "19500101",
            "O",
        )
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = "20250102"
        ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "101500", "1", f"A{number}", ""
        ds.Manufacturer, ds.ManufacturerModelName, ds.MagneticFieldStrength = "PHANTOM", "MNI152", 3.0
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", ["SP", "MP"], "", "3D"
        ds.RepetitionTime, ds.EchoTime, ds.InversionTime, ds.FlipAngle, ds.EchoTrainLength = 2300.0, 2.98, 900.0, 9.0, 1
        ds.SliceThickness = ds.SpacingBetweenSlices = f"{step_mm:.6f}"
        ds.PixelSpacing = [f"{spacing_mm:.6f}"] * 2
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]  # columns to the patient's left, rows to the back
        ds.ImagePositionPatient = [
            f"{v:.5f}" for v in (-FIELD_OF_VIEW_MM / 2, -FIELD_OF_VIEW_MM / 2, phantom.lowest_mm + index * step_mm)
        ]
        ds.InstanceNumber, ds.SeriesNumber, ds.PatientPosition = index + 1, 1, "HFS"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = pixels.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
        if planted:
            secrets += _plant(ds, number, index)
        ds.save_as(folder / f"IM{index:04d}.dcm", enforce_file_format=True)
    return secrets


def _plant(ds: Dataset, number: int, index: int) -> list[str]:
    """Put unique identifiers wherever a scanner or a clerk might; returns them."""
    tag = f"{number:03d}{index:03d}"
    value = {
        what: f"{what.upper()}{tag}"
        for what in (
            "jane",
            "ward",
            "street",
            "phone",
            "doctor",
            "mrn",
            "acc",
            "proto",
            "station",
            "serial",
            "coil",
            "seq",
            "soft",
            "private",
            "nested",
            "comment",
            "device",
            "inst",
        )
    }
    ds.PatientName = f"{value['jane']}^PLANTED"
    ds.OtherPatientIDs = value["mrn"]
    ds.PatientAddress, ds.PatientTelephoneNumbers = f"{value['street']} 12", value["phone"]
    ds.InstitutionName, ds.InstitutionalDepartmentName = value["inst"], value["ward"]
    ds.ReferringPhysicianName, ds.OperatorsName = f"{value['doctor']}^REF", f"{value['doctor']}^OP"
    ds.AccessionNumber, ds.ProtocolName, ds.SeriesDescription = value["acc"], value["proto"], f"T1 {value['jane']}"
    ds.StationName, ds.DeviceSerialNumber, ds.DeviceUID = (
        value["station"],
        value["serial"],
        generate_uid(entropy_srcs=[tag]),
    )
    ds.ReceiveCoilName, ds.SequenceName, ds.SoftwareVersions = value["coil"], value["seq"], value["soft"]
    ds.ImageComments, ds.ManufacturerModelName = value["comment"], value["device"]
    block = ds.private_block(0x0029, "PLANTED VENDOR", create=True)
    block.add_new(0x01, "LO", value["private"])
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99P", value["nested"]
    ds.ProcedureCodeSequence = [item]
    return [*value.values(), str(ds.DeviceUID), str(ds.SOPInstanceUID), str(ds.StudyInstanceUID), str(ds.PatientID)]
