"""CT heads: what survives of a header, and what makes a series a head.

A series must be a head by its geometry: axial slices, a field of view of 150 to 350 mm, 100 to 350 mm from end to end. Its values
must be Hounsfield units.

Sources: DICOM PS3.3, C.8.2 (CT Image).

Left out: removal of faces; body part and kernel (a neck may pass as a head).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import acceptance
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import (
    IDENTITY,
    MEASURES,
    PIXELS,
    PLANE_ORIENTATION,
    PLANE_POSITION,
    constant,
    empty,
    number,
    word,
)
from client.modalities.base import Physics, Reader, contrast_agent
from client.readers.series import Frame, between
from shared.modalities.ct import MODALITY

AXIAL = 0.8  # cosine to the long axis of the patient: a gantry tilts by up to 30 degrees, plus the head itself
FIELD_MM, COVERAGE_MM = (150.0, 350.0), (100.0, 350.0)

CT_FRAME = (
    *IDENTITY,
    constant("Modality", "CT"),
    constant("ImageType", "ORIGINAL\\PRIMARY\\AXIAL"),
    *empty("Manufacturer", "InstanceNumber", "AcquisitionNumber", "Laterality"),
    word("PatientPosition", "HFS HFP HFDR HFDL FFS FFP FFDR FFDL", empty_if_unknown=True),
    number("KVP", 20, 200, 0, "kV", empty_if_unknown=True),
    number("ExposureTime", 0, 60_000, 0, "ms"),
    number("XRayTubeCurrent", 0, 2000, 0, "mA"),
    number("Exposure", 0, 5000, 0, "mAs"),
    number("DataCollectionDiameter", 100, 1000, 0, "mm"),
    number("ReconstructionDiameter", 50, 1000, 1, "mm"),
    number("GantryDetectorTilt", -45, 45, 1, "degrees"),
    *PLANE_POSITION,
    *PLANE_ORIENTATION,
    *MEASURES,
    number("RescaleIntercept", -10_000, 10_000, 2, "HU", required=True),
    number("RescaleSlope", 0.001, 100, 4, required=True),
    *PIXELS,
)


class CtReader(Reader[Physics]):
    """Axial slices of heads."""

    modality = MODALITY
    tables: ClassVar = dict(zip(MODALITY.sop_classes, (CT_FRAME,), strict=True))
    words = Reader.words | {"RescaleType"}

    def check_header(self, header: Dataset) -> None:
        if acceptance.words(header, "RescaleType") not in {(), ("HU",)}:
            raise Withheld(Reason.PIXEL_FORMAT)

    def physics(self, header: Dataset) -> Physics:
        return Physics(contrast_agent(header))

    def check_volume(self, volume: Sequence[Frame]) -> None:
        frame = volume[0]
        normal = np.cross(frame.orientation[:3], frame.orientation[3:])
        if abs(normal[2]) < AXIAL:
            raise Withheld(Reason.NOT_AXIAL)
        field_mm = max(step * count for step, count in zip(frame.spacing, frame.size, strict=True))
        extent_mm = float(np.ptp([np.dot(each.position, normal) for each in volume]))
        if not (between(field_mm, *FIELD_MM) and between(extent_mm, *COVERAGE_MM)):
            raise Withheld(Reason.NOT_A_HEAD)


READER = CtReader()
