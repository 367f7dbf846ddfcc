"""Where tensors live and in which precision: a GPU by itself where there is one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import torch

from shared.config.experiment import Performance
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
    """Autocast for forward and backward passes; clipping, noise and optimisers always run in float32 or wider.

    A processor that has no bfloat16 of its own takes tens of times as long over it: there float32 is used instead.
    """
    native = device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16" and native)


def check_memory(needed: int, device: torch.device) -> None:
    """Raise ConfigError when a training step of so many bytes (`GenerativeModel.training_bytes`) surely does not fit."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise ConfigError(
            f"a training step needs about {needed / 2**30:.1f} GiB on {device.type}, {free / 2**30:.1f} GiB are free; "
            "lower `training.slices`, `training.draws` or the size of the `model`"
        )
