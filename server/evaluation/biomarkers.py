"""Imaging biomarkers of a slice by thresholding, and whether drawn images have them as real patients do.

For skull-stripped axial T1 slices. They are named for what they are: areas of one slice, not volumes of a brain, and thresholds of
the slice's own histogram, not a segmentation.

brain                     Otsu's threshold (Otsu 1979), halved, so that dark fluid beside tissue stays; the largest piece, filled
CSF, grey, white fraction shares of the brain's pixels between two thresholds by Otsu's criterion for three classes
ventricle-to-brain ratio  CSF pixels that lie deep, at more than 0.35 of the brain's largest depth, over its area: ventricles
                          and other fluid of the middle, without the sulci at the surface
intensity                 all grey values inside the brain, 0 to 255, every image counting the same

KS          Kolmogorov and Smirnov's statistic for each class: the largest difference between two cumulative distributions,
            real and drawn; 0 is the same, 1 is disjoint
floor       the same between random halves of the real patients of that class. Halves are smaller, and KS grows as patients get
            fewer: it errs upwards
interval    95 %, by bootstrap over real patients and drawn images, as in `evaluate`

Refused     an image without brain-like foreground: it must be one piece of 5 to 90 % of the square that touches at most a quarter
            of its border. A head with its skull passes that and is measured wrongly; a silhouette cannot tell

Left out: volumes, which slices do not give; other contrasts than T1, where CSF is not dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from server.evaluation.heldout import Heldout
from server.metrics.base import Figure, interval
from shared.errors import DataError

SCALARS = ("ventricle-to-brain ratio", "CSF fraction", "grey fraction", "white fraction")
NAMES = (*SCALARS, "intensity")
DEPTH = 0.35  # of the brain's largest depth; what is nearer to the surface is sulci
LEVELS = 256
SPLITS = 100  # random halvings of a class' real patients behind each floor
FEWEST = 10  # drawn images of a class
_A, _B = (
    i[(a > 0) & (b < LEVELS)] for a, b in [np.triu_indices(LEVELS + 1, 1)] for i in (a, b)
)  # all pairs of thresholds


@dataclass(frozen=True)
class Marker(Figure):
    """KS of one biomarker in one class, and the medians of either side."""

    real: float
    synthetic: float


@dataclass(frozen=True)
class Biomarkers:
    """Class -> biomarker -> its KS. `real_refused`, `synthetic_refused`: images without brain-like foreground, left out."""

    markers: dict[str, dict[str, Marker]]
    real_refused: int
    synthetic_refused: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}


def biomarkers(
    heldout: Heldout,
    x_NHW: np.ndarray,
    label_N: np.ndarray,
    classes: Sequence[str],
    *,
    bootstrap: int,
    seed: int,
) -> Biomarkers:
    """Compare drawn images (N, H, W) uint8 with labels (N,) to held-out patients, class by class.

    DataError where fewer than half of the images of either side have a brain-like foreground, or where no class has two real
    patients and ten drawn images.
    """
    sides = [measure(heldout.x_NHW), measure(x_NHW)]
    for name, side in zip(("real", "synthetic"), sides, strict=True):
        if 2 * side.there_N.sum() < len(side.there_N):
            raise DataError(
                f"{int((~side.there_N).sum())} of {len(side.there_N)} {name} images show no brain-like foreground; biomarkers are "
                "measured on skull-stripped slices"
            )
    real, drawn = sides
    rng = np.random.default_rng(seed)
    markers, notes = {}, []
    for label, name in enumerate(classes):
        mine, theirs = real.there_N & (heldout.label_N == label), drawn.there_N & (label_N == label)
        patient_N = np.unique(heldout.patient_N[mine], return_inverse=True)[1]
        patients = int(patient_N.max()) + 1 if len(patient_N) else 0
        if patients < 2 or theirs.sum() < FEWEST:
            notes.append(
                f"Class {label + 1} has {patients} real patient(s) and {int(theirs.sum())} synthetic image(s) with "
                f"a brain; 2 and {FEWEST} are needed to compare its biomarkers."
            )
        else:
            markers[name] = _compared(real.of(mine), patient_N, drawn.of(theirs), bootstrap, rng)
    if not markers:
        raise DataError("no class has two real patients and ten synthetic images with a brain to compare")
    return Biomarkers(markers, int((~real.there_N).sum()), int((~drawn.there_N).sum()), tuple(notes))


@dataclass(frozen=True)
class Measures:
    """Of images: value_NK (N, 4) in the order of SCALARS, cumulative histograms cdf_NL (N, 256); there_N: has a brain."""

    value_NK: np.ndarray
    cdf_NL: np.ndarray
    there_N: np.ndarray

    def of(self, mask_N: np.ndarray) -> Measures:
        return Measures(self.value_NK[mask_N], self.cdf_NL[mask_N], self.there_N[mask_N])


def measure(x_NHW: np.ndarray) -> Measures:
    """Biomarkers of slices (N, H, W) uint8; an image without brain-like foreground has none, and says so."""
    n = len(x_NHW)
    value_NK, cdf_NL, there_N = np.full((n, len(SCALARS)), np.nan), np.full((n, LEVELS), np.nan), np.zeros(n, bool)
    for i, x_HW in enumerate(x_NHW):
        mask_HW = brain(x_HW)
        if mask_HW is None:
            continue
        counts_L = np.bincount(x_HW[mask_HW], minlength=LEVELS)
        low, high = thresholds(counts_L)
        area = counts_L.sum()
        depth_HW = ndimage.distance_transform_edt(np.pad(mask_HW, 1))[1:-1, 1:-1]
        deep_HW = mask_HW & (x_HW < low) & (depth_HW > DEPTH * depth_HW.max())
        fractions = counts_L[:low].sum(), counts_L[low:high].sum(), counts_L[high:].sum()
        value_NK[i] = np.array([deep_HW.sum(), *fractions]) / area
        cdf_NL[i] = np.cumsum(counts_L) / area
        there_N[i] = True
    return Measures(value_NK, cdf_NL, there_N)


def brain(x_HW: np.ndarray) -> np.ndarray | None:
    """The brain's pixels, ventricles and all, or none where there is no brain-like foreground."""
    counts_L = np.bincount(x_HW.ravel(), minlength=LEVELS)
    if (counts_L > 0).sum() < 4:  # a flat image, or one of drawn shapes
        return None
    pieces_HW, count = ndimage.label(x_HW > otsu(counts_L) / 2)
    sizes = np.bincount(pieces_HW.ravel(), minlength=2)[1:]
    if not count or sizes.max() < 0.9 * sizes.sum():
        return None
    mask_HW = np.asarray(ndimage.binary_fill_holes(pieces_HW == 1 + int(sizes.argmax())))
    border = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[1:-1, 0], mask_HW[1:-1, -1]])
    return mask_HW if 0.05 <= mask_HW.mean() <= 0.9 and border.mean() <= 0.25 else None


def otsu(counts_L: np.ndarray) -> int:
    """The grey value that splits a histogram (256,) in two with the largest variance between the parts."""
    below, total = np.cumsum(counts_L).astype(np.float64), np.cumsum(counts_L * np.arange(LEVELS))
    above = below[-1] - below
    apart = total / np.maximum(below, 1) - (total[-1] - total) / np.maximum(above, 1)
    return int(np.argmax(below * above * np.square(apart)))


def thresholds(counts_L: np.ndarray) -> tuple[int, int]:
    """The two that split a histogram in three by the same criterion: values below the first, below the second, the rest."""
    weight = np.concatenate([[0], np.cumsum(counts_L)]).astype(np.float64)
    total = np.concatenate([[0], np.cumsum(counts_L * np.arange(LEVELS))]).astype(np.float64)

    def part(start: Any, stop: Any) -> np.ndarray:
        return np.asarray(np.square(total[stop] - total[start]) / np.maximum(weight[stop] - weight[start], 1))

    best = int(np.argmax(part(0, _A) + part(_A, _B) + part(_B, LEVELS)))
    return int(_A[best]), int(_B[best])


def _compared(
    real: Measures, patient_N: np.ndarray, drawn: Measures, bootstrap: int, rng: np.random.Generator
) -> dict[str, Marker]:
    """Every biomarker of one class; `patient_N` whose each real image is."""
    patients, images = int(patient_N.max()) + 1, len(drawn.there_N)
    half_SP = [np.isin(np.arange(patients), rng.permutation(patients)[: patients // 2]) for _ in range(SPLITS)]
    draws = [
        (
            np.bincount(rng.integers(patients, size=patients), minlength=patients)[patient_N].astype(np.float64),
            np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64),
        )
        for _ in range(bootstrap)
    ]
    ones = np.ones(len(patient_N)), np.ones(images)
    found = {}
    for k, name in enumerate(NAMES):
        a, b = (
            (m.cdf_NL if name == "intensity" else _steps(m.value_NK[:, k], _grid(real, drawn, k)))
            for m in (real, drawn)
        )

        def ks(w: np.ndarray, v: np.ndarray, a: np.ndarray = a, b: np.ndarray = b) -> float:
            return float(np.abs(w @ a / w.sum() - v @ b / v.sum()).max())

        value = ks(*ones)
        low, high = interval(value, [ks(w, v) for w, v in draws])
        floor = np.mean([ks(h[patient_N] * 1.0, ~h[patient_N] * 1.0, a, a) for h in half_SP])
        middle = (
            [float(np.searchsorted(m.cdf_NL.mean(0), 0.5)) for m in (real, drawn)]
            if name == "intensity"
            else [float(np.median(m.value_NK[:, k])) for m in (real, drawn)]
        )
        found[name] = Marker(value, float(floor), min(value, max(low, 0.0)), max(value, min(high, 1.0)), *middle)
    return found


def _grid(real: Measures, drawn: Measures, k: int) -> np.ndarray:
    """Where either side's cumulative distribution of a scalar steps."""
    return np.unique(np.concatenate([real.value_NK[:, k], drawn.value_NK[:, k]]))


def _steps(value_N: np.ndarray, grid_G: np.ndarray) -> np.ndarray:
    """Each image's own cumulative distribution on the grid, (N, G): 0 below its value, 1 from it on."""
    return (value_N[:, None] <= grid_G[None, :]).astype(np.float64)
