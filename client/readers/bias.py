"""Slow shading out of a brain: N4 (Tustison et al. 2010, https://doi.org/10.1109/TMI.2010.2046908).

Left out: shading outside the brain, which is zero by then.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813

from client.readers import template

WORKING_MM = 4.0  # the field is smooth: it is found on voxels of about this size
ROUNDS = [50, 50, 50]  # at each of three finenesses of the field


def correct(volume_RAS: np.ndarray, brain: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The volume divided by its shading inside `brain`, and exactly zero outside; both masks and volumes are RAS."""
    volume = template.image(np.where(brain, volume_RAS, 0).astype(np.float32), spacing_mm)
    mask = template.image((brain & (volume_RAS > 0)).astype(np.uint8), spacing_mm)
    shrink = [max(1, round(WORKING_MM / step)) for step in spacing_mm]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(ROUNDS)
    n4.Execute(sitk.Shrink(volume, shrink), sitk.Shrink(mask, shrink))
    shading = np.exp(template.array(n4.GetLogBiasFieldAsImage(volume)))
    return np.where(brain, template.array(volume) / shading, 0).astype(np.float32)
