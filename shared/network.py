"""The network: a U-Net that denoises, a small encoder, a prior over latents, and an appearance.

The U-Net (diffusers `UNet2DModel`) works on `pixel_unshuffle`d images, a quarter of the positions and four channels.
It is conditioned on a class label and on a latent z, the encoder's summary of an image (size, level, contrast,
ventricles, ...), as in a diffusion autoencoder (Preechakul et al. 2022, https://arxiv.org/abs/2111.15640). Trained on public
phantoms, U-Net and encoder span anatomy. How a hospital frames and tones its images is a few dozen numbers (the appearance),
few enough to survive the noise of differential privacy with a hundred patients.

    trainable = "adapter"   the appearance alone
    trainable = "full"      appearance, prior, and the U-Net with its conditions

Shapes: B batch, S slices, F latents, C classes, H = W = image_size. Images are in [-1, 1].

Left out: latent diffusion (a VAE before the U-Net), EMA (see training), text conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from shared.appearance import Appearance
from shared.config.experiment import Network
from shared.prior import Prior

Trainable = Literal["adapter", "full"]


class Denoiser(nn.Module):
    """v-prediction U-Net: (B, 1, H, W) noised images and their conditions -> (B, 1, H, W) velocity.

    labels   number of base labels; the label `labels` itself means "any"
    """

    def __init__(self, settings: Network, labels: int) -> None:
        super().__init__()
        channels = settings.channels
        depth = len(channels)
        width = channels[0] * 4
        self.any_label = labels
        self.unet = UNet2DModel(
            sample_size=settings.image_size // 2,
            in_channels=4,
            out_channels=4,
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

    def forward(self, x_B1HW: Tensor, t_B: Tensor, label_B: Tensor, z_BF: Tensor, keep_B: Tensor) -> Tensor:
        """Predict the velocity.

        t_B      timesteps 0..999, integer
        label_B  base labels, `any_label` for none
        keep_B   bool; False hides label and latent (classifier-free guidance, Ho & Salimans 2022)
        """
        label_B = torch.where(keep_B, label_B, self.any_label)
        condition = self.label(label_B) + self.latent(z_BF) * keep_B[:, None]
        x_B4hw = F.pixel_unshuffle(x_B1HW, 2)
        v_B4hw = self.unet(x_B4hw, t_B, class_labels=condition, return_dict=False)[0]
        return F.pixel_shuffle(v_B4hw, 2)


class Encoder(nn.Module):
    """(B, 1, H, W) -> mean and log standard deviation of the latent, each (B, F)."""

    def __init__(self, settings: Network) -> None:
        super().__init__()
        c, g = settings.encoder_channels, min(8, settings.encoder_channels)
        layers: list[nn.Module] = []
        width, size = 4, settings.image_size // 2
        for stage in range(4):
            out = c * min(2**stage, 4)
            stride = 2 if size > 4 else 1
            layers += [nn.Conv2d(width, out, 3, stride, 1), nn.GroupNorm(g, out), nn.SiLU()]
            width, size = out, size // stride
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4 if size >= 4 else size), nn.Flatten())
        self.head = nn.Linear(width * min(size, 4) ** 2, 2 * settings.latents)

    def forward(self, x_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.head(self.body(F.pixel_unshuffle(x_B1HW, 2))).chunk(2, -1)
        return mean, log_std.clamp(-6, 1)


class Model(nn.Module):
    """Everything that a checkpoint holds: denoiser, encoder, prior, appearance."""

    def __init__(self, settings: Network, base_labels: tuple[str, ...], classes: dict[str, str] | None = None) -> None:
        """Random weights.

        base_labels   what the labels of the base mean, in order
        classes       the experiment's classes, each mapped to a base label or "any"; none: the base labels themselves
        """
        super().__init__()
        self.settings = settings
        self.base_labels = base_labels
        self.classes = tuple(classes or base_labels)
        mapped = (classes or {name: name for name in base_labels}).values()
        self.to_base = [base_labels.index(name) if name in base_labels else len(base_labels) for name in mapped]
        self.denoiser = Denoiser(settings, len(base_labels))
        self.encoder = Encoder(settings)
        self.prior = Prior(settings.latents, len(self.classes))
        self.appearance = Appearance(len(self.classes))

    def base_label(self, label_B: Tensor) -> Tensor:
        """The U-Net's labels for the experiment's labels; -1 (unlabelled) becomes "any"."""
        table = torch.tensor([*self.to_base, len(self.base_labels)], device=label_B.device)
        return table[label_B]

    def trainable(self, which: Trainable) -> dict[str, nn.Parameter]:
        """The parameters that a site may change and that travel, by name; all others are frozen."""
        parts = (self.appearance,) if which == "adapter" else (self.appearance, self.prior, self.denoiser)
        chosen = {id(p) for part in parts for p in part.parameters()}
        for p in self.parameters():
            p.requires_grad_(id(p) in chosen)
        return {name: p for name, p in self.named_parameters() if id(p) in chosen}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name: what a message is checked against."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
