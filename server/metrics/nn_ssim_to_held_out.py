"""NN-SSIM to held-out: the mean over drawn images of the largest SSIM to any held-out image."""

from __future__ import annotations

from torch import Tensor

from server.metrics import similarity
from server.metrics.nearest import Nearest


class NnSsimToHeldOut(Nearest):
    name, digits, top = "NN-SSIM to held-out", 3, 1.0
    reading = "Likeness to the nearest held-out image. 1 is a copy; higher is not better."

    def score(self, a_NHW: Tensor, b_MHW: Tensor) -> Tensor:
        return similarity.ssim(a_NHW, b_MHW)
