"""How near are drawn images to real patients that the model has not seen? One protocol for a federation's rounds and for any
two folders (see `compare`).

Every figure stands beside a floor, what real images score against other patients' real images, and an interval.

FD, KID, FID             distances between features (see `features`); 0 is best, but unreachable at finite numbers: the
                         floor is the mean over random splits of the held-out patients in two halves, one as reference
                         with all its images, of the other as many as are drawn (fewer where it has fewer). Either side
                         holds half of the patients, and a Frechet distance grows as patients get fewer: its floor is
                         too high (on 120 real patients 20 where other real patients score 13). KID hardly moves.
precision, recall,       whether drawn images lie where real ones do, and reach all of them (see `manifold`). Floor: the same
density, coverage        splits; higher is better up to the floor. Balls stay as they are under the bootstrap.
MS-SSIM diversity gap    MS-SSIM of random pairs of drawn images minus that of pairs of different patients. Above 0 the
                         drawn images are more alike than patients are (collapse), below 0 less alike (noise). Floor:
                         the mean absolute gap between two halves of the patients.
LPIPS diversity gap      the same with LPIPS, a distance: above 0 less alike than patients are. Only with its weights.
NN-SSIM, NN-PSNR         mean over drawn images of the largest SSIM, and PSNR, to any held-out image. 1 and 60 dB are copies;
to held-out              high is *not* good by itself. Floor: each held-out image against the images of all other patients.

Interval: 95 %, by bootstrap over held-out patients (all their images together) and over drawn images (all of one patient
together where it is known whose they are). Resampling with replacement repeats images and so moves a Frechet distance
upwards; the percentiles are therefore shifted by the difference between the value and the bootstrap's mean, and the interval
always contains the value. It does not cover the training's own randomness: that takes several runs.

Left out: anything computed on the training patients, because that would be a release of its own. The held-out cohort
stands outside the privacy guarantee and must be one that may be evaluated in the open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.evaluation import features, manifold, similarity
from server.evaluation.heldout import Heldout, Memo
from server.evaluation.lpips import Lpips
from shared.errors import DataError

__all__ = ["Evaluator", "Figure", "Heldout", "interval"]

PROTOCOL = 1  # changes when a figure comes to mean something else; what was kept under another is not read
SPLITS = 100  # random halvings of the held-out patients behind each floor
Resample = tuple[np.ndarray, np.ndarray]  # how often each held-out image (N,) and each drawn image (M,) is taken


@dataclass(frozen=True)
class Figure:
    """One measured number: its value, what real images score (floor), and a 95 % interval."""

    value: float
    floor: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class Evaluator:
    """Measures sets of drawn images against one held-out cohort. Features and floors are computed once, here.

    heldout            at least two patients, four images
    bootstrap          resamples behind each interval
    seed               of splits, pairs and resamples: the same images give the same figures
    inception_weights  the original FID weights; adds the figure "FID"
    lpips_weights      the original AlexNet weights; adds the figure "LPIPS diversity gap"
    samples            drawn images per evaluation, for the size of the floors
    cache              folder that keeps features and floors between evaluations; it must be as private as the images

    DataError where the held-out images cannot serve.
    """

    def __init__(
        self,
        heldout: Heldout,
        *,
        bootstrap: int,
        seed: int,
        inception_weights: Path | None = None,
        lpips_weights: Path | None = None,
        samples: int = 240,
        cache: Path | None = None,
    ) -> None:
        heldout.check()
        self.heldout, self.bootstrap, self.seed = heldout, bootstrap, seed
        self._patient_N = np.unique(heldout.patient_N, return_inverse=True)[1]
        self.patients = int(self._patient_N.max()) + 1
        rng = np.random.default_rng(seed)
        larger = (self.patients + 1) // 2
        masks = [np.isin(self._patient_N, rng.permutation(self.patients)[:larger]) for _ in range(SPLITS)]
        halves = [_weights(mask, samples, rng) for mask in masks]
        self.protocol: dict[str, Any] = {
            "heldout_patients": self.patients,
            "heldout_images": len(heldout.x_NHW),
            "floor_reference_images": round(float(np.mean([int(a.sum()) for a, _ in halves]))),
            "floor_other_images": round(float(np.mean([int(b.sum()) for _, b in halves]))),
            "floor_splits": SPLITS,
            "bootstrap": bootstrap,
            "interval": "95 %, over held-out patients and drawn images, percentiles shifted to the value",
            "ssim_pixels": min(heldout.x_NHW.shape[1], similarity.PIXELS),
        }
        memo = Memo(cache, f"{PROTOCOL} {heldout.sha256() if cache else ''} {seed} {samples}")

        networks: dict[str, torch.nn.Module] = {"efflite0": features.EfficientNetLite0()}
        if inception_weights is not None:
            networks["inception"] = features.inception(inception_weights)
        self._spaces = [_Space(name, network, heldout, halves, memo) for name, network in networks.items()]
        self._small = similarity.shrink(heldout.x_NHW)
        pairs = similarity.pairs(self._patient_N, rng)
        self._spreads = [_Spread("MS-SSIM diversity gap", similarity.ms_ssim, self._small, pairs, masks, memo)]
        if lpips_weights is not None:
            distance = Lpips(lpips_weights)
            self._spreads.append(_Spread("LPIPS diversity gap", distance, self._small, pairs, masks, memo))
        self._near = [
            _Near(f"{name} to held-out", score, top, self._small, self._patient_N, min(samples, len(self._small)), memo)
            for name, score, top in (
                ("NN-SSIM", similarity.ssim, 1.0),
                ("NN-PSNR", similarity.psnr, similarity.PSNR_TOP),
            )
        ]

    def __call__(self, x_NHW: np.ndarray, patient_N: np.ndarray | None = None) -> dict[str, Figure]:
        """Figures of drawn images: (N, H, W) uint8, at least two, of the held-out size. DataError otherwise.

        patient_N   whose each drawn image is, where that is known (a second cohort of real patients); none: all independent

        Keys: "FID" with weights, "FD-efflite0", "KID-efflite0", "MS-SSIM diversity gap", "NN-SSIM to held-out",
        "NN-PSNR to held-out", "precision", "recall", "density", "coverage", and "LPIPS diversity gap" with weights.
        """
        if x_NHW.dtype != np.uint8 or x_NHW.ndim != 3 or x_NHW.shape[1:] != self.heldout.x_NHW.shape[1:]:
            raise DataError(
                f"drawn images are {x_NHW.dtype} {x_NHW.shape[1:]}, held-out ones uint8 {self.heldout.x_NHW.shape[1:]}"
            )
        if len(x_NHW) < 2:
            raise DataError(f"{len(x_NHW)} drawn image(s); at least 2 are needed to evaluate")
        rng = np.random.default_rng(self.seed)
        group_N = np.arange(len(x_NHW)) if patient_N is None else np.unique(patient_N, return_inverse=True)[1]
        draws = list(zip(self._resamples(rng, self._patient_N), self._resamples(rng, group_N), strict=True))

        distances: dict[str, Figure] = {}
        manifolds: dict[str, Figure] = {}
        for space in self._spaces:
            fd, shape = space(x_NHW, draws, self.seed)
            distances |= fd
            manifolds |= shape
        small = similarity.shrink(x_NHW)
        pairs = similarity.pairs(group_N if group_N.max() else np.arange(len(x_NHW)), rng)
        spreads = [spread(small, pairs, draws) for spread in self._spreads]
        near = dict(measure(small, draws) for measure in self._near)
        return distances | dict(spreads[:1]) | near | manifolds | dict(spreads[1:])

    @property
    def features(self) -> Tensor:
        """EfficientNet-Lite0 features of the held-out images, (N, 1280)."""
        return self._spaces[0].real

    def _resamples(self, rng: np.random.Generator, group_N: np.ndarray) -> list[np.ndarray]:
        """How often each image (N,) is taken, `bootstrap` times; groups are taken whole, and two images at least."""
        images_P = np.bincount(group_N)

        def counts() -> np.ndarray:
            while True:
                taken_P = np.bincount(rng.integers(len(images_P), size=len(images_P)), minlength=len(images_P))
                if images_P[taken_P > 0].sum() > 1:
                    return np.asarray(taken_P[group_N], np.float64)

        return [counts() for _ in range(self.bootstrap)]


class _Space:
    """Distances and manifolds in the features of one network."""

    def __init__(
        self, name: str, network: torch.nn.Module, heldout: Heldout, halves: list[tuple[Tensor, Tensor]], memo: Memo
    ) -> None:
        self.name, self.network = name, network
        self.real = torch.from_numpy(memo(f"{name} features", lambda: features.extract(network, heldout.x_NHW).numpy()))

        def floors() -> np.ndarray:
            products = features.Products(self.real, self.real)
            distance_NN = products.squared_distances()[0]
            rows = []
            for a, b in halves:
                i, j = a.nonzero()[:, 0], b.nonzero()[:, 0]
                balls = manifold.manifold(distance_NN[i][:, i], distance_NN[i][:, j], distance_NN[j][:, j])
                ones = torch.ones(len(i)), torch.ones(len(j))
                rows.append([products.frechet(a, b), products.kernel(a, b), *balls.figures(*ones)])
            return np.asarray(np.mean(rows, axis=0))

        self.floors = [float(floor) for floor in memo(f"{name} floors", floors)]

    def __call__(
        self, x_NHW: np.ndarray, draws: list[Resample], seed: int
    ) -> tuple[dict[str, Figure], dict[str, Figure]]:
        drawn = features.extract(self.network, x_NHW)
        products = features.Products(self.real, drawn)
        weights = [(torch.from_numpy(w), torch.from_numpy(v)) for w, v in draws]
        value = features.frechet(self.real, drawn)
        low, high = interval(value, [products.frechet(w, v) for w, v in weights])
        fd = Figure(value, self.floors[0], min(value, max(low, 0.0)), high)
        if self.name == "inception":
            return {"FID": fd}, {}
        value = features.kernel(self.real, drawn, seed)
        kid = Figure(value, self.floors[1], *interval(value, [products.kernel(w, v) for w, v in weights]))

        balls = manifold.manifold(*products.squared_distances())
        values = balls.figures(torch.ones(len(self.real)), torch.ones(len(drawn)))
        spreads = np.array([balls.figures(w, v) for w, v in weights]).T
        shape = {}
        for name, value, floor, spread in zip(manifold.NAMES, values, self.floors[2:], spreads, strict=True):
            low, high = interval(value, list(spread))
            shape[name] = Figure(value, floor, min(value, max(low, 0.0)), high if name == "density" else min(high, 1.0))
        return {f"FD-{self.name}": fd, f"KID-{self.name}": kid}, shape


class _Spread:
    """How alike drawn images are among themselves, less how alike patients are; `alike` scores pairs."""

    def __init__(
        self,
        name: str,
        alike: Callable[[Tensor, Tensor, np.ndarray], np.ndarray],
        real_NHW: Tensor,
        pairs_K2: np.ndarray,
        masks: list[np.ndarray],
        memo: Memo,
    ) -> None:
        self.name, self.alike, self.pairs_K2 = name, alike, pairs_K2
        self.real_K = memo(name, lambda: alike(real_NHW, real_NHW, pairs_K2))
        gaps = [_weighted(self.real_K, pairs_K2, m) - _weighted(self.real_K, pairs_K2, ~m) for m in masks]
        self.floor = float(np.abs(gaps).mean())

    def __call__(self, drawn_NHW: Tensor, pairs_K2: np.ndarray, draws: list[Resample]) -> tuple[str, Figure]:
        drawn_K = self.alike(drawn_NHW, drawn_NHW, pairs_K2)
        spread = [_weighted(drawn_K, pairs_K2, v) - _weighted(self.real_K, self.pairs_K2, w) for w, v in draws]
        value = float(drawn_K.mean() - self.real_K.mean())
        return self.name, Figure(value, self.floor, *interval(value, spread))


class _Near:
    """Likeness of each drawn image to the most similar image of any held-out patient, by one score whose best is `top`."""

    def __init__(
        self,
        name: str,
        score: Callable[[Tensor, Tensor], Tensor],
        top: float,
        real_NHW: Tensor,
        patient_N: np.ndarray,
        queries: int,
        memo: Memo,
    ) -> None:
        self.name, self.score, self.top, self.real_NHW, self.patient_N = name, score, top, real_NHW, patient_N
        self.first_P = np.unique(patient_N, return_index=True)[1]

        def floor() -> np.ndarray:
            chosen = np.linspace(0, len(real_NHW) - 1, queries).round().astype(int)
            nearest_QP = similarity.nearest(real_NHW[chosen], real_NHW, patient_N, score)
            nearest_QP[np.arange(queries), patient_N[chosen]] = -np.inf
            return np.asarray(nearest_QP.max(axis=1).mean())

        self.floor = float(memo(name, floor))

    def __call__(self, drawn_NHW: Tensor, draws: list[Resample]) -> tuple[str, Figure]:
        nearest_NP = similarity.nearest(drawn_NHW, self.real_NHW, self.patient_N, self.score)
        value = float(nearest_NP.max(axis=1).mean())
        spread = [float(np.average(nearest_NP[:, w[self.first_P] > 0].max(axis=1), weights=v)) for w, v in draws]
        low, high = interval(value, spread)
        return self.name, Figure(value, self.floor, low, max(value, min(high, self.top)))


def interval(value: float, spread: list[float]) -> tuple[float, float]:
    """95 % percentile interval of a bootstrap, shifted so that the bootstrap's mean falls on the value; contains it."""
    low, high = np.quantile(spread, [0.025, 0.975]) + (value - float(np.mean(spread)))
    return min(value, float(low)), max(value, float(high))


def _weights(mask_N: np.ndarray, samples: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One patient-disjoint split as image weights: all images of the masked half, at most `samples` of the other."""
    kept_N = np.zeros(len(mask_N))
    kept_N[rng.permutation(np.flatnonzero(~mask_N))[:samples]] = 1.0
    if min(mask_N.sum(), kept_N.sum()) < 2:
        raise DataError(
            "a floor compares halves of the held-out patients, and one half has a single image; hold out more"
        )
    return torch.from_numpy(mask_N.astype(np.float64)), torch.from_numpy(kept_N)


def _weighted(alike_K: np.ndarray, pairs_K2: np.ndarray, weight_N: np.ndarray) -> float:
    """Mean likeness of pairs, each counted as often as its two ends are taken; the plain mean where none is."""
    weight_K = weight_N[pairs_K2[:, 0]] * weight_N[pairs_K2[:, 1]]
    return float(np.average(alike_K, weights=weight_K) if weight_K.any() else alike_K.mean())
