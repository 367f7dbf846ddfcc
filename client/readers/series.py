"""Which frames make one volume, and which series of a study is used: decided by physics and geometry, never by a name.

A series may hold several volumes at the same positions (a time series, diffusion directions, echoes). The first complete
one is taken, by the first of these that separates them: temporal position, acquisition number, b-value, echo, order of
instances. Volumes are never mixed: when nothing separates them, the series is withheld as ambiguous.

Of a study one series is used: T1-weighted before others, without contrast agent before with, then most slices, then
thinnest.

A CT series must be a head by its geometry: axial slices, a field of view of 150 to 350 mm, 100 to 350 mm from end to end.

Left out: a minimum coverage of MR (`client.deidentification.defacing` asks for one); body part and kernel of CT (a neck may pass
as a head).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import acceptance, enhanced, rules
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import MEASURES, PIXELS, PLANE_ORIENTATION, PLANE_POSITION, Rule

# Read to select, never written.
KEYS: dict[str, Rule] = {
    "temporal": Rule("TemporalPositionIdentifier", "number", 0, 1e9),
    "acquisition": Rule("AcquisitionNumber", "number", 0, 1e9),
    "b_value": Rule("DiffusionBValue", "number", 0, 1e6, 3),
    "echo": Rule("EchoTime", "number", 0, 1e4, 3),
    "instance": Rule("InstanceNumber", "number", 0, 1e9),
}
PHYSICS: dict[str, Rule] = {
    "TR_ms": Rule("RepetitionTime", "number", 0, 1e6, 3),
    "TE_ms": Rule("EchoTime", "number", 0, 1e4, 3),
    "TI_ms": Rule("InversionTime", "number", 0, 1e5, 3),
    "flip_degrees": Rule("FlipAngle", "number", 0, 360, 3),
}
WORDS = ("ScanningSequence", "SequenceVariant", "MRAcquisitionType", "ContrastBolusAgent", "AngioFlag")
T1_MS = 1000.0  # of tissue, about, at 1.5 and 3 T: the flip angle of most signal (Ernst) follows from it
SEPARATORS = ("temporal", "acquisition", "b_value", "echo")


@dataclass(frozen=True)
class Frame:
    """One slice of a file. file: its number among the inputs; number: from 0 inside the file; lengths in mm."""

    file: int
    number: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]
    keys: dict[str, float | None]

    @property
    def location(self) -> tuple[float, ...]:
        """Position to 0.01 mm: equal for the same slice of repeated volumes."""
        return tuple(round(value, 2) + 0.0 for value in self.position)


@dataclass(frozen=True)
class Physics:
    """What selects a series. Times in ms; None where unknown. plain_spoiled: spoiled, no angiography, no magnetisation transfer."""

    sequence: frozenset[str]
    three_d: bool
    contrast: bool
    plain_spoiled: bool = False
    TR_ms: float | None = None
    TE_ms: float | None = None
    TI_ms: float | None = None
    flip_degrees: float | None = None

    @property
    def t1_weighted(self) -> bool:
        """3-D gradient echo, inversion-prepared (MPRAGE) or spoiled beyond the Ernst angle (SPGR); spin echo of short TR and TE."""
        prepared = self.three_d and "GR" in self.sequence and _between(self.TI_ms, 600, 1300)
        spin = "SE" in self.sequence and "EP" not in self.sequence and _between(self.TR_ms, 300, 900)
        gradient = prepared or self._beyond_ernst()
        return (gradient and _between(self.TE_ms, 0, 8)) or (spin and _between(self.TE_ms, 0, 30))

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


def physics_of(header: Dataset) -> Physics:
    """The physics in a header; anything unknown stays None."""
    return Physics(
        sequence=frozenset(acceptance.words(header, "ScanningSequence")),
        three_d=acceptance.words(header, "MRAcquisitionType") == ("3D",),
        contrast=bool(acceptance.words(header, "ContrastBolusAgent")),
        plain_spoiled=_plain_spoiled(header),
        **{name: _number(rule, header) for name, rule in PHYSICS.items()},
    )


def _plain_spoiled(header: Dataset) -> bool:
    variant = set(acceptance.words(header, "SequenceVariant"))
    return "SP" in variant and "MTC" not in variant and acceptance.words(header, "AngioFlag") != ("Y",)


def frames_of(header: Dataset, file: int) -> list[Frame]:
    """The slices that a header describes. Raises Withheld(REQUIRED) when geometry is missing or out of range."""
    table = {rule.keyword: rule for rule in (*PLANE_POSITION, *PLANE_ORIENTATION, *MEASURES, *PIXELS)}
    rows, columns = (_required(table[keyword], header)[0] for keyword in ("Rows", "Columns"))
    frames = []
    for number in (
        range(int(header.get("NumberOfFrames") or 1)) if "PerFrameFunctionalGroupsSequence" in header else [0]
    ):
        flat = header if "PerFrameFunctionalGroupsSequence" not in header else _flat(header, number)
        position, orientation, spacing = (
            tuple(_required(table[keyword], flat))
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        )
        keys = {name: _number(rule, flat) for name, rule in KEYS.items()}
        frames.append(Frame(file, number, position, orientation, spacing, (int(rows), int(columns)), keys))
    return frames


def _flat(header: Dataset, number: int) -> Dataset:
    """One frame's groups laid out like a single-frame header."""
    flat = Dataset()
    for group in enhanced.frame_groups(header, number).values():
        flat.update({element.tag: element for element in group if element.VR != "SQ"})
    for source, target in (("TemporalPositionIndex", "TemporalPositionIdentifier"), ("EffectiveEchoTime", "EchoTime"),
                           ("FrameAcquisitionNumber", "AcquisitionNumber")):  # fmt: skip
        if source in flat:
            setattr(flat, target, str(flat[source].value))
    if "InstanceNumber" in header:
        flat.InstanceNumber = header.InstanceNumber
    return flat


def first_volume(frames: Sequence[Frame]) -> list[Frame]:
    """The frames of the first complete volume. Raises Withheld when volumes cannot be told apart or do not agree."""
    repeats = Counter(frame.location for frame in frames)
    volume = list(frames) if max(repeats.values()) == 1 else _separated(frames, len(repeats))
    agree = {(frame.size, frame.spacing, frame.keys["echo"]) for frame in volume}
    orientations = np.array([frame.orientation for frame in volume])
    if len(agree) != 1 or np.ptp(orientations, axis=0).max() > 1e-3:
        raise Withheld(Reason.GEOMETRY)
    return volume


def _separated(frames: Sequence[Frame], locations: int) -> list[Frame]:
    for name in SEPARATORS:
        groups = defaultdict(list)
        for frame in frames:
            groups[frame.keys[name]].append(frame)
        if None in groups or len(groups) == 1:
            continue
        for value in sorted(groups, key=lambda value: value or 0.0):
            if _complete(groups[value], locations):
                return groups[value]
    if any(frame.keys["instance"] is None for frame in frames):
        raise Withheld(Reason.AMBIGUOUS)
    ordered = sorted(frames, key=lambda frame: (frame.keys["instance"], frame.number, frame.file))
    if len({(frame.keys["instance"], frame.number) for frame in frames}) < len(frames):
        raise Withheld(Reason.AMBIGUOUS)
    if _complete(ordered[:locations], locations):  # volume after volume
        return ordered[:locations]
    each, rest = divmod(len(ordered), locations)  # slice after slice: all repeats of one position follow each other
    runs = [ordered[start : start + each] for start in range(0, len(ordered), each)]
    if rest or any(len({frame.location for frame in run}) > 1 for run in runs):
        raise Withheld(Reason.AMBIGUOUS)
    return [run[0] for run in runs]


def _complete(frames: Sequence[Frame], locations: int) -> bool:
    return len(frames) == locations == len({frame.location for frame in frames})


AXIAL = 0.8  # cosine to the long axis of the patient: a gantry tilts by up to 30 degrees, plus the head itself
FIELD_MM, COVERAGE_MM = (150.0, 350.0), (100.0, 350.0)


def check_head(volume: Sequence[Frame]) -> None:
    """Raise Withheld unless the slices are axial and as wide and as many as a head needs."""
    frame = volume[0]
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    if abs(normal[2]) < AXIAL:
        raise Withheld(Reason.NOT_AXIAL)
    field_mm = max(step * count for step, count in zip(frame.spacing, frame.size, strict=True))
    extent_mm = float(np.ptp([np.dot(each.position, normal) for each in volume]))
    if not (_between(field_mm, *FIELD_MM) and _between(extent_mm, *COVERAGE_MM)):
        raise Withheld(Reason.NOT_A_HEAD)


def rank(volume: Sequence[Frame], physics: Physics) -> tuple[bool, bool, int, float]:
    """Sorts the best series of a study first."""
    return (not physics.t1_weighted, physics.contrast, -len(volume), _step_mm(volume))


def _step_mm(volume: Sequence[Frame]) -> float:
    """Mean distance of neighbouring slices in mm."""
    positions = np.array([frame.position for frame in volume])
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    return extent / max(len(volume) - 1, 1)


def _between(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def _number(rule: Rule, header: Dataset) -> float | None:
    values = rules.numbers(rule, header)
    return values[0] if values else None


def _required(rule: Rule, header: Dataset) -> list[float]:
    values = rules.numbers(rule, header)
    if values is None:
        raise Withheld(Reason.REQUIRED)
    return values
