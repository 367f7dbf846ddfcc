"""NN-PSNR to held-out: the mean over drawn images of the largest PSNR, in dB, to any held-out image."""

from __future__ import annotations

from torch import Tensor

from server.metrics import similarity
from server.metrics.nearest import Nearest


class NnPsnrToHeldOut(Nearest):
    name, digits, top = "NN-PSNR to held-out", 1, similarity.PSNR_TOP
    reading = "The same by PSNR, in dB. 60 is a copy; higher is not better."

    def score(self, a_NHW: Tensor, b_MHW: Tensor) -> Tensor:
        return similarity.psnr(a_NHW, b_MHW)
