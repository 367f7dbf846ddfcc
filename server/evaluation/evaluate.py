"""How near are drawn images to real patients that the model has not seen? One protocol for a federation's rounds and for any
two folders (see `compare`).

Which figures there are, the experiment says (`evaluation.metrics`); what each means, its file in server/metrics says. This file
gives all of them the same held-out images, halvings of their patients, resamples and pairs.

Left out: anything computed on the training patients, because that would be a release of its own. The held-out cohort
stands outside the privacy guarantee and must be one that may be evaluated in the open.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from server.evaluation.heldout import Heldout, Memo
from server.metrics import features, similarity
from server.metrics.base import METRICS, Description, Drawn, Figure, Held, Split
from shared.config.experiment import Evaluation
from shared.errors import DataError

__all__ = ["Evaluator", "Heldout"]

PROTOCOL = 1  # changes when a figure comes to mean something else; what was kept under another is not read
SPLITS = 100  # random halvings of the held-out patients behind each floor


class Evaluator:
    """Measures sets of drawn images against one held-out cohort. Features and floors are computed once, here.

    heldout    at least two patients, four images
    bootstrap  resamples behind each interval
    seed       of splits, pairs and resamples: the same images give the same figures
    metrics    names, in the order of the figures
    options    files of weights and switches ("inception_weights", "lpips_weights", "radiomics"); each adds its metric
    samples    drawn images per evaluation, for the size of the floors
    cache      folder that keeps features and floors between evaluations; it must be as private as the images

    DataError where the held-out images cannot serve, ConfigError for a metric that there is not, or that lacks its weights.
    """

    def __init__(
        self,
        heldout: Heldout,
        *,
        bootstrap: int,
        seed: int,
        metrics: Sequence[str] = Evaluation().metrics,
        options: dict[str, Path | bool | None] | None = None,
        samples: int = 240,
        cache: Path | None = None,
    ) -> None:
        heldout.check()
        given = {name: value for name, value in (options or {}).items() if value}
        added = [kind.name for kind in METRICS.kinds() if kind.option in given] if given else []
        kinds = [METRICS[name] for name in dict.fromkeys([*metrics, *added])]
        self.descriptions: dict[str, Description] = {kind.name: kind.described() for kind in kinds}
        self.heldout, self.bootstrap, self.seed = heldout, bootstrap, seed
        self._patient_N = np.unique(heldout.patient_N, return_inverse=True)[1]
        self.patients = int(self._patient_N.max()) + 1
        rng = np.random.default_rng(seed)
        larger = (self.patients + 1) // 2
        masks = [np.isin(self._patient_N, rng.permutation(self.patients)[:larger]) for _ in range(SPLITS)]
        splits = [_split(mask, samples, rng) for mask in masks]
        self.protocol: dict[str, Any] = {
            "heldout_patients": self.patients,
            "heldout_images": len(heldout.x_NHW),
            "floor_reference_images": round(float(np.mean([int(s.reference_N.sum()) for s in splits]))),
            "floor_other_images": round(float(np.mean([int(s.other_N.sum()) for s in splits]))),
            "floor_splits": SPLITS,
            "bootstrap": bootstrap,
            "interval": "95 %, over held-out patients and drawn images, percentiles shifted to the value",
            "ssim_pixels": min(heldout.x_NHW.shape[1], similarity.PIXELS),
        }
        self._held = Held(
            x_NHW=heldout.x_NHW,
            patient_N=self._patient_N,
            splits=splits,
            pairs_K2=similarity.pairs(self._patient_N, rng),
            samples=samples,
            seed=seed,
            options=given,
            keep=Memo(cache, f"{PROTOCOL} {heldout.sha256() if cache else ''} {seed} {samples}"),
        )
        self._metrics = [kind() for kind in kinds]
        for metric in self._metrics:
            metric.fit(self._held)
        self._held.fitted()

    def __call__(self, x_NHW: np.ndarray, patient_N: np.ndarray | None = None) -> dict[str, Figure]:
        """Figures of drawn images by name: (N, H, W) uint8, at least two, of the held-out size. DataError otherwise.

        patient_N   whose each drawn image is, where that is known (a second cohort of real patients); none: all independent
        """
        if x_NHW.dtype != np.uint8 or x_NHW.ndim != 3 or x_NHW.shape[1:] != self.heldout.x_NHW.shape[1:]:
            raise DataError(
                f"drawn images are {x_NHW.dtype} {x_NHW.shape[1:]}, held-out ones uint8 {self.heldout.x_NHW.shape[1:]}"
            )
        if len(x_NHW) < 2:
            raise DataError(f"{len(x_NHW)} drawn image(s); at least 2 are needed to evaluate")
        rng = np.random.default_rng(self.seed)
        group_N = np.arange(len(x_NHW)) if patient_N is None else np.unique(patient_N, return_inverse=True)[1]
        drawn = Drawn(
            x_MHW=x_NHW,
            resamples=list(zip(self._resamples(rng, self._patient_N), self._resamples(rng, group_N), strict=True)),
            pairs_K2=similarity.pairs(group_N if group_N.max() else np.arange(len(x_NHW)), rng),
        )
        return {metric.name: metric(drawn) for metric in self._metrics}

    @property
    def features(self) -> Tensor:
        """EfficientNet-Lite0 features of the held-out images, (N, 1280)."""
        return features.efflite0(self._held).real_Nd

    def _resamples(self, rng: np.random.Generator, group_N: np.ndarray) -> list[np.ndarray]:
        """How often each image (N,) is taken, `bootstrap` times; groups are taken whole, and two images at least."""
        images_P = np.bincount(group_N)

        def counts() -> np.ndarray:
            while True:
                taken_P = np.bincount(rng.integers(len(images_P), size=len(images_P)), minlength=len(images_P))
                if images_P[taken_P > 0].sum() > 1:
                    return np.asarray(taken_P[group_N], np.float64)

        return [counts() for _ in range(self.bootstrap)]


def _split(mask_N: np.ndarray, samples: int, rng: np.random.Generator) -> Split:
    """One patient-disjoint split as image weights: all images of the masked half, at most `samples` of the other."""
    kept_N = np.zeros(len(mask_N))
    kept_N[rng.permutation(np.flatnonzero(~mask_N))[:samples]] = 1.0
    if min(mask_N.sum(), kept_N.sum()) < 2:
        raise DataError(
            "a floor compares halves of the held-out patients, and one half has a single image; hold out more"
        )
    return Split(mask_N, mask_N.astype(np.float64), kept_N)
