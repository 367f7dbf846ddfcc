"""Heads with a face that belongs to nobody: the average brain of the MNI in a made-up skull, with eyes, nose and ears.

They are there to prove that a face is gone: every voxel of `face` is known. Skull and skin follow the brain at fixed
distances; the rest is made of ellipsoids. T1-weighted: fat and white matter bright, fluid and bone dark.

Left out: teeth, tongue, air cavities but the throat, everything below the chin but a neck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nilearn.datasets import load_mni152_template
from numpy.typing import NDArray
from scipy import ndimage

LOW_MM, HIGH_MM = (-98.0, -130.0, -140.0), (98.0, 130.0, 112.0)  # right, anterior, superior of the MNI
FLUID_MM, BONE_MM, HEAD_MM = 4.0, 8.0, 13.0  # from the brain: the outer borders of each
FACE_BEFORE_MM = -15.0

Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]  # centre and half axes, mm
JAW: Ellipsoid = ((0, 32, -72), (62, 62, 58))
NECK: Ellipsoid = ((0, -30, -120), (58, 62, 90))
NOSE: Ellipsoid = ((0, 96, -52), (15, 24, 24))
EARS: tuple[Ellipsoid, ...] = (((-82, -22, -42), (10, 16, 30)), ((82, -22, -42), (10, 16, 30)))
EYES: tuple[Ellipsoid, ...] = (((-33, 66, -36), (13, 13, 13)), ((33, 66, -36), (13, 13, 13)))
SPHENOID: Ellipsoid = ((0, 10, -34), (20, 24, 16))  # the bone under the pituitary, not of the face
THROAT: Ellipsoid = ((0, 22, -84), (14, 26, 18))


@dataclass(frozen=True)
class Head:
    """Arrays (right, anterior, superior): intensities, and what each voxel is.

    brain   the average brain
    face    all tissue in front of the ears outside brain, fluid and bone: skin, eyes, nose, jaw
    """

    volume_RAS: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    brain: NDArray[np.bool_]
    face: NDArray[np.bool_]


def head(
    rng: np.random.Generator,
    *,
    step_mm: float = 1.0,
    size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    nod_degrees: float = 0.0,
    shading: float = 0.2,
    noise: float = 0.02,
) -> Head:
    """One head.

    size      factors on the width, length and height of everything
    nod_degrees  positive: the chin goes up
    shading   the coil's: relative difference of brightness between front and back
    """
    cosine, sine = np.cos(np.radians(nod_degrees)), np.sin(np.radians(nod_degrees))
    turn = np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]])
    axes = [np.arange(low, high, step_mm) for low, high in zip(LOW_MM, HIGH_MM, strict=True)]
    p_mm = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    p_mm = np.tensordot(turn, p_mm, 1) / np.array(size)[:, None, None, None]
    template = load_mni152_template(resolution=1)
    voxel = p_mm - template.affine[:3, 3].reshape(3, 1, 1, 1)
    t1 = ndimage.map_coordinates(np.asarray(template.get_fdata(dtype=np.float32)), voxel, order=1)
    brain = ndimage.binary_fill_holes(t1 > 0.02)
    away_mm = ndimage.distance_transform_edt(~brain, sampling=step_mm)
    ears = _any(p_mm, EARS)
    skull = away_mm <= HEAD_MM
    tissue = skull | _any(p_mm, (JAW, NECK, NOSE)) | ears
    volume = np.where(tissue, 0.45, 0.0)  # muscle
    volume[tissue & (ndimage.distance_transform_edt(tissue, sampling=step_mm) <= 5)] = 0.95  # fat under the skin
    volume[(away_mm > 0) & (away_mm <= FLUID_MM)] = 0.12  # fluid
    bone = ((away_mm > FLUID_MM) & (away_mm <= BONE_MM)) | ((away_mm > FLUID_MM) & _any(p_mm, (SPHENOID,)))
    volume[bone] = 0.05
    eyes = _any(p_mm, EYES)
    volume[eyes & ~brain & (away_mm > BONE_MM)] = 0.2
    volume[_any(p_mm, (THROAT,)) & (away_mm > BONE_MM)] = 0.0
    volume = np.where(brain, t1, volume)
    face = tissue & ~bone & (away_mm > BONE_MM) & (p_mm[1] > FACE_BEFORE_MM)
    volume *= 1 + shading * p_mm[1] / 100
    noisy = np.hypot(volume + noise * rng.standard_normal(volume.shape), noise * rng.standard_normal(volume.shape))
    return Head((1000 * noisy).astype(np.float32), (step_mm, step_mm, step_mm), brain, face)


def _any(p_mm: NDArray[np.float32], parts: tuple[Ellipsoid, ...]) -> NDArray[np.bool_]:
    inside = np.zeros(p_mm.shape[1:], dtype=bool)
    for centre, half in parts:
        distance = (p_mm - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(half, (3, 1, 1, 1))
        inside |= (distance**2).sum(axis=0) <= 1
    return inside
