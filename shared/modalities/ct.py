"""Computed tomography of the head.

Left out: Enhanced CT; the body.
"""

from __future__ import annotations

from shared.modalities.base import Modality, Window

MODALITY = Modality(
    name="ct",
    title="computed tomography of the head",
    codes=("CT",),
    sop_classes={"1.2.840.10008.5.1.4.1.1.2": "CT Image"},
    window=Window(tissue=-300.0, black=0.0, white=80.0),  # HU; the brain window, level 40, width 80
    scaling="from 0 to 80 HU",
    faces="stay",
)
