"""MR heads: which header says a T1, what survives of it, and how the face goes.

Of a study one series is used: T1-weighted before others, without contrast agent before with, then most slices, then thinnest. T1
weighting is decided by physics, never by a name; NIfTI files have none, so there alone a name is read.

Sources: DICOM PS3.3, C.7 and C.8.3 (MR Image), C.8.13 (Enhanced MR Image).

Left out: a minimum coverage where faces stay (`client.deidentification.defacing` asks for one); brain masks of other contrasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydicom.dataset import Dataset

from client.deidentification import acceptance
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import (
    IDENTITY,
    MEASURES,
    PIXELS,
    PLANE_ORIENTATION,
    PLANE_POSITION,
    RESCALE,
    Rule,
    constant,
    empty,
    number,
    word,
)
from client.modalities.base import Physics, Reader, contrast_agent
from client.readers import series
from client.readers.series import Frame, between
from client.readers.volumes import Scan
from shared.modalities.mr import MODALITY

T1_MS = 1000.0  # of tissue, about, at 1.5 and 3 T: the flip angle of most signal (Ernst) follows from it
PHYSICS: dict[str, Rule] = {  # read to select, never written
    "TR_ms": Rule("RepetitionTime", "number", 0, 1e6, 3),
    "TE_ms": Rule("EchoTime", "number", 0, 1e4, 3),
    "TI_ms": Rule("InversionTime", "number", 0, 1e5, 3),
    "flip_degrees": Rule("FlipAngle", "number", 0, 360, 3),
}
WORDS = ("ScanningSequence", "SequenceVariant", "MRAcquisitionType", "ContrastBolusAgent", "AngioFlag")

SINGLE_FRAME = (
    *IDENTITY,
    constant("Modality", "MR"),
    constant("ImageType", "ORIGINAL\\PRIMARY\\OTHER"),
    *empty("Manufacturer", "InstanceNumber", "ScanOptions", "Laterality"),
    word("ScanningSequence", "SE IR GR EP RM", 5, required=True),
    word("SequenceVariant", "SK MTC SS TRSS SP MP OSP NONE", 8, required=True),
    word("MRAcquisitionType", "2D 3D", empty_if_unknown=True),
    word("PatientPosition", "HFS HFP HFDR HFDL FFS FFP FFDR FFDL", empty_if_unknown=True),
    number("RepetitionTime", 0, 30000, 1, "ms", empty_if_unknown=True),
    number("EchoTime", 0, 1000, 2, "ms", empty_if_unknown=True),
    number("EchoTrainLength", 0, 1024, empty_if_unknown=True),
    number("InversionTime", 0, 10000, 1, "ms"),
    number("FlipAngle", 0, 360, 1, "degrees"),
    number("NumberOfAverages", 0, 64, 1),
    number("MagneticFieldStrength", 0.01, 20, 2, "T"),
    *PLANE_POSITION,
    *PLANE_ORIENTATION,
    *MEASURES,
    *RESCALE,
    *PIXELS,
)

MULTI_FRAME = (
    *IDENTITY,
    constant("Modality", "MR"),
    constant("ImageType", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
    constant("InstanceNumber", 1),
    constant("Manufacturer", "REMOVED"),
    constant("ManufacturerModelName", "REMOVED"),
    constant("DeviceSerialNumber", "REMOVED"),
    constant("SoftwareVersions", "REMOVED"),
    number("MagneticFieldStrength", 0.01, 20, 2, "T"),
    number("NumberOfFrames", 1, 100_000, required=True),
    Rule("SharedFunctionalGroupsSequence", "group"),
    Rule("PerFrameFunctionalGroupsSequence", "group"),
    *PIXELS,
)


@dataclass(frozen=True)
class MrPhysics(Physics):
    """Times in ms; None where unknown. plain_spoiled: spoiled, no angiography, no magnetisation transfer."""

    sequence: frozenset[str] = frozenset()
    three_d: bool = False
    plain_spoiled: bool = False
    TR_ms: float | None = None
    TE_ms: float | None = None
    TI_ms: float | None = None
    flip_degrees: float | None = None

    @property
    def t1_weighted(self) -> bool:
        """3-D gradient echo, inversion-prepared (MPRAGE) or spoiled beyond the Ernst angle (SPGR); spin echo of short TR and TE."""
        prepared = self.three_d and "GR" in self.sequence and between(self.TI_ms, 600, 1300)
        spin = "SE" in self.sequence and "EP" not in self.sequence and between(self.TR_ms, 300, 900)
        gradient = prepared or self._beyond_ernst()
        return (gradient and between(self.TE_ms, 0, 8)) or (spin and between(self.TE_ms, 0, 30))

    def _beyond_ernst(self) -> bool:
        """Whether a spoiled gradient echo is flipped past the angle at which cos = exp(-TR / T1): there a longer T1 is darker."""
        spoiled = self.three_d and "GR" in self.sequence and "EP" not in self.sequence and self.plain_spoiled
        if self.flip_degrees is None or self.TR_ms is None or not (spoiled and 3 <= self.TR_ms <= 50):
            return False
        return math.cos(math.radians(self.flip_degrees)) <= math.exp(-self.TR_ms / T1_MS)

    @property
    def may_be_t1_weighted(self) -> bool:
        """T1-weighted, or of a header that names no sequence (Enhanced MR): then the image itself must show it."""
        return self.t1_weighted or not self.sequence


def physics_of(header: Dataset) -> MrPhysics:
    """The physics in a header; anything unknown stays None."""
    return MrPhysics(
        sequence=frozenset(acceptance.words(header, "ScanningSequence")),
        three_d=acceptance.words(header, "MRAcquisitionType") == ("3D",),
        contrast=contrast_agent(header),
        plain_spoiled=_plain_spoiled(header),
        **{name: series.known(rule, header) for name, rule in PHYSICS.items()},
    )


def _plain_spoiled(header: Dataset) -> bool:
    variant = set(acceptance.words(header, "SequenceVariant"))
    return "SP" in variant and "MTC" not in variant and acceptance.words(header, "AngioFlag") != ("Y",)


class MrReader(Reader[MrPhysics]):
    """Heads in slices, single-frame and multi-frame."""

    modality = MODALITY
    tables: ClassVar = dict(zip(MODALITY.sop_classes, (SINGLE_FRAME, MULTI_FRAME, MULTI_FRAME), strict=True))
    words = frozenset({*WORDS, *(rule.keyword for rule in PHYSICS.values())})
    preferred = ("t1",)

    def physics(self, header: Dataset) -> MrPhysics:
        return physics_of(header)

    def check_physics(self, physics: MrPhysics, *, faces_go: bool) -> None:
        if faces_go and not physics.may_be_t1_weighted:
            raise Withheld(Reason.NOT_T1)

    def rank(self, volume: Sequence[Frame], physics: MrPhysics) -> tuple[Any, ...]:
        return (not physics.t1_weighted, *super().rank(volume, physics))

    def steps(self) -> tuple[Callable[[Scan], Scan], ...]:
        from client.deidentification import defacing  # noqa: PLC0415  (registration and networks: seconds to load)

        return (defacing.remove,)

    def networks(self) -> Mapping[str, str]:
        from client.readers import masks  # noqa: PLC0415  (as above)

        return masks.models()


READER = MrReader()
