"""Draw images from a model as the settings of an evaluation or a release say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.config import Evaluation, Performance, Release
from shared.device import precision
from shared.diffusion import sample
from shared.network import Model


def draw(
    model: Model,
    label_N: Tensor,
    settings: Evaluation | Release,
    performance: Performance,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Images (N, H, W) uint8 for the experiment's labels (N,). The same seed gives the same images (same machine, same batch)."""
    model.eval()
    with precision(performance, next(model.parameters()).device):
        x_N1HW = sample(
            model,
            label_N,
            rng=torch.Generator().manual_seed(seed),
            sampler=settings.sampler,
            steps=settings.sampler_steps,
            guidance=settings.guidance,
            batch=performance.sampling_batch,
            progress=progress,
        )
    images: NDArray[np.uint8] = ((x_N1HW[:, 0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return images
