"""KID-efflite0: the kernel distance (Binkowski et al. 2018) in the features of EfficientNet-Lite0.

0 is best. Unlike a Frechet distance it hardly grows as images get fewer.
"""

from __future__ import annotations

from server.metrics.base import Drawn, Figure, Held, Metric, interval
from server.metrics.features import Products, efflite0, kernel


class KidEfflite0(Metric):
    name, better, digits, factor = "KID-efflite0", "lower", 1, 1000.0
    reading = "The same features, unbiased at small numbers, times 1000. Lower is nearer; about 0 is real."

    def fit(self, held: Held) -> None:
        self.space, self.seed = efflite0(held), held.seed
        self.floor = self.space.floor("KID", Products.kernel)

    def __call__(self, drawn: Drawn) -> Figure:
        there = self.space.draw(drawn)
        value = kernel(there.real_Nd, there.drawn_Md, self.seed)
        return Figure(value, self.floor, *interval(value, [there.products.kernel(w, v) for w, v in there.weights]))
