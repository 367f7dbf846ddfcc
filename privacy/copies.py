"""Copy detection: are synthetic images nearer to patients who were trained on than to patients who were not?

Held-out patients are the control: a synthetic brain may well look like a real one, but it has no reason to look more like a
training patient than like a patient whom the model never saw (Stein et al. 2023, arXiv 2306.04675: without that control
memorisation cannot be told from a narrow cohort). Arrays in, a frozen record out; nothing is drawn or decided here.

    closer_share    share of synthetic images whose nearest neighbour is a training patient, training and held-out patients
                    equal in number; a tie counts half. Without copying 0.5
    near_train      share of synthetic images nearer to a training patient than `tau`, the 0.1 % quantile of the distances of
    near_heldout    held-out images to their nearest training image; and the same towards held-out patients. Equal numbers
    copies          pairs, pixel against pixel, with correlation 0.99 or more, or SSIM 0.98 or more inside the brain

Distances are Euclidean between features: `pixels` (built in: averaged to 32 x 32, so that noise averages out, centred and of
unit norm, so that brightness and contrast do not matter), or those of any network. Mirrored copies are searched too.

Interval: 95 %, bootstrap over synthetic images and over reference patients (all their images together). A resample leaves out
a third of the patients, copied ones too, so the lower end is cautious: about 0.6 when every single image is a copy.
Condition: both groups went through the same preparation and have about as many images each; who has more is nearest more often.

Left out: copies that were rotated, cropped or locally changed (give features that ignore that), extraction by cliques.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from shared.errors import PrivacyError

SIDE = 32  # pixels compare images of this width, at most
TAU = 0.001
SPLITS = 200  # random choices of equally many patients
CORRELATION, SSIM = 0.99, 0.98
BRAIN = 24  # of 255: what is brighter belongs to the brain
CHUNK = 2048

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Images of some patients as features (N, d), and whose each one is, (N,)."""

    feature_Nd: Floats
    patient_N: NDArray[np.int64]


@dataclass(frozen=True)
class Nearness:
    """See the top of this file. `tau` is a distance; `patients`: of each group that are compared at a time."""

    images: int
    patients: int
    closer_share: float
    low: float
    high: float
    tau: float
    near_train: float
    near_heldout: float


@dataclass(frozen=True)
class Pair:
    """One synthetic image and the training image most like it, by index; `mirrored`: left and right exchanged."""

    synthetic: int
    train: int
    mirrored: bool
    correlation: float
    ssim: float

    @property
    def copy(self) -> bool:
        return self.correlation >= CORRELATION or self.ssim >= SSIM


@dataclass(frozen=True)
class Copies:
    """How many of the synthetic images are copies, and the pairs most alike, worst first."""

    images: int
    copies: int
    worst: tuple[Pair, ...]


def pixels(x_NHW: NDArray[np.uint8]) -> Floats:
    """(N, H, H) uint8 -> features (N, d), at most 32 x 32: averaged, centred, unit norm. |a - b|^2 = 2 - 2 correlation."""
    n, height, width = x_NHW.shape
    if x_NHW.dtype != np.uint8 or height != width:
        raise PrivacyError(f"images are {x_NHW.dtype} {x_NHW.shape}; copy detection takes uint8 (N, H, H)")
    side = max(s for s in range(1, min(SIDE, height) + 1) if height % s == 0)
    block = height // side
    small = x_NHW.reshape(n, side, block, side, block).mean((2, 4)).reshape(n, -1)
    small -= small.mean(1, keepdims=True)
    return np.asarray(small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-12))


def nearness(
    synthetic_Sd: Floats,
    train: Group,
    heldout: Group,
    *,
    mirrored_Sd: Floats | None = None,
    bootstrap: int = 500,
    seed: int = 0,
) -> Nearness:
    """Compare nearest training patients with nearest held-out ones. See the top of this file.

    synthetic_Sd   features of the synthetic images, made as those of both groups
    mirrored_Sd    features of the same images, mirrored; an image is as near as the nearer of its two versions

    Raises PrivacyError without synthetic images, or with fewer than 2 patients in a group.
    """
    rng = np.random.default_rng(seed)
    versions = [synthetic_Sd] if mirrored_Sd is None else [synthetic_Sd, mirrored_Sd]
    near_SP, near_SQ = (distances(versions, group) for group in (train, heldout))
    synthetic, (p, q) = len(synthetic_Sd), (near_SP.shape[1], near_SQ.shape[1])
    if synthetic == 0 or min(p, q) < 2:
        raise PrivacyError(f"{synthetic} synthetic images, {p} training and {q} held-out patients; 1, 2 and 2 at least")
    k = min(p, q)
    tau = float(np.quantile(distances([heldout.feature_Nd], train).min(1), TAU))

    def shares(a_Sk: Floats, b_Sk: Floats) -> Floats:
        a_S, b_S = a_Sk.min(1), b_Sk.min(1)
        return np.array([(a_S < b_S).mean() + (a_S == b_S).mean() / 2, (a_S < tau).mean(), (b_S < tau).mean()])

    splits = 1 if p == q else SPLITS
    value, near_train, near_heldout = np.mean(
        [
            shares(near_SP[:, rng.permutation(p)[:k]], near_SQ[:, rng.permutation(q)[:k]])
            for _ in range(splits)
        ],
        axis=0,
    )  # fmt: skip
    spread = []
    for _ in range(bootstrap):
        rows = rng.integers(synthetic, size=synthetic)
        a, b = near_SP[:, rng.integers(p, size=k)], near_SQ[:, rng.integers(q, size=k)]
        spread.append(shares(a[rows], b[rows])[0])
    low, high = np.quantile(spread, [0.025, 0.975])
    ends = min(float(low), float(value)), max(float(high), float(value))
    return Nearness(synthetic, k, float(value), *ends, tau, float(near_train), float(near_heldout))


def distances(versions: list[Floats], group: Group) -> Floats:
    """Distance of each image, in its nearest version, to the nearest image of each patient: (N, P)."""
    if len(group.feature_Nd) != len(group.patient_N) or len(group.patient_N) == 0:
        raise PrivacyError(
            f"{len(group.feature_Nd)} reference images and {len(group.patient_N)} patients: give one each"
        )
    order = np.argsort(group.patient_N, kind="stable")
    first = np.unique(group.patient_N[order], return_index=True)[1]
    sorted_Nd = group.feature_Nd[order]
    squares_N = np.square(sorted_Nd).sum(1)
    parts = []
    for start in range(0, len(versions[0]), CHUNK):
        best: Floats | None = None
        for version in versions:
            x_Bd = version[start : start + CHUNK]
            squared_BN = np.square(x_Bd).sum(1)[:, None] + squares_N - 2 * x_Bd @ sorted_Nd.T
            found = np.minimum.reduceat(squared_BN, first, axis=1)
            best = found if best is None else np.minimum(best, found)
        assert best is not None
        parts.append(np.sqrt(np.maximum(best, 0.0)))
    return np.concatenate(parts) if parts else np.empty((0, len(first)))


def find(
    synthetic_SHW: NDArray[np.uint8], train_NHW: NDArray[np.uint8], *, candidates: int = 3, keep: int = 10
) -> Copies:
    """Look for copies, as they are and mirrored. Every pair is correlated; SSIM is taken of the best of each image.

    candidates   training images for each synthetic one, most correlated first, whose SSIM is taken
    keep         pairs that are reported, however alike they are
    """
    if synthetic_SHW.shape[1:] != train_NHW.shape[1:]:
        raise PrivacyError(f"synthetic images are {synthetic_SHW.shape[1:]}, training images {train_NHW.shape[1:]}")
    reference = pixels(train_NHW)
    pairs: list[Pair] = []
    for start in range(0, len(synthetic_SHW), CHUNK):
        x_BHW = synthetic_SHW[start : start + CHUNK]
        both = [x_BHW, x_BHW[:, :, ::-1]]
        correlation_BVN = np.stack([pixels(np.ascontiguousarray(v)) @ reference.T for v in both], axis=1)
        flat = correlation_BVN.reshape(len(x_BHW), -1)
        best = np.argsort(-flat, axis=1)[:, :candidates]
        for b in range(len(x_BHW)):
            found = []
            for index in best[b]:
                side, n = divmod(int(index), len(train_NHW))
                alike = ssim(both[side][b], train_NHW[n])
                found.append(Pair(start + b, n, bool(side), float(flat[b, index]), alike))
            pairs.append(max(found, key=lambda pair: max(pair.correlation / CORRELATION, pair.ssim / SSIM)))
    pairs.sort(key=lambda pair: -max(pair.correlation / CORRELATION, pair.ssim / SSIM))
    return Copies(len(synthetic_SHW), sum(pair.copy for pair in pairs), tuple(pairs[:keep]))


def ssim(a_HW: NDArray[np.uint8], b_HW: NDArray[np.uint8]) -> float:
    """SSIM (Wang et al. 2004, equation 13, Gaussian window of 1.5 pixels), mean where either image shows brain."""
    a, b = a_HW / 255.0, b_HW / 255.0
    mask = (a_HW > BRAIN) | (b_HW > BRAIN)
    if not mask.any():
        return 1.0  # two empty images

    def smooth(x: Floats) -> Floats:
        return np.asarray(gaussian_filter(x, 1.5, truncate=3.5))

    mu_a, mu_b = smooth(a), smooth(b)
    var_a, var_b, cov = smooth(a * a) - mu_a**2, smooth(b * b) - mu_b**2, smooth(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return float(value[mask].mean())
