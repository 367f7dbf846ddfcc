"""Likeness of each drawn image to the most similar image of any held-out patient, on average, by some score of two images.

High is *not* good by itself: a copy has the best score. Floor: each held-out image against the images of all other patients.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from torch import Tensor

from server.metrics import similarity
from server.metrics.base import Drawn, Figure, Held, Metric, interval


class Nearest(Metric):
    """The mean of the best scores, by the score `score`, whose best is `top`."""

    better = "floor"
    top: ClassVar[float]

    @abstractmethod
    def score(self, a_NHW: Tensor, b_MHW: Tensor) -> Tensor:
        """Scores of all pairs (N, M) of images in [0, 1]."""

    def fit(self, held: Held) -> None:
        self.real_NHW, self.patient_N = similarity.small(held), held.patient_N
        self.first_P = np.unique(held.patient_N, return_index=True)[1]
        queries = min(held.samples, len(self.real_NHW))

        def floor() -> np.ndarray:
            chosen = np.linspace(0, len(self.real_NHW) - 1, queries).round().astype(int)
            nearest_QP = similarity.nearest(self.real_NHW[chosen], self.real_NHW, self.patient_N, self.score)
            nearest_QP[np.arange(queries), self.patient_N[chosen]] = -np.inf
            return np.asarray(nearest_QP.max(axis=1).mean())

        self.floor = float(held.kept(self.name, floor))

    def __call__(self, drawn: Drawn) -> Figure:
        nearest_NP = similarity.nearest(similarity.small_drawn(drawn), self.real_NHW, self.patient_N, self.score)
        value = float(nearest_NP.max(axis=1).mean())
        spread = [
            float(np.average(nearest_NP[:, w[self.first_P] > 0].max(axis=1), weights=v)) for w, v in drawn.resamples
        ]
        low, high = interval(value, spread)
        return Figure(value, self.floor, low, max(value, min(high, self.top)))
