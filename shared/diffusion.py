"""Diffusion: the forward process, the loss, and three samplers: two fast ones and the slow one they are measured against.

Variance-preserving process with the cosine schedule (Nichol & Dhariwal 2021, eq. 17, https://arxiv.org/abs/2102.09672),
the network predicts the velocity v (Salimans & Ho 2022, appendix D, https://arxiv.org/abs/2202.00512). The schedule and
the samplers are those of diffusers.

Left out: learned variances.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from shared.config.experiment import Sampler
from shared.network import Denoiser, Model

TIMESTEPS = 1000
_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def alphas_cumprod() -> Tensor:
    """alpha-bar_t of the cosine schedule, (1000,) float32."""
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
        x_B1HW: Tensor,
        label_B: Tensor,
        z_BF: Tensor,
        *,
        condition_dropout: float,
        label_dropout: float = 0.0,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Squared error of the velocity, (B,): E |v_theta(x_t) - v|^2 with v = alpha eps - sigma x (Salimans & Ho, eq. in app. D).

        The timesteps of the batch are stratified, which lowers the variance of one patient's gradient.

        condition_dropout   probability of hiding label and latent together, for guidance
        label_dropout       probability of hiding the label alone, so that "any" goes with a latent
        """
        b, device = len(x_B1HW), x_B1HW.device
        uniform = (torch.arange(b, device=device) + torch.rand(b, device=device, generator=rng)) / b
        t_B = (uniform[torch.randperm(b, device=device, generator=rng)] * TIMESTEPS).long().clamp_max(TIMESTEPS - 1)
        noise = torch.randn(x_B1HW.shape, device=device, generator=rng)
        alpha, sigma = self.alpha[t_B].view(-1, 1, 1, 1), self.sigma[t_B].view(-1, 1, 1, 1)
        keep_B = torch.rand(b, device=device, generator=rng) >= condition_dropout
        if label_dropout > 0:
            alone_B = torch.rand(b, device=device, generator=rng) < label_dropout
            label_B = torch.where(alone_B, denoiser.any_label, label_B)
        v = denoiser(alpha * x_B1HW + sigma * noise, t_B, label_B, z_BF, keep_B)
        error_B: Tensor = (v.float() - (alpha * noise - sigma * x_B1HW)).square().mean(dim=(1, 2, 3))
        return error_B


@torch.no_grad()
def sample(
    model: Model,
    label_N: Tensor,
    *,
    rng: torch.Generator,
    sampler: Sampler,
    steps: int,
    guidance: float = 1.0,
    batch: int = 120,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw images (N, 1, H, W) in [-1, 1] for the experiment's labels (N,), -1 for any class, in the model's appearance.

    sampler   "ddim" (Song et al. 2021, eq. 12), "dpm++" (Lu et al. 2022, DPM-Solver++ 2M), or "ddpm", ancestral sampling (Ho et
              al. 2020, algorithm 2, with its smaller variance), which is meant for 1,000 steps
    steps     network calls per image (twice that where guidance is not 1)
    guidance  1: conditional samples; larger: v_any + guidance (v_class - v_any) (Ho & Salimans 2022, eq. 6)
    """
    device = next(model.parameters()).device
    size = model.settings.image_size
    images = []
    for start in range(0, len(label_N), batch):
        label_B = label_N[start : start + batch].to(device)
        b = len(label_B)
        u_B = torch.rand(b, generator=rng) * 2 - 1
        z_BF = (
            model.prior.sample(label_B.cpu(), u_B, rng)
            if device.type == "cpu"
            else (model.prior.sample(label_B, u_B.to(device), rng))
        )
        x = torch.randn(b, 1, size, size, generator=rng).to(device)
        scheduler = _scheduler(sampler)
        scheduler.set_timesteps(steps)
        noise = {"generator": rng} if sampler == "ddpm" else {}
        keep = torch.ones(b, dtype=torch.bool, device=device)
        base_label_B = model.base_label(label_B)
        for t in scheduler.timesteps:
            t_B = t.to(device).expand(b)
            v = model.denoiser(x, t_B, base_label_B, z_BF, keep)
            if guidance != 1.0:
                free = model.denoiser(x, t_B, base_label_B, z_BF, ~keep)
                v = free + guidance * (v - free)
            x = scheduler.step(v.float(), t, x, **noise).prev_sample
        images.append(x.clamp(-1, 1).cpu())
        if progress:
            progress(start + b, len(label_N))
    if not images:
        return torch.empty(0, 1, size, size)
    return model.appearance.cpu().give(torch.cat(images), label_N.cpu())


def _scheduler(sampler: Sampler) -> Any:
    if sampler == "ddpm":
        return DDPMScheduler(**_SCHEDULE, timestep_spacing="trailing", variance_type="fixed_small", clip_sample=True)
    if sampler == "ddim":
        return DDIMScheduler(**_SCHEDULE, timestep_spacing="trailing", clip_sample=True)
    return DPMSolverMultistepScheduler(
        **_SCHEDULE, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
