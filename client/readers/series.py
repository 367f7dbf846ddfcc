"""Which frames make one volume: decided by geometry, never by a name.

A series may hold several volumes at the same positions (a time series, diffusion directions, echoes). The first complete
one is taken, by the first of these that separates them: temporal position, acquisition number, b-value, echo, order of
instances. Volumes are never mixed: when nothing separates them, the series is withheld as ambiguous.

Left out: which series of a study is used, and whether it shows what is wanted: the modality says that (`client.modalities`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import enhanced, rules
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
        keys = {name: known(rule, flat) for name, rule in KEYS.items()}
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


def fullest(volume: Sequence[Frame]) -> tuple[int, float]:
    """Sorts the volume with most slices, and of as many the thinnest, first."""
    return (-len(volume), _step_mm(volume))


def _step_mm(volume: Sequence[Frame]) -> float:
    """Mean distance of neighbouring slices in mm."""
    positions = np.array([frame.position for frame in volume])
    extent = float(np.linalg.norm(np.ptp(positions, axis=0)))
    return extent / max(len(volume) - 1, 1)


def between(value: float | None, low: float, high: float) -> bool:
    """Whether a number is known and in a range."""
    return value is not None and low <= value <= high


def known(rule: Rule, header: Dataset) -> float | None:
    """One number that is read to select; none where it is missing or out of range."""
    values = rules.numbers(rule, header)
    return values[0] if values else None


def _required(rule: Rule, header: Dataset) -> list[float]:
    values = rules.numbers(rule, header)
    if values is None:
        raise Withheld(Reason.REQUIRED)
    return values
