"""python -m simulations.benchmarks.dp_step [--size 64] [--patients 4]

One training step of the full U-Net, private against the same step without clipping and noise, in one process: time and peak
memory as ratios. The floor is the plain step: the same forward and backward passes, summed, one SGD step. Also shown: what a
user would pick instead, Opacus' per-sample hooks and its ghost clipping (a slice is their record, so their epsilon means
something else, and after attention their gradients and norms are wrong; see tests/privacy/test_sgd.py). Last line: how much
of the private step is spent on drawing the cryptographic noise.

Ratios are medians over rounds in which the variants take turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privacy.noise import SecureRandom
from privacy.sgd import PatientOptimizer, private_step
from shared.adapters.base import attach
from shared.models.diffusion import Process
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings

SLICES, DRAWS = 4, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, choices=(16, 32, 64, 128))
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    settings = PixelDiffusionSettings(image_size=options.size)
    patients = [torch.rand(SLICES, 1, options.size, options.size) * 2 - 1 for _ in range(options.patients)]
    noise = TimedNoise()
    variants: dict[str, Callable[[], None]] = {
        "plain (floor)": _ours(settings, patients, None),
        "per patient, private": _ours(settings, patients, noise),
        "Opacus hooks, per slice": _hooks(settings, patients),
        "Opacus ghost, per slice": _ghost(settings, patients),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    memory: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()  # warm up
    noise.seconds = 0.0
    for _ in range(options.rounds):
        for name, run in variants.items():
            before = _reset_peak()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            memory[name].append(_peak() - before)
    table = Table(
        title=f"{options.size} x {options.size}, {options.patients} patients x {SLICES} slices x {DRAWS} draws, CPU"
    )
    for column in ("step", "time, ratio", "working memory, ratio", "median s"):
        table.add_column(column)
    floor_s, floor_b = (statistics.median(kept["plain (floor)"]) for kept in (seconds, memory))
    for name in variants:
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["plain (floor)"], strict=True))
        table.add_row(
            name,
            f"{ratio:.2f}",
            f"{statistics.median(memory[name]) / floor_b:.2f}",
            f"{statistics.median(seconds[name]):.2f}",
        )
    Console().print(table)
    Console().print(f"floor: {floor_s:.2f} s, {floor_b / 2**20:.0f} MiB above the resting process")
    share = noise.seconds / sum(seconds["per patient, private"])
    Console().print(f"noise: {share:.1%} of the private step of {options.patients} patients; less with more patients")


def _losses(model: PixelDiffusion, process: Process, x_S1HW: Tensor) -> Tensor:
    """Of every draw of the slices, (S DRAWS,)."""
    x = x_S1HW.repeat_interleave(DRAWS, 0)
    label = torch.zeros(len(x), dtype=torch.long)
    shape, z = tuple(x.shape), torch.zeros(len(x), model.settings.latents)
    return process.losses(
        model.denoiser,
        model.codec.encode(x),
        label,
        z,
        noise=lambda: model.codec.noise(shape, None, x.device),
        condition_dropout=0.1,
    )


class TimedNoise(SecureRandom):
    """Keeps the seconds spent on drawing."""

    seconds = 0.0

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        start = time.perf_counter()
        drawn = super().gaussian(shape)
        self.seconds += time.perf_counter() - start
        return drawn


def _ours(settings: PixelDiffusionSettings, patients: list[Tensor], noise: SecureRandom | None) -> Callable[[], None]:
    """Our own step: private with a source of noise, else without clipping and noise."""
    model, process = PixelDiffusion(settings, ("a",)), Process()
    parameters = [p for p in attach(model, "full").values() if p.requires_grad]
    optimizer = PatientOptimizer(
        torch.optim.SGD(parameters, lr=1e-4),
        noise_multiplier=1.0 if noise else 0.0,
        max_grad_norm=1.0 if noise else None,
        sampling_rate=1.0,
        expected_patients=len(patients),
        noise=noise,
    )
    return lambda: void(
        private_step(lambda x: _losses(model, process, x).mean(), patients, optimizer, clipping="fixed")
    )


def _hooks(settings: PixelDiffusionSettings, patients: list[Tensor]) -> Callable[[], None]:
    """Per-sample gradients of all slices and draws at once, as Opacus keeps them; clipping and noise would come on top."""
    warnings.simplefilter("ignore")  # Opacus and torch warn about backward hooks on every step
    model, process = PixelDiffusion(settings, ("a",)), Process()
    attach(model, "full")
    model.denoiser = GradSampleModule(model.denoiser, strict=False)
    model.denoiser.any_label = 1

    def step() -> None:
        _losses(model, process, torch.cat(patients)).mean().backward()
        for p in model.parameters():
            p.grad = p.grad_sample = None  # type: ignore[attr-defined]

    return step


def _ghost(settings: PixelDiffusionSettings, patients: list[Tensor]) -> Callable[[], None]:
    """Norms without gradients, then a second backward pass of the weighted losses (Li et al. 2022, arXiv 2110.05679)."""
    model, process = PixelDiffusion(settings, ("a",)), Process()
    attach(model, "full")
    wrapped = GradSampleModuleFastGradientClipping(model.denoiser, strict=False, max_grad_norm=1.0)
    model.denoiser = wrapped
    model.denoiser.any_label = 1

    def step() -> None:
        losses = _losses(model, process, torch.cat(patients))
        losses.mean().backward(retain_graph=True)
        weight = wrapped.get_clipping_coef()
        for p in model.parameters():
            p.grad = None
        wrapped.disable_hooks()
        (losses * weight).mean().backward()
        wrapped.enable_hooks()
        for p in model.parameters():
            p.grad = p._norm_sample = None  # type: ignore[attr-defined]

    return step


def void(_: object) -> None:
    """Drop a result."""


def _reset_peak() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else freed memory of the last variant hides the use of this one
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
