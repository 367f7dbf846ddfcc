"""Slices to volumes to axial pictures.

Geometry is exact or refused: highdicom sorts by position and refuses gaps, mixed orientations and shear. The volume is
turned to the nearest of the patient's axes by exchanging and flipping axes only (RAS: indices grow to the right, front,
top); no voxel is interpolated along the way. Obliquity that remains stays in the pictures.

A picture is seen from the feet, as radiologists do: row 0 is the front, column 0 the patient's right.

Left out: resampling between slices; faces and shading (`client.deidentification.defacing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import highdicom
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded

FOREGROUND = 0.1  # of the robust range: the threshold of FSL's brain extraction (Smith 2002, section 2.1)
USABLE_AREA = 0.25  # of the largest foreground area over the levels


class Greys(NamedTuple):
    """Where anything is seen, and the values that are shown as black and as white."""

    foreground: np.ndarray
    black: float
    white: float


@dataclass(frozen=True)
class Scan:
    """A volume on its way to pictures; arrays are indexed (right, anterior, superior).

    brain      where known, the mask outside which every voxel is zero
    cerebrum   where known, the voxels whose levels are worth a picture
    evidence   numbers and digests for the manifest, by what prepared the volume
    """

    volume_RAS: np.ndarray
    spacing_mm: tuple[float, float, float]
    brain: np.ndarray | None = None
    cerebrum: np.ndarray | None = None
    evidence: dict[str, float | str] = field(default_factory=dict)


def from_series(frames: Sequence[Dataset]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The volume (right, anterior, superior) as float32 and its spacing in mm. Raises Withheld(GEOMETRY)."""

    def build() -> tuple[np.ndarray, tuple[float, float, float]]:
        volume = highdicom.get_volume_from_series(frames, dtype=np.float32, orientation_tol=1e-3)
        volume = volume.to_patient_orientation("RAS")
        right_mm, anterior_mm, superior_mm = (float(step) for step in volume.spacing)
        return np.asarray(volume.array), (right_mm, anterior_mm, superior_mm)

    return guarded(Reason.GEOMETRY, build)


Inspect = Callable[[np.ndarray, np.ndarray, tuple[float, float]], None]


def acquired_along(orientation: Sequence[float]) -> int:
    """Axis of a (right, anterior, superior) volume along which its slices follow each other, by their row and column cosines."""
    return int(np.argmax(np.abs(np.cross(orientation[:3], orientation[3:]))))


def greys(volume_RAS: np.ndarray, brain: np.ndarray | None = None) -> Greys:
    """By the 1st and 99th percentile of the foreground, or of the brain where it is known. Raises Withheld where there is none."""
    foreground = _foreground(volume_RAS) if brain is None else brain
    if not foreground.any():
        raise Withheld(Reason.LABEL_MAP)
    black, white = np.percentile(volume_RAS[foreground], [1, 99])
    return Greys(foreground, float(black), float(white))


def axial(
    volume_RAS: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    size: int,
    count: int,
    inspect: Inspect | None = None,
    brain: np.ndarray | None = None,
    cerebrum: np.ndarray | None = None,
    find: Callable[[np.ndarray, np.ndarray | None], Greys] = greys,
) -> np.ndarray:
    """At most `count` axial pictures (S, size, size) uint8 in [0, 255], evenly over the usable levels, lowest first.

    Values are scaled as `find` says, by constants that are not kept. `inspect` is told the volume, the levels that are kept and the
    two constants before any picture is made; it may raise Withheld. With `brain`, a pixel without any of it is 0; with `cerebrum`,
    levels are usable that hold enough of it.
    """
    if not np.isfinite(volume_RAS).all():
        raise Withheld(Reason.PIXEL_FORMAT)
    foreground, low, high = find(volume_RAS, brain)
    if not foreground.any() or high <= low:
        raise Withheld(Reason.LABEL_MAP)
    area = (foreground if cerebrum is None else cerebrum).sum(axis=(0, 1))
    usable = np.flatnonzero(area >= max(USABLE_AREA * area.max(), 1))
    levels = usable[evenly(len(usable), count)]
    if inspect is not None:
        inspect(volume_RAS, levels, (low, high))
    pictures = np.clip((volume_RAS[:, :, levels] - low) / (high - low), 0, 1) * 255
    if brain is not None:
        pictures *= brain[:, :, levels]
    return _seen(pictures, spacing_mm, size)


def _foreground(volume_RAS: np.ndarray) -> np.ndarray:
    low, high = np.percentile(volume_RAS, [2, 98])
    if high <= low:
        raise Withheld(Reason.LABEL_MAP)
    return np.asarray(volume_RAS > low + FOREGROUND * (high - low))


def _seen(levels_RAS: np.ndarray, spacing_mm: tuple[float, float, float], size: int) -> np.ndarray:
    """(right, anterior, level) as pictures (level, front to back, right to left) of `size`."""
    seen = levels_RAS[::-1, ::-1, :].transpose(2, 1, 0)
    return np.stack([square(picture, spacing_mm[1], spacing_mm[0], size) for picture in seen])


def evenly(available: int, count: int) -> np.ndarray:
    """Indices of `count` of `available` things in order, evenly spread; all of them when there are not more."""
    if available <= count:
        return np.arange(available)
    return np.floor((np.arange(count) + 0.5) * available / count).astype(int)


def square(picture: np.ndarray, row_mm: float, column_mm: float, size: int) -> np.ndarray:
    """One picture (H, W) in [0, 255] as (size, size) uint8: pixels become square, shorter side padded with black.

    row_mm, column_mm   distance of neighbouring rows and of neighbouring columns
    """
    height_mm, width_mm = picture.shape[0] * row_mm, picture.shape[1] * column_mm
    scale = size / max(height_mm, width_mm)
    height, width = max(round(height_mm * scale), 1), max(round(width_mm * scale), 1)
    resized = Image.fromarray(np.ascontiguousarray(picture, dtype=np.float32)).resize(
        (width, height),
        Image.Resampling.BILINEAR,  # the filter widens when it shrinks, so it does not alias
    )
    canvas = np.zeros((size, size), dtype=np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top : top + height, left : left + width] = np.clip(np.rint(np.asarray(resized)), 0, 255).astype(np.uint8)
    return canvas
