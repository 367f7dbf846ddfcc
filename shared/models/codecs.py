"""Between images and what a denoiser works on. A codec is public, frozen, and part of the model that it serves.

`PixelUnshuffle` loses nothing: a quarter of the positions and four times the channels, so a 64-pixel image costs a U-Net what one
of 32 costs. An autoencoder is a codec of the same shape.

Left out: how a codec is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Codec(nn.Module, ABC):
    """Shapes: images (B, C, H, W) in [-1, 1] <-> codes (B, channels, H / factor, W / factor).

    bounded   whether codes lie in [-1, 1] as images do: samplers clip there, and nowhere else
    """

    channels: int
    factor: int
    bounded: bool

    @abstractmethod
    def encode(self, x_BCHW: Tensor) -> Tensor: ...

    @abstractmethod
    def decode(self, code_Bchw: Tensor) -> Tensor: ...

    def noise(self, images: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
        """Standard normal codes for images of the shape (B, C, H, W), drawn where `rng` is."""
        b, _, height, width = images
        shape = (b, self.channels, height // self.factor, width // self.factor)
        return torch.randn(shape, generator=rng, device=device if rng is None else rng.device).to(device)


class PixelUnshuffle(Codec):
    """Every 2 x 2 pixels become the channels of one position (Shi et al. 2016, arXiv 1609.05158)."""

    factor, bounded = 2, True

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.channels = image_channels * self.factor**2

    def encode(self, x_BCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(x_BCHW, self.factor)

    def decode(self, code_Bchw: Tensor) -> Tensor:
        return F.pixel_shuffle(code_Bchw, self.factor)

    def noise(self, images: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
        """As for images: the same seed gives the same picture at whatever factor it is computed."""
        return self.encode(torch.randn(images, generator=rng, device=device if rng is None else rng.device).to(device))
