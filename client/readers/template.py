"""A second opinion on where the brain is: the average brain of the MNI, laid over the head by registration.

It never sees the other masker's answer, and it fails in other ways: that is what makes their agreement worth something.
The template (ICBM 2009a symmetric, 1 mm, inside nilearn) holds a brain alone, which an affine map would stretch to the
skull. So it is given what every head has around the brain: a dark rim (fluid and bone) and a bright rim (fat and skin).

Affine, Mattes mutual information (Mattes et al. 2003, https://doi.org/10.1109/TMI.2003.809072): started from many places
at 4 mm, the three best refined, the best of them refined again at 2 mm. Left and right are not told apart.

Left out: a warp that follows one person's folds; the agreement of two masks needs none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import SimpleITK as sitk  # noqa: N813  (the name that all of its documentation uses)
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage

# Millimetres in the template's space: right, anterior, superior; the origin lies in the anterior commissure.
DARK_RIM_MM, BRIGHT_RIM_MM = 8.0, 14.0  # outer borders of fluid and bone, and of skin, around the upper brain
RIM_MM = 22.0  # the metric looks this far
BRAIN_CENTRE_MM, VERTEX_MM = (0.0, -18.0, 10.0), (0.0, -18.0, 92.0)
FRONT_MM = -15.0  # the face begins before the ear canals, which lie near -20
FACE_MARGIN_MM = 15.0  # from the average brain
CEREBRUM_ABOVE_MM, CEREBRUM_BEFORE_MM = 5.0, -5.0  # beyond either, brain is neither cerebellum nor brain stem
SEED = 1  # of the voxels that the metric samples: the same volume gets the same answer


@dataclass(frozen=True)
class Fit:
    """The template laid over one volume. Masks (right, anterior, superior) have the volume's shape.

    brain      the second brain mask
    cerebrum   the part of it that is neither cerebellum nor brain stem, so far as a template can tell
    face       the front of the head, farther than FACE_MARGIN_MM from the average brain: eyes, nose, mouth, forehead
    contrast   median of white over median of grey matter: above 1 only in T1-weighted images of myelinated brains
    covered    fraction of the average brain that lies inside the volume
    """

    brain: np.ndarray
    cerebrum: np.ndarray
    face: np.ndarray
    contrast: float
    covered: float


@dataclass(frozen=True)
class _Template:
    """Images in the template's space, and the head (with its mask) at 4 and at 2 mm."""

    brain: sitk.Image
    cerebrum: sitk.Image
    face: sitk.Image
    grey: sitk.Image
    white: sitk.Image
    levels: tuple[tuple[sitk.Image, sitk.Image], tuple[sitk.Image, sitk.Image]]


def fit(volume_RAS: np.ndarray, spacing_mm: tuple[float, float, float]) -> Fit:
    """Lay the template over a volume. A head that it does not fit gives a poor fit, not an error: compare the masks."""
    template = _template()
    volume = image(volume_RAS, spacing_mm)
    to_volume = _register(template, volume)
    to_template = to_volume.GetInverse()

    def laid(part: sitk.Image) -> np.ndarray:
        return array(sitk.Resample(part, volume, to_template, sitk.sitkNearestNeighbor, 0)) > 0

    seen = sitk.Resample(volume, template.brain, to_volume, sitk.sitkLinear, -np.inf, sitk.sitkFloat32)
    values, brain = array(seen), array(template.brain) > 0
    inside = np.isfinite(values)
    white, grey = (values[(array(part) > 0) & inside] for part in (template.white, template.grey))
    middle = float(np.median(grey)) if grey.size else 0.0
    return Fit(
        laid(template.brain),
        laid(template.cerebrum),
        laid(template.face),
        float(np.median(white)) / middle if white.size and middle > 0 else 0.0,
        float(inside[brain].mean()),
    )


def image(
    volume_RAS: np.ndarray, spacing_mm: tuple[float, ...], origin_mm: tuple[float, ...] = (0, 0, 0)
) -> sitk.Image:
    """An image whose x, y, z are right, anterior, superior."""
    made = sitk.GetImageFromArray(np.ascontiguousarray(volume_RAS.transpose(2, 1, 0)))
    made.SetSpacing([float(step) for step in spacing_mm])
    made.SetOrigin([float(start) for start in origin_mm])
    return made


def array(made: sitk.Image) -> np.ndarray:
    """The voxels (right, anterior, superior) of an image."""
    return np.asarray(sitk.GetArrayFromImage(made).transpose(2, 1, 0))


@cache
def _template() -> _Template:
    source = load_mni152_template(resolution=1)
    around = ((15, 15), (15, 15), (10, 25))  # room for the rims, voxels of 1 mm
    beyond = ((60, 60), (0, 60), (120, 0))  # room for chins, too
    origin = tuple(float(start - pad[0]) for start, pad in zip(source.affine[:3, 3], around, strict=True))

    def padded(part: object) -> np.ndarray:
        return np.pad(np.asarray(part.get_fdata(dtype=np.float32)), around)  # type: ignore[attr-defined]

    head = padded(source)
    brain = ndimage.binary_fill_holes(head > 0)
    away_mm = ndimage.distance_transform_edt(~brain)
    anterior_mm = (np.arange(head.shape[1]) + origin[1])[None, :, None]
    superior_mm = (np.arange(head.shape[2]) + origin[2])[None, None, :]
    head[(away_mm >= DARK_RIM_MM) & (away_mm <= BRIGHT_RIM_MM)] = 1.1 * np.percentile(head[brain], 60)
    vault = superior_mm > -25 + 0.25 * (anterior_mm + 20)  # above the orbits and the base, where skin lies all around
    looked_at = (away_mm <= DARK_RIM_MM / 2) | ((away_mm <= RIM_MM) & vault)

    face = np.pad(away_mm > FACE_MARGIN_MM, beyond, constant_values=True)
    face[:, : round(FRONT_MM - origin[1]) + 1] = False

    def made(part: np.ndarray) -> sitk.Image:
        return image(part.astype(np.uint8), (1, 1, 1), origin)

    whole = image(head, (1, 1, 1), origin)
    levels = []
    for step_mm in (4.0, 2.0):
        coarse = _coarse(whole, step_mm)
        levels.append((coarse, sitk.Resample(made(looked_at), coarse, sitk.Transform(), sitk.sitkNearestNeighbor)))
    return _Template(
        made(brain),
        made(brain & ((superior_mm > CEREBRUM_ABOVE_MM) | (anterior_mm > CEREBRUM_BEFORE_MM))),
        image(face.astype(np.uint8), (1, 1, 1), tuple(o - pad[0] for o, pad in zip(origin, beyond, strict=True))),
        made(padded(load_mni152_gm_template(resolution=1)) > 0.8),
        made(padded(load_mni152_wm_template(resolution=1)) > 0.9),
        (levels[0], levels[1]),
    )


def _register(template: _Template, volume: sitk.Image) -> sitk.AffineTransform:
    """The affine map from template to volume."""
    (head4, mask4), (head2, mask2) = template.levels
    volume4, volume2 = _coarse(volume, 4.0), _coarse(volume, 2.0)
    starts = sorted(
        ((_reached(mask4, head4, volume4, start), number, start) for number, start in _starts(volume4)),
        key=lambda start: start[:2],
    )
    refined = [_refine(head4, mask4, volume4, start, 1.0) for _, _, start in starts[:3]]
    _, best = min(refined, key=lambda found: found[0])
    return _refine(head2, mask2, volume2, best, 0.25)[1]


def _starts(volume4: sitk.Image) -> list[tuple[int, sitk.AffineTransform]]:
    """Places to begin: the template's vertex at the top of the head, moved, nodded and shrunk."""
    values = array(volume4)
    low, high = np.percentile(values, [2, 98])
    head = values > low + 0.15 * (high - low)
    levels = np.flatnonzero(head.sum(axis=(0, 1)) >= 20)  # 20 voxels of 4 mm: 3 cm2
    top = int(levels.max()) if len(levels) else head.shape[2] - 1
    upper = head[:, :, max(0, top - 30) : top + 1]
    right, anterior = (
        (float(np.nonzero(upper)[axis].mean()) if upper.any() else head.shape[axis] / 2) for axis in (0, 1)
    )
    vertex_mm = np.array(volume4.GetOrigin()) + 4.0 * np.array([right, anterior, top])
    starts = []
    for number, (raised_mm, nod_degrees, scale) in enumerate(
        itertools.product((-30, -20, -10, 0, 10, 20), (-20, -10, 0, 10, 20), (0.9, 1.0))
    ):
        cosine, sine = np.cos(np.radians(nod_degrees)), np.sin(np.radians(nod_degrees))
        start = sitk.AffineTransform(3)
        start.SetCenter(BRAIN_CENTRE_MM)
        start.SetMatrix((scale * np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])).ravel().tolist())
        start.SetTranslation((vertex_mm - np.array(VERTEX_MM) + np.array([0, 0, raised_mm])).tolist())
        starts.append((number, start))
    return starts


def _metric(mask: sitk.Image, start: sitk.AffineTransform, sampled: float = 1.0) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    if sampled < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampled, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(start, inPlace=True)
    return method


def _reached(mask: sitk.Image, head: sitk.Image, volume: sitk.Image, start: sitk.AffineTransform) -> float:
    """The metric at a place to begin; infinite where the two do not even touch."""
    try:
        return float(_metric(mask, start).MetricEvaluate(head, volume))
    except RuntimeError:
        return np.inf


def _refine(
    head: sitk.Image, mask: sitk.Image, volume: sitk.Image, start: sitk.AffineTransform, sampled: float
) -> tuple[float, sitk.AffineTransform]:
    """The metric reached (lower is better) and the map."""
    found = sitk.AffineTransform(start)
    method = _metric(mask, found, sampled)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsGradientDescent(1.0, 60, 1e-6, 10, method.Once)
    method.Execute(head, volume)
    return float(method.GetMetricValue()), found


def _coarse(fine: sitk.Image, step_mm: float) -> sitk.Image:
    """Smoothed and resampled to cubes."""
    spacing = np.array(fine.GetSpacing())
    size = np.maximum(1, np.round(np.array(fine.GetSize()) * spacing / step_mm)).astype(int)
    origin = np.array(fine.GetOrigin()) - spacing / 2 + step_mm / 2
    smooth = sitk.SmoothingRecursiveGaussian(fine, [step_mm / 2] * 3)
    return sitk.Resample(
        smooth, size.tolist(), sitk.Transform(), sitk.sitkLinear, origin.tolist(), [step_mm] * 3, fine.GetDirection()
    )
