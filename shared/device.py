"""Where tensors live and in which precision: a GPU by itself where there is one."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from shared.config import Performance
from shared.errors import ConfigError


def device_for(settings: Performance) -> torch.device:
    """The device to use; ConfigError when "cuda" is asked for and absent. Also sets the number of threads."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("`performance.device` is cuda, but this machine has no usable CUDA GPU; use auto or cpu")
    if settings.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


def precision(settings: Performance, device: torch.device) -> AbstractContextManager[None]:
    """Autocast for forward and backward passes; clipping, noise and optimisers always run in float32 or wider."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")
