"""Heads to brains: what is not brain becomes zero, and any doubt about that withholds the series.

Guarantee: of a volume that passes, every voxel outside one brain mask is exactly zero, and that mask passed each gate
below. The gates compare the masker with a second opinion that knows nothing of it (`client.readers.template`); a masker that
returns the whole head, nothing, or a mask in the wrong place is refused by them, whatever it claims.

| gate              | passes when                                                                   | else          |
|-------------------|-------------------------------------------------------------------------------|---------------|
| field of view     | it holds 900 mL, and 80 % of the average brain laid over it                   | coverage      |
| volume            | 900 to 2,100 mL                                                               | brain-volume  |
| pieces            | the largest holds 98 % of the mask                                            | brain-pieces  |
| agreement         | Dice with the second mask at least 0.90                                       | masks-differ  |
| contrast          | white matter is brighter than grey: T1-weighted                               | not-t1        |
| face              | no voxel in the face as the template knows it                                 | face-left     |
| place             | its centre lies in the upper 60 % of the volume                               | brain-low     |
| zeros             | no value outside the mask                                                     | outside-mask  |

A volume that is already zero around something that passes all gates is taken as stripped before: the masker is not asked.
That includes no head with its skin: a head is twice a brain's volume, and its face lies where the template has one.

What it does not do: make a scan anonymous. Two stripped scans of one person can be matched to each other
(https://arxiv.org/abs/2602.10043), so slices stay in the hospital.

Left out: contrasts other than T1; heads younger than about a year, in which grey outshines white (withheld); ears and neck as
regions of their own (they are zero, as all outside the mask).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.readers import bias, masks, template
from client.readers.volumes import Scan

VOLUME_ML = (900.0, 2100.0)
LARGEST_PIECE = 0.98
AGREEMENT = 0.90
LOWEST_CENTRE = 0.40  # of the volume's height, from below
COVERED = 0.80
FIELD_MM = 220.0  # side of a picture: a brain fills as much of it as the phantoms' brains fill theirs

Second = Callable[[np.ndarray, tuple[float, float, float]], template.Fit]
Correct = Callable[[np.ndarray, np.ndarray, tuple[float, float, float]], np.ndarray]


def remove(
    scan: Scan,
    masker: masks.Masker = masks.deepbet,
    second: Second = template.fit,
    correct: Correct = bias.correct,
) -> Scan:
    """The brain of a T1-weighted head, without shading, centred in a field of FIELD_MM. Raises Withheld, with evidence."""
    volume, spacing_mm = scan.volume_RAS, scan.spacing_mm
    if not np.isfinite(volume).all():
        raise Withheld(Reason.PIXEL_FORMAT)
    if volume.size * np.prod(spacing_mm) / 1000 < VOLUME_ML[0]:
        raise Withheld(Reason.COVERAGE)
    fit = guarded(Reason.NO_BRAIN, lambda: second(volume, spacing_mm))
    stripped = _stripped_before(volume, fit, spacing_mm)
    brain, evidence = stripped or judge(masker(volume), fit, spacing_mm)
    kept = guarded(Reason.NO_BRAIN, lambda: correct(volume, brain, spacing_mm))
    if kept[~brain].any():
        raise Withheld(Reason.OUTSIDE_MASK, evidence)
    evidence["stripped_before"] = int(stripped is not None)
    return _framed(replace(scan, volume_RAS=kept, brain=brain, cerebrum=fit.cerebrum & brain, evidence=evidence))


def judge(
    mask: np.ndarray, fit: template.Fit, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, dict[str, float | str]]:
    """The mask's largest piece and the evidence for it. Raises Withheld with the first gate that fails."""
    if mask.shape != fit.brain.shape or mask.dtype != bool:
        raise Withheld(Reason.NO_BRAIN)
    brain, piece = masks.solid(mask)
    both = int((brain & fit.brain).sum())
    volume_ml = float(brain.sum() * np.prod(spacing_mm) / 1000)
    dice = 2 * both / int(brain.sum() + fit.brain.sum())
    in_face = int((brain & fit.face).sum())
    centre = float(ndimage.center_of_mass(brain)[2] + 0.5) / brain.shape[2]
    evidence: dict[str, float | str] = {
        "volume_ml": round(volume_ml),
        "largest_piece": round(piece, 3),
        "dice": round(dice, 3),
        "in_face": in_face,
        "centre": round(centre, 2),
        "contrast": round(fit.contrast, 2),
        "covered": round(fit.covered, 2),
        "mask_sha256": _digest(brain),
        "second_sha256": _digest(fit.brain),
    }
    gates = {
        Reason.COVERAGE: fit.covered >= COVERED,
        Reason.BRAIN_VOLUME: VOLUME_ML[0] <= volume_ml <= VOLUME_ML[1],
        Reason.BRAIN_PIECES: piece >= LARGEST_PIECE,
        Reason.MASKS_DIFFER: dice >= AGREEMENT,
        Reason.NOT_T1: fit.contrast > 1,
        Reason.FACE_LEFT: in_face == 0,
        Reason.BRAIN_LOW: centre >= LOWEST_CENTRE,
    }
    for reason, passed in gates.items():
        if not passed:
            raise Withheld(reason, evidence)
    return brain, evidence


def _stripped_before(
    volume: np.ndarray, fit: template.Fit, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, dict[str, float | str]] | None:
    """The mask that somebody else left, where it passes every gate."""
    around = masks.background(volume)
    if not around.any() or not (~around).any():
        return None
    try:
        return judge(~around, fit, spacing_mm)
    except Withheld:
        return None


def _framed(scan: Scan) -> Scan:
    """Cut to the brain's levels; in plane, a square of FIELD_MM around the brain, filled up with zeros."""
    assert scan.brain is not None and scan.cerebrum is not None
    box = ndimage.find_objects(scan.brain.astype(np.uint8))[0]
    places = []
    for axis, step_mm in enumerate(scan.spacing_mm):
        length = box[axis].stop - box[axis].start
        wanted = length if axis == 2 else max(length, round(FIELD_MM / step_mm))
        start = (box[axis].start + box[axis].stop - wanted) // 2
        places.append(np.arange(start, start + wanted))

    def cut(array: np.ndarray) -> np.ndarray:
        inside = [(place >= 0) & (place < size) for place, size in zip(places, array.shape, strict=True)]
        made = np.zeros([len(place) for place in places], dtype=array.dtype)
        made[np.ix_(*inside)] = array[np.ix_(*(place[ok] for place, ok in zip(places, inside, strict=True)))]
        return made

    return replace(scan, volume_RAS=cut(scan.volume_RAS), brain=cut(scan.brain), cerebrum=cut(scan.cerebrum))


def _digest(mask: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
