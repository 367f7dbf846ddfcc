"""The denoiser, and the small encoder whose summaries condition it. Diffusion models share them.

Shapes: B batch, F latents, c x h x w a code (codecs.py), C x H x W an image in [-1, 1].

Left out: text conditions; attention anywhere but at the lowest resolution.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config.record import Record

Width = Annotated[int, Field(ge=1, le=4096)]


class UNet(Record):
    """Settings of the U-Net and its conditions.

    channels          at the resolutions of the code, of half of it, ...
    blocks_per_level  residual blocks at each of them
    latents           numbers that say what an image is like, as a condition
    encoder_channels  of the small network that finds them
    groups            of each group normalisation; every entry of `channels` is a multiple of it
    """

    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = (64, 128, 128)
    blocks_per_level: Annotated[int, Field(ge=1, le=16)] = 1
    latents: Width = 16
    encoder_channels: Width = 32
    groups: Width = 16


class Denoiser(nn.Module):
    """v-prediction U-Net (diffusers `UNet2DModel`): noised codes (B, c, h, w) and their conditions -> velocity of the same shape.

    code_channels, side   of a code
    labels                number of base labels; the label `labels` itself means "any"
    """

    def __init__(self, settings: Any, *, code_channels: int, side: int, labels: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel  # noqa: PLC0415 - settings are read without it

        channels = settings.channels
        depth = len(channels)
        width = channels[0] * 4
        self.any_label = labels
        self.unet = UNet2DModel(
            sample_size=side,
            in_channels=code_channels,
            out_channels=code_channels,
            block_out_channels=channels,
            layers_per_block=settings.blocks_per_level,
            down_block_types=("DownBlock2D",) * (depth - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
            norm_num_groups=settings.groups,
            attention_head_dim=min(32, channels[-1]),
            class_embed_type="identity",
        )
        self.label = nn.Embedding(labels + 1, width)
        self.latent = nn.Sequential(nn.Linear(settings.latents, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, code_Bchw: Tensor, t_B: Tensor, label_B: Tensor, z_BF: Tensor, keep_B: Tensor) -> Tensor:
        """Predict the velocity.

        t_B      timesteps 0..999, integer
        label_B  base labels, `any_label` for none
        keep_B   bool; False hides label and latent (classifier-free guidance, Ho & Salimans 2022)
        """
        label_B = torch.where(keep_B, label_B, self.any_label)
        condition = self.label(label_B) + self.latent(z_BF) * keep_B[:, None]
        v_Bchw: Tensor = self.unet(code_Bchw, t_B, class_labels=condition, return_dict=False)[0]
        return v_Bchw


class Encoder(nn.Module):
    """(B, C, H, W) images -> mean and log standard deviation of the latent, each (B, F)."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        c, g = settings.encoder_channels, min(8, settings.encoder_channels)
        layers: list[nn.Module] = []
        width, size = 4 * settings.image_channels, settings.image_size // 2
        for stage in range(4):
            out = c * min(2**stage, 4)
            stride = 2 if size > 4 else 1
            layers += [nn.Conv2d(width, out, 3, stride, 1), nn.GroupNorm(g, out), nn.SiLU()]
            width, size = out, size // stride
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4 if size >= 4 else size), nn.Flatten())
        self.head = nn.Linear(width * min(size, 4) ** 2, 2 * settings.latents)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.head(self.body(F.pixel_unshuffle(x_BCHW, 2))).chunk(2, -1)
        return mean, log_std.clamp(-6, 1)


def activation_bytes(settings: Any, side: int, images: int, bytes_each: int) -> int:
    """What a backward pass keeps of `images` codes: about 14 maps a residual block, at each resolution, down and up."""
    kept = 0
    for level, channels in enumerate(settings.channels):
        kept += 2 * 14 * settings.blocks_per_level * channels * (side >> level) ** 2
    return images * kept * bytes_each
