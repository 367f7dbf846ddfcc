"""How alike drawn images are among themselves, less how alike patients are: a gap, by some likeness of two images.

Floor: the mean absolute gap between two halves of the patients.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from torch import Tensor

from server.metrics import similarity
from server.metrics.base import Drawn, Figure, Held, Metric, interval


class DiversityGap(Metric):
    """The gap by the likeness `alike`."""

    better, digits = "zero", 3

    def prepare(self, held: Held) -> None:
        """What `alike` needs."""

    @abstractmethod
    def alike(self, x_NHW: Tensor, pairs_K2: np.ndarray) -> np.ndarray:
        """Likeness, or distance, of each pair (K,) of images in [0, 1]."""

    def fit(self, held: Held) -> None:
        self.prepare(held)
        self.pairs_K2 = held.pairs_K2
        self.real_K = held.kept(self.name, lambda: self.alike(similarity.small(held), self.pairs_K2))
        gaps = [
            _weighted(self.real_K, self.pairs_K2, split.half_N) - _weighted(self.real_K, self.pairs_K2, ~split.half_N)
            for split in held.splits
        ]
        self.floor = float(np.abs(gaps).mean())

    def __call__(self, drawn: Drawn) -> Figure:
        drawn_K = self.alike(similarity.small_drawn(drawn), drawn.pairs_K2)
        spread = [
            _weighted(drawn_K, drawn.pairs_K2, v) - _weighted(self.real_K, self.pairs_K2, w) for w, v in drawn.resamples
        ]
        value = float(drawn_K.mean() - self.real_K.mean())
        return Figure(value, self.floor, *interval(value, spread))


def _weighted(alike_K: np.ndarray, pairs_K2: np.ndarray, weight_N: np.ndarray) -> float:
    """Mean likeness of pairs, each counted as often as its two ends are taken; the plain mean where none is."""
    weight_K = weight_N[pairs_K2[:, 0]] * weight_N[pairs_K2[:, 1]]
    return float(np.average(alike_K, weights=weight_K) if weight_K.any() else alike_K.mean())
