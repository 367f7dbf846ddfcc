"""Central evaluation: how near are drawn images to patients that no site has trained on?

Every figure stands beside a floor, what real images score against other patients' real images, and an interval.

FD, KID, FID             distances between features (see `features`); 0 is best, but unreachable at finite numbers: the
                         floor is the mean over random splits of the held-out patients in two halves, one as reference
                         with all its images, of the other as many as are drawn (fewer where it has fewer). Either side
                         holds half of the patients, and a Frechet distance grows as patients get fewer: its floor is
                         too high (on 120 real patients 20 where other real patients score 13). KID hardly moves.
MS-SSIM diversity gap    MS-SSIM of random pairs of drawn images minus that of pairs of different patients. Above 0 the
                         drawn images are more alike than patients are (collapse), below 0 less alike (noise). Floor:
                         the mean absolute gap between two halves of the patients.
NN-SSIM to held-out      mean over drawn images of the largest SSIM to any held-out image. 1 is copies; high is *not*
                         good by itself. Floor: each held-out image against the images of all other patients.

Interval: 95 %, by bootstrap over held-out patients (all their images together) and over drawn images. Resampling with
replacement repeats images and so moves a Frechet distance upwards; the percentiles are therefore shifted by the
difference between the value and the bootstrap's mean, and the interval always contains the value. It does not cover
the training's own randomness: that takes several runs.

Left out: anything computed on the training patients, because that would be a release of its own. The held-out cohort
stands outside the privacy guarantee and must be one that may be evaluated in the open.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server import features, similarity
from shared.errors import DataError

SPLITS = 100  # random halvings of the held-out patients behind each floor


@dataclass(frozen=True)
class Heldout:
    """Images of patients kept from every site, for evaluation only.

    x_NHW (N, H, W) uint8, square, at least 16 pixels wide · patient_N (N,) int, whose image · label_N (N,) int
    """

    x_NHW: np.ndarray
    patient_N: np.ndarray
    label_N: np.ndarray

    def save(self, path: Path) -> None:
        """Write as compressed NPZ; nothing in it needs pickle."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                x_NHW=self.x_NHW,
                patient_N=np.asarray(self.patient_N, np.int64),
                label_N=np.asarray(self.label_N, np.int64),
            )

    @staticmethod
    def load(path: Path) -> Heldout:
        """Read what `save` wrote. DataError where it is absent, damaged or holds anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Heldout(arrays["x_NHW"], arrays["patient_N"], arrays["label_N"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path.name} is not a file of held-out images; make it again") from error


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
    samples            drawn images per evaluation, for the size of the floors

    DataError where the held-out images cannot serve.
    """

    def __init__(
        self,
        heldout: Heldout,
        *,
        bootstrap: int,
        seed: int,
        inception_weights: Path | None = None,
        samples: int = 240,
    ) -> None:
        _check(heldout)
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

        self._networks: dict[str, torch.nn.Module] = {"efflite0": features.EfficientNetLite0()}
        if inception_weights is not None:
            self._networks["inception"] = features.inception(inception_weights)
        self._real: dict[str, Tensor] = {}
        self._floors: dict[str, float] = {}
        for name, network in self._networks.items():
            self._real[name] = features.extract(network, heldout.x_NHW)
            products = features.Products(self._real[name], self._real[name])
            self._floors[f"FD-{name}"] = float(np.mean([products.frechet(a, b) for a, b in halves]))
            self._floors[f"KID-{name}"] = float(np.mean([products.kernel(a, b) for a, b in halves]))

        self._small = similarity.shrink(heldout.x_NHW)
        self._pairs = similarity.pairs(self._patient_N, rng)
        self._alike = similarity.ms_ssim(self._small, self._small, self._pairs)
        gaps = [_weighted(self._alike, self._pairs, m) - _weighted(self._alike, self._pairs, ~m) for m in masks]
        self._floors["gap"] = float(np.abs(gaps).mean())
        self._floors["nearest"] = self._nearest_other_patient(min(samples, len(heldout.x_NHW)))

    def __call__(self, x_NHW: np.ndarray) -> dict[str, Figure]:
        """Figures of drawn images: (N, H, W) uint8, at least two, of the held-out size. DataError otherwise.

        Keys: "FD-efflite0", "KID-efflite0", "MS-SSIM diversity gap", "NN-SSIM to held-out", and "FID" with weights.
        """
        if x_NHW.dtype != np.uint8 or x_NHW.ndim != 3 or x_NHW.shape[1:] != self.heldout.x_NHW.shape[1:]:
            raise DataError(
                f"drawn images are {x_NHW.dtype} {x_NHW.shape[1:]}, held-out ones uint8 {self.heldout.x_NHW.shape[1:]}"
            )
        if len(x_NHW) < 2:
            raise DataError(f"{len(x_NHW)} drawn image(s); at least 2 are needed to evaluate")
        rng = np.random.default_rng(self.seed)
        draws = self._resamples(rng, len(x_NHW))

        figures: dict[str, Figure] = {}
        for name, network in self._networks.items():
            real, drawn = self._real[name], features.extract(network, x_NHW)
            products = features.Products(real, drawn)
            weights = [(torch.from_numpy(w[self._patient_N]), torch.from_numpy(v)) for w, v in draws]
            value = features.frechet(real, drawn)
            low, high = interval(value, [products.frechet(w, v) for w, v in weights])
            fd = "FID" if name == "inception" else f"FD-{name}"
            figures[fd] = Figure(value, self._floors[f"FD-{name}"], min(value, max(low, 0.0)), high)
            if name == "inception":
                continue
            value = features.kernel(real, drawn, self.seed)
            spread = [products.kernel(w, v) for w, v in weights]
            figures[f"KID-{name}"] = Figure(value, self._floors[f"KID-{name}"], *interval(value, spread))

        small = similarity.shrink(x_NHW)
        pairs = similarity.pairs(np.arange(len(x_NHW)), rng)
        alike = similarity.ms_ssim(small, small, pairs)
        spread = [
            _weighted(alike, pairs, v) - _weighted(self._alike, self._pairs, w[self._patient_N]) for w, v in draws
        ]
        value = float(alike.mean() - self._alike.mean())
        figures["MS-SSIM diversity gap"] = Figure(value, self._floors["gap"], *interval(value, spread))

        nearest_NP = similarity.nearest(small, self._small, self._patient_N)
        value = float(nearest_NP.max(axis=1).mean())
        spread = [float(np.average(nearest_NP[:, w > 0].max(axis=1), weights=v)) for w, v in draws]
        low, high = interval(value, spread)
        figures["NN-SSIM to held-out"] = Figure(value, self._floors["nearest"], low, max(value, min(high, 1.0)))
        return figures

    def _resamples(self, rng: np.random.Generator, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """How often each patient (P,) and each drawn image (n,) is taken, `bootstrap` times."""

        def counts(size: int, usable: Callable[[np.ndarray], bool]) -> np.ndarray:
            while True:
                taken = np.bincount(rng.integers(size, size=size), minlength=size).astype(np.float64)
                if usable(taken):
                    return taken

        images_P = np.bincount(self._patient_N)
        return [
            (
                counts(self.patients, lambda w: bool(images_P[w > 0].sum() > 1)),
                counts(n, lambda v: bool(np.count_nonzero(v) > 1)),
            )
            for _ in range(self.bootstrap)
        ]

    def _nearest_other_patient(self, queries: int) -> float:
        chosen = np.linspace(0, len(self._small) - 1, queries).round().astype(int)
        nearest_QP = similarity.nearest(self._small[chosen], self._small, self._patient_N)
        nearest_QP[np.arange(queries), self._patient_N[chosen]] = -1.0
        return float(nearest_QP.max(axis=1).mean())


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


def _check(heldout: Heldout) -> None:
    x, n = heldout.x_NHW, len(heldout.x_NHW)
    if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1] != x.shape[2] or x.shape[1] < 16:
        raise DataError(f"held-out images are {x.dtype} {x.shape}; they must be uint8 (N, H, H) with H of 16 or more")
    if heldout.patient_N.shape != (n,) or heldout.label_N.shape != (n,):
        raise DataError(f"{n} held-out images need as many patients and labels")
    patients = len(np.unique(heldout.patient_N))
    if patients < 2 or n < 4:
        raise DataError(
            f"{patients} held-out patient(s) with {n} image(s): floors and intervals compare patients, so hold out two or more"
        )
