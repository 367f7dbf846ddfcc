"""Diffusion of pixels: a U-Net that denoises, a small encoder, a prior over latents, and an appearance.

The U-Net works on `pixel_unshuffle`d images, a quarter of the positions and four times the channels. It is conditioned on a class
label and on a latent z, the encoder's summary of an image (size, level, contrast, ventricles, ...), as in a diffusion autoencoder
(Preechakul et al. 2022, https://arxiv.org/abs/2111.15640). Trained on public images, U-Net and encoder span anatomy. How a hospital
frames and tones its images is a few dozen numbers (the appearance), few enough to survive the noise of differential privacy with a
hundred patients.

    parts     appearance, prior, denoiser; the encoder is public and stays as it is

Left out: averages of weights over steps (EMA): under privacy the server's part; text conditions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from shared.config.model import ModelSettings
from shared.models.appearance import Appearance, statistics
from shared.models.base import Draws, Example, GenerativeModel, Progress, Sampling, named, trained
from shared.models.codecs import PixelUnshuffle
from shared.models.device import precision
from shared.models.diffusion import Process, denoise
from shared.models.prior import Prior, levels
from shared.models.unet import Denoiser, Encoder, UNet, activation_bytes

SLICES_AT_ONCE = 64


class PixelDiffusionSettings(UNet, ModelSettings):
    """The U-Net at half the image's size; `channels` at the resolutions size/2, size/4, ...; attention only at the lowest."""

    kind: Literal["pixel-diffusion"] = "pixel-diffusion"


class PixelDiffusion(GenerativeModel):
    """Everything that a checkpoint holds: denoiser, encoder, prior, appearance."""

    name = "pixel-diffusion"
    Settings = PixelDiffusionSettings

    def __init__(
        self, settings: PixelDiffusionSettings, base_labels: tuple[str, ...], classes: dict[str, str] | None = None
    ) -> None:
        super().__init__(settings, base_labels, classes)
        self.codec = PixelUnshuffle(settings.image_channels)
        self.denoiser = Denoiser(
            settings,
            code_channels=self.codec.channels,
            side=settings.image_size // self.codec.factor,
            labels=len(base_labels),
        )
        self.encoder = Encoder(settings)
        self.prior = Prior(settings.latents, len(self.classes))
        self.appearance = Appearance(len(self.classes))
        self._process: Process | None = None

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        return {name: named(getattr(self, name), name) for name in ("appearance", "prior", "denoiser")}

    @torch.no_grad()
    def prepare(self, x_SCHW: Tensor, label: int) -> Example:
        """Summarise a patient's slices with the public encoder, a few at a time.

        A label that the experiment does not know is none: a patient's loss is defined whatever the coordinator's classes are.
        """
        z, s = [], []
        for x_BCHW in x_SCHW.split(SLICES_AT_ONCE):
            scaled = _scaled(x_BCHW)
            z.append(self.encoder(scaled)[0])
            s.append(statistics(scaled))
        summaries = {"z": torch.cat(z), "s": torch.cat(s), "u": levels(len(x_SCHW)).to(x_SCHW.device)}
        return Example(x_SCHW, label if 0 <= label < len(self.classes) else -1, summaries)

    def loss(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor:
        z_SF, label_S = example.summaries["z"], self._labels(example)
        terms = []
        if trained(self.denoiser):
            terms.append(self._denoising(example, draws, rng))
        if trained(self.prior):
            terms.append(self.prior.loss(z_SF, label_S, example.summaries["u"]))
        if trained(self.appearance):
            terms.append(self.appearance.loss(example.summaries["s"], label_S))
        assert terms, "an adapter trains something"
        return sum(terms[1:], terms[0])

    def membership_score(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor:
        """Of a trained denoiser its loss alone: the other terms differ so much that they would hide what it remembers."""
        return self._denoising(example, draws, rng) if trained(self.denoiser) else self.loss(example, draws, rng)

    def _denoising(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor:
        """Scalar: the diffusion part of a patient's loss, the only one that sees the pixels themselves.

        m slices, K noise draws each (Dockhorn et al. 2023), a fixed shape for every patient.
        """
        device = example.x_SCHW.device
        if self._process is None or self._process.alpha.device != device:
            self._process = Process(device)
        pick = torch.tensor(draws.slices, device=device).repeat_interleave(draws.repeats)
        x_BCHW = _scaled(example.x_SCHW[pick])
        with precision(draws.performance, device):
            return self._process.losses(
                self.denoiser,
                self.codec.encode(x_BCHW),
                self._base_label(self._labels(example)[:1]).expand(len(pick)),
                example.summaries["z"][pick],
                noise=lambda: self.codec.noise(tuple(x_BCHW.shape), rng, device),
                condition_dropout=draws.condition_dropout,
                rng=rng,
            ).mean()

    @torch.no_grad()
    def sample(
        self, label_N: Tensor, rng: torch.Generator, sampling: Sampling, progress: Progress | None = None
    ) -> Tensor:
        """In the model's appearance. All randomness is drawn where `rng` is, so that a seed says the same on every device."""
        device, size, channels = next(self.parameters()).device, self.settings.image_size, self.settings.image_channels
        images = []
        for start in range(0, len(label_N), sampling.batch):
            label_B = label_N[start : start + sampling.batch].to(device)
            b = len(label_B)
            u_B = torch.rand(b, generator=rng) * 2 - 1
            z_BF = self.prior.sample(label_B, u_B.to(device), rng)
            noise_Bchw = self.codec.noise((b, channels, size, size), rng, device)
            code_Bchw = denoise(
                self.denoiser, noise_Bchw, self._base_label(label_B), z_BF, sampling, rng, bounded=self.codec.bounded
            )
            images.append(self.codec.decode(code_Bchw).clamp(-1, 1).cpu())
            if progress:
                progress(start + b, len(label_N))
        if not images:
            return torch.empty(0, channels, size, size)
        return self.appearance.cpu().give(torch.cat(images), label_N.cpu())

    @torch.no_grad()
    def fit_public(self, x_PSCHW: Tensor, label_P: Tensor) -> None:
        """Prior and appearance by their moments. Whole stacks, because the prior knows the level in the stack."""
        device, (patients, slices) = next(self.parameters()).device, x_PSCHW.shape[:2]
        batches = x_PSCHW.flatten(0, 1).split(256)
        z = torch.cat([self.encoder(_scaled(b.to(device)))[0].cpu() for b in batches])
        s = torch.cat([statistics(_scaled(b)) for b in batches])
        self.prior.cpu().fit(z.unflatten(0, (patients, slices)), label_P)
        self.appearance.cpu().fit(s, label_P.repeat_interleave(slices))

    def training_bytes(self, images: int, bytes_each: int) -> int:
        """Activations, and 16 bytes a parameter for weights, gradient and optimiser."""
        side = self.settings.image_size // self.codec.factor
        weights = 16 * sum(p.numel() for p in self.parameters())
        return activation_bytes(self.settings, side, images, bytes_each) + weights

    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """One row a class; "any" gets the average of the base's."""
        tensors = dict(tensors)
        for name in ("prior.offset", "appearance.mean"):
            rows = torch.cat([tensors[name], tensors[name].mean(0, keepdim=True)])
            tensors[name] = rows[self.to_base]
        self.load_state_dict(tensors)

    def accelerate(self) -> None:
        self.denoiser.compile()

    def _labels(self, example: Example) -> Tensor:
        return torch.tensor([example.label], device=example.x_SCHW.device).expand(len(example))

    def _base_label(self, label_B: Tensor) -> Tensor:
        """The U-Net's labels for the experiment's labels; -1 (unlabelled) becomes "any"."""
        table = torch.tensor([*self.to_base, len(self.base_labels)], device=label_B.device)
        return table[label_B]


def _scaled(x_BCHW: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return x_BCHW.float() / 127.5 - 1
