"""A model of your own in one file: a convolutional variational autoencoder (Kingma & Welling 2014) of a DCGAN's size.

    fedsynth simulate my_experiment.yaml      with   plugins: [my_model.py]
                                                     model: {kind: my-model, image_size: 64}
                                                     base: none
                                                     training: {trainable: full}

To make it part of fedsynth, move the file to shared/models/my_model.py: it bears the name of the kind. What must hold for every
model is written in shared/models/base.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from shared.config.model import ModelSettings
from shared.models.base import Draws, Example, GenerativeModel, Progress, Sampling, named


class MySettings(ModelSettings):
    """The keys of `model:` in an experiment. `width`: channels at the largest resolution."""

    kind: Literal["my-model"] = "my-model"
    latents: Annotated[int, Field(ge=1, le=1024)] = 32
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = 32


class MyModel(GenerativeModel):
    """Encoder and decoder, both trained on patients: their loss is a sum over one patient's slices."""

    name = "my-model"
    Settings = MySettings

    def __init__(
        self, settings: MySettings, base_labels: tuple[str, ...], classes: dict[str, str] | None = None
    ) -> None:
        super().__init__(settings, base_labels, classes)
        levels = int(math.log2(settings.image_size)) - 2  # down to 4 x 4
        widths = [settings.width * 2 ** min(level, 3) for level in range(levels)]
        down: list[nn.Module] = []
        for before, after in zip([settings.image_channels, *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        up: list[nn.Module] = []
        for before, after in zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True):
            up += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.start = (widths[-1], 4, 4)
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(widths[-1] * 16, 2 * settings.latents))
        self.decoder = nn.ModuleDict(
            {
                "label": nn.Embedding(len(self.classes) + 1, settings.latents),  # the last one: unlabelled
                "first": nn.Linear(2 * settings.latents, widths[-1] * 16),
                "body": nn.Sequential(*up, nn.Conv2d(widths[0], settings.image_channels, 3, 1, 1), nn.Tanh()),
            }
        )

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        return {name: named(getattr(self, name), name) for name in ("encoder", "decoder")}

    def prepare(self, x_SCHW: Tensor, label: int) -> Example:
        return Example(x_SCHW, label if 0 <= label < len(self.classes) else -1)

    def loss(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor:
        pick = torch.tensor(draws.slices, device=example.x_SCHW.device).repeat_interleave(draws.repeats)
        x_BCHW = example.x_SCHW[pick].float() / 127.5 - 1
        mean, log_std = self.encoder(x_BCHW).chunk(2, -1)
        log_std = log_std.clamp(-6, 2)
        z_BF = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=mean.device)
        label_B = torch.full((len(pick),), example.label, device=mean.device)
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1).mean()
        return F.mse_loss(self._decode(z_BF, label_B), x_BCHW) + 1e-3 * kl

    @torch.no_grad()
    def sample(
        self, label_N: Tensor, rng: torch.Generator, sampling: Sampling, progress: Progress | None = None
    ) -> Tensor:
        size, device = self.settings.image_size, next(self.parameters()).device
        images = [torch.empty(0, self.settings.image_channels, size, size)]
        for done, label_B in enumerate(label_N.split(sampling.batch)):
            z_BF = torch.randn(len(label_B), self.settings.latents, generator=rng).to(device)
            images.append(self._decode(z_BF, label_B.to(device)).cpu() if len(label_B) else images[0])
            if progress:
                progress(min(len(label_N), (done + 1) * sampling.batch), len(label_N))
        return torch.cat(images)

    def fit_public(self, x_PSCHW: Tensor, label_P: Tensor) -> None:
        """Nothing of it has a closed form."""

    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """One row a class, of the base's classes; unlabelled is the last."""
        rows = tensors["decoder.label.weight"]
        self.load_state_dict(tensors | {"decoder.label.weight": rows[[*self.to_base, len(rows) - 1]]})

    def training_bytes(self, images: int, bytes_each: int) -> int:
        maps = 6 * self.settings.width * self.settings.image_size**2  # a geometric series, down and up
        return images * maps * bytes_each + 16 * sum(p.numel() for p in self.parameters())

    def _decode(self, z_BF: Tensor, label_B: Tensor) -> Tensor:
        condition = self.decoder["label"](label_B % (len(self.classes) + 1))
        first = self.decoder["first"](torch.cat([z_BF, condition], 1))
        images: Tensor = self.decoder["body"](first.view(len(z_BF), *self.start))
        return images
