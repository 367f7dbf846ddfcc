"""T1 weighting is decided by physics, never by a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydicom.dataset import FileDataset

from client.modalities.mr import physics_of

SPOILED = {
    "ScanningSequence": "GR", "SequenceVariant": ["SP", "OSP"], "InversionTime": None, "RepetitionTime": "8.2",
    "EchoTime": "3.2", "FlipAngle": "12",
}  # fmt: skip


@pytest.mark.parametrize(("said", "expected"), [
    ({}, True),  # inversion-prepared: MPRAGE
    (SPOILED, True),  # SPGR, FLASH
    (SPOILED | {"InversionTime": "450"}, True),  # prepared and spoiled
    (SPOILED | {"FlipAngle": "4"}, False),  # below the Ernst angle: proton density
    (SPOILED | {"FlipAngle": None}, False),
    (SPOILED | {"RepetitionTime": None}, False),
    (SPOILED | {"RepetitionTime": "600"}, False),
    (SPOILED | {"EchoTime": "20"}, False),
    (SPOILED | {"SequenceVariant": ["SS"]}, False),  # steady state keeps its transverse magnetisation
    (SPOILED | {"SequenceVariant": ["SP", "MTC"]}, False),
    (SPOILED | {"AngioFlag": "Y"}, False),
    (SPOILED | {"MRAcquisitionType": "2D"}, False),
    (SPOILED | {"ScanningSequence": ["GR", "EP"]}, False),
    ({"ScanningSequence": "SE", "RepetitionTime": "500", "EchoTime": "12", "InversionTime": None}, True),
    ({"ScanningSequence": "SE", "RepetitionTime": "4000", "EchoTime": "90", "InversionTime": None}, False),
    ({"SeriesDescription": "T1 MPRAGE", "InversionTime": "2500"}, False),
])  # fmt: skip
def test_t1_weighting_follows_from_the_physics(
    make_slice: Callable[..., FileDataset], said: dict[str, Any], expected: bool
) -> None:
    assert physics_of(make_slice(0, **said)).t1_weighted is expected
