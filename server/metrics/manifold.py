"""Precision, recall, density and coverage: do drawn images lie where real ones lie, and do they reach all of them?

Around each image of a set lies a ball whose radius is the distance to its k-th nearest neighbour in that set (k = 5).
precision   share of drawn images inside the ball of some real image          (Kynkaanniemi et al. 2019)
recall      share of real images inside the ball of some drawn image          (Kynkaanniemi et al. 2019)
density     real balls that a drawn image lies in, on average, over k; may pass 1   (Naeem et al. 2020, equation 4)
coverage    share of real balls that hold a drawn image                       (Naeem et al. 2020, equation 5)

All four fall as sets get smaller and rise with the number of images, and slices of one patient are each other's neighbours:
read them beside their floors only. Higher is better up to the floor. Balls stay as they are under the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from server.metrics.base import Drawn, Figure, Held, Metric, Split, interval
from server.metrics.features import efflite0

NEIGHBOURS = 5
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Manifold:
    """Who lies in whose ball.

    real_NM    drawn image j lies in the ball of real image i
    drawn_NM   real image i lies in the ball of drawn image j
    k          neighbours behind a radius, 5 or what the smaller set has
    """

    real_NM: Tensor
    drawn_NM: Tensor
    k: int

    def figures(self, weight_N: Tensor, weight_M: Tensor) -> tuple[float, float, float, float]:
        """Precision, recall, density, coverage where each image counts as often as its weight says; balls stay as they are."""
        w, v = weight_N.double(), weight_M.double()
        real, drawn = self.real_NM.double(), self.drawn_NM.double()
        hits_M, hits_N = w @ real, real @ v
        precision = (v * (hits_M > 0)).sum() / v.sum()
        recall = (w * (drawn @ v > 0)).sum() / w.sum()
        density = (v * hits_M).sum() / (self.k * v.sum()) * len(w) / w.sum()
        coverage = (w * (hits_N > 0)).sum() / w.sum()
        return float(precision), float(recall), float(density), float(coverage)


def manifold(real_NN: Tensor, cross_NM: Tensor, drawn_MM: Tensor) -> Manifold:
    """Balls from squared distances within the real set, between the sets, and within the drawn set; two images a set at least."""
    k = min(NEIGHBOURS, len(real_NN) - 1, len(drawn_MM) - 1)
    radius_N = real_NN.kthvalue(k + 1, dim=1).values  # the image itself is the nearest
    radius_M = drawn_MM.kthvalue(k + 1, dim=1).values
    return Manifold(cross_NM <= radius_N[:, None], cross_NM <= radius_M[None, :], k)


class ManifoldMetric(Metric):
    """One of the four, by its name. All four are computed together."""

    better, digits = "higher", 3
    top: ClassVar[float] = 1.0  # the largest value that there can be

    def fit(self, held: Held) -> None:
        self.space = efflite0(held)

        def four(split: Split) -> Sequence[float]:
            distance_NN = held.while_fitting("efflite0 distances", lambda: self.space.products().squared_distances()[0])
            i, j = (torch.from_numpy(np.flatnonzero(side)) for side in (split.reference_N, split.other_N))
            balls = manifold(distance_NN[i][:, i], distance_NN[i][:, j], distance_NN[j][:, j])
            return balls.figures(torch.ones(len(i)), torch.ones(len(j)))

        floors = held.mean_over_splits("efflite0 manifold floors", four)
        self.floor = float(floors[NAMES.index(self.name)])

    def __call__(self, drawn: Drawn) -> Figure:
        there = self.space.draw(drawn)

        def four() -> tuple[tuple[float, ...], np.ndarray]:
            balls = manifold(*there.products.squared_distances())
            values = balls.figures(torch.ones(len(there.real_Nd)), torch.ones(len(there.drawn_Md)))
            return values, np.array([balls.figures(w, v) for w, v in there.weights]).T

        values, spreads = drawn.once("efflite0 manifold", four)
        place = NAMES.index(self.name)
        value = values[place]
        low, high = interval(value, list(spreads[place]))
        return Figure(value, self.floor, min(value, max(low, 0.0)), min(high, self.top))
