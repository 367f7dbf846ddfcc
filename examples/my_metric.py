"""A metric of your own: how much brighter are drawn images than real ones?

Put this file beside your experiment and name it there:

    plugins: [my_metric.py]
    evaluation:
      metrics: [FD-efflite0, brightness gap]

`fedsynth evaluate REAL SYNTHETIC --plugin my_metric.py` measures it as well. To make it part of fedsynth, move the class into
server/metrics/brightness_gap.py: the file bears the name of the metric.
"""

from __future__ import annotations

import numpy as np

from server.metrics.base import Drawn, Figure, Held, Metric, interval


class BrightnessGap(Metric):
    name = "brightness gap"
    better = (
        "zero"  # where the best value is: "lower", "higher", "zero", or "floor": as real images score among themselves
    )
    digits = 1  # behind the point, wherever a figure is shown
    reading = "Mean grey, of 255, of drawn images less that of real ones. About 0 is right."

    def fit(self, held: Held) -> None:
        """Once, with the held-out images alone. Floor: what one half of the patients scores against the other half."""
        self.real_N = held.x_NHW.mean(axis=(1, 2))
        gaps = [self.gap(split.other_N, self.real_N, split.reference_N) for split in held.splits]
        self.floor = float(np.abs(gaps).mean())

    def __call__(self, drawn: Drawn) -> Figure:
        """For each set of drawn images. A resample says how often each held-out and each drawn image is taken."""
        drawn_M = drawn.x_MHW.mean(axis=(1, 2))
        value = float(drawn_M.mean() - self.real_N.mean())
        spread = [self.gap(v, drawn_M, w) for w, v in drawn.resamples]
        return Figure(value, self.floor, *interval(value, spread))

    def gap(self, weight_M: np.ndarray, grey_M: np.ndarray, weight_N: np.ndarray) -> float:
        return float(np.average(grey_M, weights=weight_M) - np.average(self.real_N, weights=weight_N))
