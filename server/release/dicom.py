"""Drawn images as DICOM that nobody can mistake for a patient.

MR Image Storage, valid by dciodvfy, marked in every place that the standard gives: Synthetic Data (0008,001C) = YES,
Contributing Equipment "Synthesizing Equipment" (109100, DCM), Image Type value 4 SYNTHETIC, patient SYNTHETIC^n, derivation
description with the guarantee. One image is one made-up person: own patient, study, series and frame of reference.

Pixels are those of the PNG, 0 to 255, in the 16 bits that MR Image Storage demands. The network knows no millimetres: pixel
spacing is nominal, 1 mm, and the image comments say so.

Left out: acquisition parameters, dates, institutions. There was no acquisition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from shared.errors import DataError

MAKER = "fedsynth"


@dataclass(frozen=True)
class Provenance:
    """What every instance of a release says about its origin.

    model        name of the model, and `model_sha256` of its weights
    guarantee    "(ε 7.98, δ 1e-05)"; at most 30 characters, for it has to fit a DICOM long string
    """

    model: str
    model_sha256: str
    guarantee: str


@dataclass(frozen=True)
class Identity:
    """Fresh identifiers of one image: `patient` after "SYN-", and four UIDs under 2.25."""

    patient: str
    study: str
    series: str
    instance: str
    frame: str


def write(path: Path, x_HW: np.ndarray, *, number: int, label: str, identity: Identity, provenance: Provenance) -> None:
    """Write one image, (H, W) uint8, as a DICOM file. `number` counts from 1 over the release. DataError: other pixels."""
    if x_HW.dtype != np.uint8 or x_HW.ndim != 2:
        raise DataError(f"a DICOM image is made from (H, W) uint8, not {x_HW.shape} {x_HW.dtype}")
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 192"
    _mark(d, label, provenance)

    d.PatientName, d.PatientID = f"SYNTHETIC^{number}", f"SYN-{identity.patient}"
    d.PatientBirthDate = d.PatientSex = ""
    d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID = identity.study, identity.series, identity.instance
    d.FrameOfReferenceUID, d.PositionReferenceIndicator = identity.frame, ""
    d.StudyDate = d.StudyTime = d.AccessionNumber = d.ReferringPhysicianName = ""
    d.StudyID, d.StudyDescription, d.SeriesDescription = str(number), "SYNTHETIC", f"SYNTHETIC {label}"[:64]
    d.SOPClassUID, d.Modality, d.SeriesNumber, d.InstanceNumber = MRImageStorage, "MR", 1, 1
    d.PatientPosition, d.Laterality = "HFS", ""
    d.Manufacturer, d.ManufacturerModelName, d.SoftwareVersions = MAKER, provenance.model[:64], provenance.model_sha256

    d.ScanningSequence, d.SequenceVariant, d.ScanOptions = "RM", "NONE", ""  # RM: research mode
    d.MRAcquisitionType = d.RepetitionTime = d.EchoTime = d.EchoTrainLength = ""
    d.PixelSpacing, d.SliceThickness = [1, 1], None
    d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]

    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = x_HW.shape
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.SmallestImagePixelValue, d.LargestImagePixelValue = int(x_HW.min()), int(x_HW.max())
    d.WindowCenter, d.WindowWidth = 128, 256
    d.PixelData = x_HW.astype("<u2").tobytes()

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, identity.instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta = meta
    d.save_as(path, enforce_file_format=True)


def _mark(d: Dataset, label: str, provenance: Provenance) -> None:
    """Everything that says: made, not taken."""
    d.SyntheticData = "YES"
    d.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    d.DerivationDescription = (
        f"Sampled from generative model {provenance.model}, sha256 {provenance.model_sha256}; "
        f"differentially private per patient {provenance.guarantee}"
    )
    d.ImageComments = f"SYNTHETIC, class {label}. Not a patient. Pixel spacing is nominal."
    d.PatientIdentityRemoved, d.DeidentificationMethod = "YES", f"synthetic; DP {provenance.guarantee} per patient"
    d.BurnedInAnnotation = d.RecognizableVisualFeatures = "NO"
    d.LongitudinalTemporalInformationModified = "REMOVED"
    d.LossyImageCompression = "00"

    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    equipment.Manufacturer, equipment.ManufacturerModelName = MAKER, provenance.model[:64]
    equipment.SoftwareVersions = provenance.model_sha256
    equipment.ContributionDescription = "Drew the whole image; no patient was scanned"
    d.ContributingEquipmentSequence = Sequence([equipment])
