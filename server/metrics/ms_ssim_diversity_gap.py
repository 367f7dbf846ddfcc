"""MS-SSIM diversity gap: above 0 drawn images are more alike than patients are (collapse), below 0 less alike (noise)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from server.metrics import similarity
from server.metrics.diversity import DiversityGap


class MsSsimDiversityGap(DiversityGap):
    name = "MS-SSIM diversity gap"
    reading = "Above 0: drawn images are more alike than patients are. Below 0: less alike. About 0 is right."

    def alike(self, x_NHW: Tensor, pairs_K2: np.ndarray) -> np.ndarray:
        return similarity.ms_ssim(x_NHW, x_NHW, pairs_K2)
