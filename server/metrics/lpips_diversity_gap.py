"""LPIPS diversity gap: as the gap by MS-SSIM, with a distance, so above 0 drawn images are less alike than patients are.

LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924), version 0.1 with AlexNet: how far apart two images look.

The five convolutions of AlexNet are built here and loaded from the file that defines LPIPS, torchvision's
alexnet-owt-7be5be79.pth, which no package carries; the linear weights on top come inside torchmetrics. Images are enlarged
to 64 pixels at least, below which AlexNet has no place for its pools.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from server.metrics.base import Held
from server.metrics.diversity import DiversityGap
from shared.errors import WeightsError

ALEXNET_SHA256 = "7be5be79"  # start of the digest of alexnet-owt-7be5be79.pth
CONVOLUTIONS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
NAMES = (0, 3, 6, 8, 10)  # of the convolutions in torchvision's `features`
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # the authors' scaling layer, for images in [-1, 1]
SMALLEST = 64


class LpipsDiversityGap(DiversityGap):
    name = "LPIPS diversity gap"
    reading = "As above with LPIPS, a distance: above 0 drawn images are less alike than patients are."
    option = "lpips_weights"

    def prepare(self, held: Held) -> None:
        self.distance = Lpips(held.file(self.option, self.name))

    def alike(self, x_NHW: Tensor, pairs_K2: np.ndarray) -> np.ndarray:
        return self.distance(x_NHW, x_NHW, pairs_K2)


class Lpips:
    """Distances of pairs of grey images. WeightsError where the file is absent or is not the one that defines LPIPS."""

    def __init__(self, weights: Path) -> None:
        if not weights.is_file():
            raise WeightsError(f"no AlexNet weights at {weights}; give the path of alexnet-owt-7be5be79.pth")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if not digest.startswith(ALEXNET_SHA256):
            raise WeightsError(
                f"{weights} has sha256 {digest[:8]}..., not {ALEXNET_SHA256}...; only the original weights may be called LPIPS"
            )
        try:
            alexnet = torch.load(weights, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise WeightsError(f"{weights} holds more than tensors; fetch the original file again") from error
        folder = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
        linear = torch.load(folder / "alex.pth", map_location="cpu", weights_only=True)
        self.linear = [linear[f"lin{i}.model.1.weight"] for i in range(len(NAMES))]
        self.layers = nn.ModuleList(nn.Conv2d(*shape) for shape in CONVOLUTIONS).eval()
        for layer, name in zip(self.layers, NAMES, strict=True):
            layer.load_state_dict({part: alexnet[f"features.{name}.{part}"] for part in ("weight", "bias")})

    def __call__(self, a_NHW: Tensor, b_NHW: Tensor, pairs_K2: np.ndarray, batch: int = 50) -> np.ndarray:
        """LPIPS of each pair (K,) of images in [0, 1]; 0 for equal images, no upper end."""
        parts = []
        for start in range(0, len(pairs_K2), batch):
            i, j = torch.from_numpy(pairs_K2[start : start + batch].T)
            parts.append(self._distance(a_NHW[i], b_NHW[j]))
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def _distance(self, a_KHW: Tensor, b_KHW: Tensor) -> Tensor:
        total = torch.zeros(len(a_KHW))
        for a, b, linear in zip(self._features(a_KHW), self._features(b_KHW), self.linear, strict=True):
            total += F.conv2d((a - b).square(), linear).mean(dim=(1, 2, 3))  # Zhang et al., equation 1
        return total

    def _features(self, x_KHW: Tensor) -> list[Tensor]:
        x = (x_KHW * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        x = (x - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        if x.shape[2] < SMALLEST:
            x = F.interpolate(x, size=(SMALLEST, SMALLEST), mode="bilinear", align_corners=False)
        found = []
        for number, layer in enumerate(self.layers):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(layer(x))
            found.append(F.normalize(x, dim=1, eps=1e-10))
        return found
