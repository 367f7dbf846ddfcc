"""Magnetic resonance of the head.

Sources: DICOM PS3.4, table B.5-1 (SOP classes).

Left out: MR Spectroscopy and Raw Data, which are no images; contrasts other than T1 where faces must go (client/modalities/mr.py).
"""

from __future__ import annotations

from shared.modalities.base import Modality

MODALITY = Modality(
    name="mr",
    title="magnetic resonance of the head",
    codes=("MR",),
    sop_classes={
        "1.2.840.10008.5.1.4.1.1.4": "MR Image",
        "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR Image",
        "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR Image",
    },
    window=None,  # the values have no unit
    scaling="from the 1st to the 99th percentile of the foreground of each volume",
    faces="removed",
    biomarkers=("ventricle-to-brain ratio", "CSF fraction", "grey fraction", "white fraction", "intensity"),
)
