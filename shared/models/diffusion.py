"""Diffusion: the forward process, the loss, and three samplers: two fast ones and the slow one they are measured against.

Variance-preserving process with the cosine schedule (Nichol & Dhariwal 2021, eq. 17, https://arxiv.org/abs/2102.09672),
the network predicts the velocity v (Salimans & Ho 2022, appendix D, https://arxiv.org/abs/2202.00512). The schedule and
the samplers are those of diffusers. Everything here works on codes (codecs.py), whatever they are of.

Left out: learned variances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.models.base import Sampling
from shared.models.unet import Denoiser

TIMESTEPS = 1000
_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def alphas_cumprod() -> Tensor:
    """alpha-bar_t of the cosine schedule, (1000,) float32."""
    from diffusers import DDIMScheduler  # noqa: PLC0415 - settings are read without it

    values: Tensor = DDIMScheduler(**_SCHEDULE).alphas_cumprod
    return values


class Process:
    """The forward process on one device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        bar = alphas_cumprod().to(device)
        self.alpha, self.sigma = bar.sqrt(), (1 - bar).sqrt()

    def losses(
        self,
        denoiser: Denoiser,
        code_Bchw: Tensor,
        label_B: Tensor,
        z_BF: Tensor,
        *,
        noise: Callable[[], Tensor],
        condition_dropout: float,
        label_dropout: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Squared error of the velocity, (B,): E |v_theta(x_t) - v|^2 with v = alpha eps - sigma x (Salimans & Ho, eq. in app. D).

        The timesteps of the batch are stratified, which lowers the variance of one patient's gradient.

        noise               draws eps from the same generator, (B, c, h, w)
        condition_dropout   probability of hiding label and latent together, for guidance
        label_dropout       probability of hiding the label alone, so that "any" goes with a latent
        """
        b, device = len(code_Bchw), code_Bchw.device
        uniform = (torch.arange(b, device=device) + torch.rand(b, device=device, generator=rng)) / b
        t_B = (uniform[torch.randperm(b, device=device, generator=rng)] * TIMESTEPS).long().clamp_max(TIMESTEPS - 1)
        eps = noise()
        alpha, sigma = self.alpha[t_B].view(-1, 1, 1, 1), self.sigma[t_B].view(-1, 1, 1, 1)
        keep_B = torch.rand(b, device=device, generator=rng) >= condition_dropout
        if label_dropout > 0:
            alone_B = torch.rand(b, device=device, generator=rng) < label_dropout
            label_B = torch.where(alone_B, denoiser.any_label, label_B)
        v = denoiser(alpha * code_Bchw + sigma * eps, t_B, label_B, z_BF, keep_B)
        error_B: Tensor = (v.float() - (alpha * eps - sigma * code_Bchw)).square().mean(dim=(1, 2, 3))
        return error_B


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    code_Bchw: Tensor,
    label_B: Tensor,
    z_BF: Tensor,
    sampling: Sampling,
    rng: torch.Generator,
    *,
    bounded: bool,
) -> Tensor:
    """From standard normal codes to drawn ones; `bounded`: each step's guess is clipped to [-1, 1], as fits pixels."""
    b, device = len(code_Bchw), code_Bchw.device
    scheduler = _scheduler(sampling.sampler, bounded)
    scheduler.set_timesteps(sampling.steps)
    noise = {"generator": rng} if sampling.sampler == "ddpm" else {}
    keep = torch.ones(b, dtype=torch.bool, device=device)
    for t in scheduler.timesteps:
        t_B = t.to(device).expand(b)
        v = denoiser(code_Bchw, t_B, label_B, z_BF, keep)
        if sampling.guidance != 1.0:
            free = denoiser(code_Bchw, t_B, label_B, z_BF, ~keep)
            v = free + sampling.guidance * (v - free)
        code_Bchw = scheduler.step(v.float(), t, code_Bchw, **noise).prev_sample
    return code_Bchw


def _scheduler(sampler: str, bounded: bool) -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler  # noqa: PLC0415 - as above

    if sampler == "ddpm":
        return DDPMScheduler(**_SCHEDULE, timestep_spacing="trailing", variance_type="fixed_small", clip_sample=bounded)
    if sampler == "ddim":
        return DDIMScheduler(**_SCHEDULE, timestep_spacing="trailing", clip_sample=bounded)
    return DPMSolverMultistepScheduler(
        **_SCHEDULE, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
