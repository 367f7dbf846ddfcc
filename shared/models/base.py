"""The seam of a model: what training, the door, the server and the release ask of it, and nothing else.

A kind is one file in this folder: a class `Settings` and a class on `GenerativeModel`. It is trained one patient at a time, because
the gradient of one patient is what differential privacy bounds:

    example = model.prepare(x_SCHW, label)      once a patient, by public and frozen parts
    model.loss(example, draws, rng)             one patient's loss; its gradient is clipped, added, noised (privacy/sgd.py)
    model.after_step(rng)                       after each step; sees no patient
    model.sample(label_N, rng, sampling)        images

Shapes: S slices of a patient, N images, C channels, H = W = image_size. Images are in [-1, 1], or uint8 where a line says so.

What a kind must keep (tests/contracts/test_models.py holds every kind to it):
- A patient's loss depends on that patient, on the weights and on `rng` alone. No BatchNorm, no running statistics.
- Every number of its settings is bounded: they come from a stranger, and a model is made of them before anything is charged.
- Names and shapes of all tensors follow from settings, base labels and classes alone: a model can be made on the device "meta".

Left out: which parts are trained (shared/adapters/), and how (client/train.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared.config.experiment import Performance, Sampler
from shared.config.model import ModelSettings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Example:
    """One patient, prepared, on the training device.

    x_SCHW     (S, C, H, W) uint8
    label      index into the experiment's classes; -1: unlabelled
    summaries  what the model's public and frozen parts say of each slice, by name: first axis S
    """

    x_SCHW: Tensor
    label: int
    summaries: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x_SCHW)


@dataclass(frozen=True)
class Draws:
    """What one loss looks at, all of it public but for which slices were drawn.

    slices             indices into a patient's slices
    repeats            noise draws of each (Dockhorn et al. 2023, "noise multiplicity")
    condition_dropout  probability that a draw hides the conditions, for guidance
    """

    slices: Sequence[int]
    repeats: int = 1
    condition_dropout: float = 0.0
    performance: Performance = Performance()  # noqa: RUF009 - a frozen record


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    sampler   "ddim" (Song et al. 2021, eq. 12), "dpm++" (Lu et al. 2022, DPM-Solver++ 2M), or "ddpm", ancestral sampling (Ho et
              al. 2020, algorithm 2, with its smaller variance), which is meant for 1,000 steps
    steps     network calls per image (twice that where guidance is not 1)
    guidance  1: conditional samples; larger: v_any + guidance (v_class - v_any) (Ho & Salimans 2022, eq. 6)
    batch     images at once

    A kind that needs no sampler (a generator draws in one call) looks at `batch` alone.
    """

    sampler: Sampler = "dpm++"
    steps: int = 20
    guidance: float = 1.0
    batch: int = 120


class GenerativeModel(nn.Module, ABC):
    """A model that draws images of labelled classes. Everything that a checkpoint holds is one of its parameters or buffers."""

    name: ClassVar[str]  # what an experiment calls it; its file has the same
    Settings: ClassVar[type[ModelSettings]]

    def __init__(self, settings: ModelSettings, base_labels: tuple[str, ...], classes: dict[str, str] | None) -> None:
        """Random weights.

        base_labels   what the labels of the base mean, in order
        classes       the experiment's classes, each mapped to a base label or "any"; none: the base labels themselves
        """
        super().__init__()
        self.settings: Any = settings
        self.base_labels = base_labels
        self.classes = tuple(classes or base_labels)
        mapped = (classes or {name: name for name in base_labels}).values()
        self.to_base = [base_labels.index(name) if name in base_labels else len(base_labels) for name in mapped]

    @abstractmethod
    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """What may be trained on patients, in named groups: group -> name of the tensor -> parameter."""

    @abstractmethod
    def prepare(self, x_SCHW: Tensor, label: int) -> Example:
        """A patient (S, C, H, W) uint8, made ready once. Frozen parts alone may look at it here."""

    @abstractmethod
    def loss(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor:
        """Scalar: what training minimises for one patient. A term whose parts are all frozen is left out."""

    @abstractmethod
    def sample(
        self, label_N: Tensor, rng: torch.Generator, sampling: Sampling, progress: Progress | None = None
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] for the experiment's labels (N,); -1: any class."""

    @abstractmethod
    def fit_public(self, x_PSCHW: Tensor, label_P: Tensor) -> None:
        """Fit whatever has a closed form on public images: (patients, S, C, H, W) uint8, every class among them."""

    @abstractmethod
    def training_bytes(self, images: int, bytes_each: int) -> int:
        """Memory of a training step of so many images in numbers of `bytes_each`, an estimate that is meant to be low."""

    def membership_score(self, example: Example, draws: Draws, rng: torch.Generator) -> Tensor | None:
        """Scalar, lower where the model remembers the patient; none where the kind has no such figure."""
        return self.loss(example, draws, rng)

    def after_step(self, rng: torch.Generator) -> None:
        """After each optimiser step: an average of weights, a generator's own step. No patient is within reach."""

    def load_base(self, tensors: dict[str, Tensor]) -> None:
        """Take over the weights of a base, whose classes may be others than the experiment's."""
        self.load_state_dict(tensors)

    def accelerate(self) -> None:
        """Compile what is called again and again while images are drawn; in place and once, later calls find it done."""


def trained(part: nn.Module) -> bool:
    """Whether any parameter of a part is trained (its adapter says so, shared/adapters/)."""
    return any(p.requires_grad for p in part.parameters())


def named(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """The parameters of a part by the names that they have in the whole model."""
    return {f"{prefix}.{name}": p for name, p in module.named_parameters()}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name: what a message is checked against."""
    return {name: tuple(t.shape) for name, t in tensors.items()}
