"""The public digital-phantom cohort: brains that belong to nobody.

One anatomy, the MNI152 tissue maps that come inside nilearn, is varied until it covers far more than any one hospital
shows: size and aspect, tilt, smooth warps, folding, ventricles, atrophy, lesions, tissue contrast, bias field, blur and
noise. Wide variation instead of realism in every image is the idea of domain randomisation (Billot et al. 2023,
"SynthSeg", https://doi.org/10.1016/j.media.2023.102789).

A `Phantom` is a record of numbers drawn once per patient; `render` turns it into axial slices. The heads have no face:
the maps are skull-stripped.

Left out: T2 and FLAIR contrasts, pathology other than white-matter lesions, anything but the supratentorial brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import nibabel
import numpy as np
import torch
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

CLASSES = ("healthy", "atrophy", "lesion")

# Corners of the anatomy in MNI millimetres (x right, y anterior, z superior), and the centre and half axes of the brain.
_LOW_MM = np.array([-80.0, -116.0, -74.0])
_HIGH_MM = np.array([80.0, 84.0, 94.0])
_CENTRE_MM = torch.tensor([0.0, -18.0, 10.0])
_HALF_MM = torch.tensor([70.0, 88.0, 70.0])


@dataclass(frozen=True)
class Look:
    """What one scanner does to all its images; hospitals differ by it.

    contrast   added to the grey-to-white contrast; noise: factor on the noise level; bias: factor on the bias field
    """

    contrast: float = 0.0
    noise: float = 1.0
    bias: float = 1.0


@dataclass(frozen=True)
class Phantom:
    """One made-up patient. Lengths in mm, angles in radians, intensities relative to the display white."""

    kind: str
    seed: int
    half_width: float
    half_height: float
    shift_mm: tuple[float, float]
    tilt_rad: tuple[float, float, float]
    lowest_mm: float
    span_mm: float
    warp_mm: float
    folding: float
    ventricles_mm: float
    atrophy: float
    lesions: int
    csf: float
    grey: float
    white: float
    residual: float
    gamma: float
    bias: float
    noise: float
    blur: float
    gain_jitter: float
    look: Look = field(default_factory=Look)


def draw(rng: np.random.Generator, kind: str, look: Look | None = None) -> Phantom:
    """Draw one patient of a class ("healthy", "atrophy" or "lesion") as seen by a scanner."""
    look = look or Look()
    aspect = rng.uniform(0.78, 1.0)  # width over height: from natural heads to images squeezed into a square
    half_height = rng.uniform(0.70, 0.90)
    white = rng.uniform(0.72, 0.97)
    grey = white * (rng.uniform(0.52, 0.78) - look.contrast)
    old = kind == "atrophy"
    return Phantom(
        kind=kind,
        seed=int(rng.integers(2**31)),
        half_width=half_height * aspect,
        half_height=half_height,
        shift_mm=(float(rng.normal(0, 2)), float(rng.normal(0, 3))),
        tilt_rad=(rng.uniform(-0.3, 0.3), float(rng.normal(0, 0.04)), float(rng.normal(0, 0.04))),
        lowest_mm=rng.uniform(-26, 4),
        span_mm=rng.uniform(30, 56),
        warp_mm=rng.uniform(1.5, 4.5),
        folding=rng.uniform(0.3, 1.3),
        ventricles_mm=float(rng.uniform(5, 13) if old else rng.uniform(-1, 8)),
        atrophy=float(rng.uniform(0.5, 1.8) if old else rng.uniform(-0.4, 1.0)),
        lesions=int(rng.integers(4, 14)) if kind == "lesion" else 0,
        csf=white * rng.uniform(0.06, 0.30),
        grey=grey,
        white=white,
        residual=rng.uniform(0.2, 1.2),
        gamma=float(np.exp(rng.normal(0, 0.12))),
        bias=rng.uniform(0.02, 0.12) * look.bias,
        noise=rng.uniform(0.003, 0.03) * look.noise,
        blur=rng.uniform(0.0, 0.6),
        gain_jitter=rng.uniform(0.0, 0.08),
        look=look,
    )


def render(phantom: Phantom, slices: int, size: int) -> NDArray[np.uint8]:
    """Axial slices (slices, size, size), inferior to superior, anterior at the top, the patient's right at the left."""
    torch_rng = torch.Generator().manual_seed(phantom.seed)
    levels_mm = torch.linspace(phantom.lowest_mm, phantom.lowest_mm + phantom.span_mm, slices)
    fine = 2 * size  # rendered at twice the size, so that averaging gives partial volumes
    p_SHW3 = _to_anatomy(phantom, levels_mm, fine)
    p_SHW3 = p_SHW3 + _smooth_noise(p_SHW3, (5, 6, 5), 3, torch_rng) * phantom.warp_mm
    p_SHW3 = p_SHW3 + _smooth_noise(p_SHW3, (14, 17, 14), 3, torch_rng) * 0.35 * phantom.warp_mm
    anatomy = _anatomy()
    pull = _sample(anatomy.ventricle_pull, p_SHW3)
    p_SHW3 = p_SHW3 + pull * phantom.ventricles_mm
    maps = _sample(anatomy.maps, p_SHW3)
    tissue, residual, mask = maps[..., :3], maps[..., 3], maps[..., 4]
    # Folding: the average brain has a blurred cortex; a random field decides which tissue wins where they compete.
    logits = (tissue.clamp(0, 1) + 0.02).log()
    logits = logits + _smooth_noise(p_SHW3, (34, 42, 36), 3, torch_rng) * phantom.folding * 0.9
    logits = logits + torch.tensor([1.0, 0.0, -0.2]) * phantom.atrophy
    tissue = (2.0 * logits).softmax(-1)
    image = tissue @ torch.tensor([phantom.csf, phantom.grey, phantom.white])
    image = image + phantom.residual * residual * tissue[..., 1:].sum(-1)
    if phantom.lesions:
        image = image + _lesions(phantom, p_SHW3, tissue, torch_rng)
    image = image.clamp_min(0) ** phantom.gamma
    image = image * (1 + phantom.bias * _smooth_noise(p_SHW3, (3, 3, 3), 1, torch_rng)[..., 0])
    edge = _smooth_noise(p_SHW3, (20, 24, 20), 1, torch_rng)[..., 0]
    image = image * torch.sigmoid((mask - 0.5 + 0.12 * edge) * 14)
    image = F.avg_pool2d(image[:, None], 2)
    if phantom.blur > 0.1:
        image = _blur(image, phantom.blur)
    gain = 1 + phantom.gain_jitter * torch.randn(len(image), 1, 1, 1, generator=torch_rng)
    noise = torch.randn(2, *image.shape, generator=torch_rng) * phantom.noise
    inside = (image > 0.04).float()
    image = ((image + noise[0] * inside).square() + (noise[1] * inside).square()).sqrt() * gain  # Rician
    return (image[:, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def cohort(
    rng: np.random.Generator,
    patients: int,
    slices: int,
    size: int,
    mix: Sequence[float] | None = None,
    look: Look | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Many patients at once: images (patients, slices, size, size) and labels (patients,) into CLASSES.

    mix   probability of each class; equal by default
    """
    labels = rng.choice(len(CLASSES), size=patients, p=mix)
    images = np.stack([render(draw(rng, CLASSES[label], look), slices, size) for label in labels])
    return images, labels.astype(np.int64)


@dataclass(frozen=True)
class _Anatomy:
    maps: Tensor  # (5, Z, Y, X): CSF, grey, white, T1 residual, brain mask
    ventricle_pull: Tensor  # (3, Z, Y, X): unit-scale displacement towards the nearest ventricle, mm per mm


@cache
def _anatomy() -> _Anatomy:
    grid = np.stack(
        np.meshgrid(*[np.arange(a, b + 1.0) for a, b in zip(_LOW_MM, _HIGH_MM, strict=True)], indexing="ij"), -1
    )

    def on_grid(image: nibabel.Nifti1Image) -> NDArray[np.float64]:
        to_voxel = np.linalg.inv(image.affine)
        voxels = grid @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        values: NDArray[np.float64] = ndimage.map_coordinates(
            np.asarray(image.get_fdata(), dtype=np.float32), np.moveaxis(voxels, -1, 0), order=1, mode="constant"
        )
        return values

    t1 = on_grid(load_mni152_template(resolution=1))
    grey = on_grid(load_mni152_gm_template(resolution=1)).clip(0, 1)
    white = on_grid(load_mni152_wm_template(resolution=1)).clip(0, 1)
    mask = ndimage.binary_fill_holes(
        ndimage.binary_opening((t1 > 0.12 * t1.max()) | (grey + white > 0.4), iterations=2)
    )
    csf = (1 - grey - white).clip(0, 1) * mask
    tissue = np.stack([csf, grey, white])
    weights = np.linalg.lstsq(tissue[:, mask].T, t1[mask], rcond=None)[0]
    residual = np.where(mask, t1 - np.tensordot(weights, tissue, 1), 0) / t1.max()
    x, y, z = np.moveaxis(grid, -1, 0)
    deep = (np.abs(x) < 34) & (y > -62) & (y < 38) & (z > -14) & (z < 34)
    near_surface = ndimage.distance_transform_edt(mask) < 16
    ventricle = ndimage.gaussian_filter((csf * deep * ~near_surface).astype(np.float32), 6.0)
    pull = np.stack(np.gradient(ventricle))
    pull /= np.percentile(np.linalg.norm(pull, axis=0), 99.9)
    maps = np.concatenate([tissue, residual[None], ndimage.gaussian_filter(mask.astype(np.float32), 0.7)[None]])
    return _Anatomy(_to_tensor(maps), _to_tensor(pull))


def _to_tensor(maps_CXYZ: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(maps_CXYZ.transpose(0, 3, 2, 1), dtype=np.float32))


def _to_anatomy(phantom: Phantom, levels_mm: Tensor, fine: int) -> Tensor:
    """MNI positions (slices, fine, fine, 3) of the image's pixels."""
    axis = torch.linspace(-1, 1, fine + 1)[:-1] + 1 / fine
    v, u = torch.meshgrid(-axis, axis, indexing="ij")  # row 0 is anterior
    plane = torch.stack([-u / phantom.half_width * _HALF_MM[0], v / phantom.half_height * _HALF_MM[1]], -1)
    plane = plane - torch.tensor(phantom.shift_mm)
    z = (levels_mm - _CENTRE_MM[2])[:, None, None].expand(-1, fine, fine)
    p = torch.cat([plane.expand(len(levels_mm), -1, -1, -1), z[..., None]], -1)
    rotation = torch.eye(3)
    for axis_index, angle in enumerate(phantom.tilt_rad):
        i, j = [k for k in range(3) if k != axis_index]
        turn = torch.eye(3)
        c, s = float(np.cos(angle)), float(np.sin(angle))
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
        rotation = rotation @ turn
    return p @ rotation.T + _CENTRE_MM


def _sample(maps_CZYX: Tensor, p_SHW3: Tensor) -> Tensor:
    """Trilinear values (S, H, W, C) of maps at positions in mm; zero outside."""
    low, high = torch.from_numpy(_LOW_MM).float(), torch.from_numpy(_HIGH_MM).float()
    grid = (2 * (p_SHW3 - low) / (high - low) - 1)[None]
    return F.grid_sample(maps_CZYX[None], grid, align_corners=True)[0].permute(1, 2, 3, 0)


def _smooth_noise(p_SHW3: Tensor, knots_XYZ: tuple[int, int, int], channels: int, rng: torch.Generator) -> Tensor:
    """A smooth random field (S, H, W, channels) of unit variance at its knots, spread over the anatomy's box."""
    nx, ny, nz = knots_XYZ
    knots = torch.randn(channels, nz, ny, nx, generator=rng)
    if nx <= 8:  # few knots: interpolate smoothly first, else the creases of a trilinear field show
        knots = F.interpolate(knots[None], scale_factor=4, mode="trilinear", align_corners=True)[0]
    return _sample(knots, p_SHW3)


def _lesions(phantom: Phantom, p_SHW3: Tensor, tissue: Tensor, rng: torch.Generator) -> Tensor:
    """Dark spots in white matter around the ventricles: T1 hypointensities."""
    spots = torch.zeros(p_SHW3.shape[:-1])
    for _ in range(phantom.lesions):
        side = 1.0 if torch.rand((), generator=rng) < 0.5 else -1.0
        r = torch.rand(3, generator=rng)
        centre = torch.stack([side * (14 + 24 * r[0]), -60 + 90 * r[1], phantom.lowest_mm + phantom.span_mm * r[2]])
        radius = 3.0 + 5.0 * torch.rand(3, generator=rng)
        spots = torch.maximum(spots, torch.exp(-(((p_SHW3 - centre) / radius) ** 2).sum(-1)))
    return -spots * tissue[..., 2] * (phantom.white - phantom.csf) * 0.75


def _blur(image_N1HW: Tensor, sigma_px: float) -> Tensor:
    x = torch.arange(-2, 3).float()
    kernel = torch.exp(-(x**2) / (2 * sigma_px**2))
    kernel = kernel / kernel.sum()
    return F.conv2d(
        F.conv2d(image_N1HW, kernel.view(1, 1, 1, 5), padding=(0, 2)), kernel.view(1, 1, 5, 1), padding=(2, 0)
    )
