"""FD-efflite0: the Frechet distance in the features of EfficientNet-Lite0, which come with the installation."""

from __future__ import annotations

from server.metrics.base import Held
from server.metrics.features import FrechetDistance, Space, efflite0


class FdEfflite0(FrechetDistance):
    name = "FD-efflite0"
    reading = "Distance to real images, EfficientNet-Lite0 features; not comparable with FID. Lower is nearer."

    def space_of(self, held: Held) -> Space:
        return efflite0(held)
