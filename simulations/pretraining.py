"""The settings of a base: what `fedsynth pretrain` reads.

Left out: the training itself (`pretrain`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from shared.config.experiment import Performance
from shared.config.model import ModelSettings, settings_last, unless_unknown
from shared.config.record import Positive, PositiveFloat, Record

Fraction01 = Annotated[float, Field(ge=0, le=1)]


class Phase(Record):
    """A stretch of the training.

    until          the step at which it ends, counted from the beginning of the training
    kl             weight of the latent's Kullback-Leibler term (Kingma & Welling 2014); strong at first, so that the U-Net
                   learns to draw without leaning on the latent, then weak, so that the latent says what an image is like
    label_dropout  probability of hiding the label alone, so that "any" goes with a latent
    rate           learning rate at the phase's two ends, as shares of the full one; linear between
    """

    until: Positive
    rate: tuple[Fraction01, Fraction01] = (1.0, 1.0)
    kl: Annotated[float, Field(ge=0)]
    label_dropout: Annotated[float, Field(ge=0, lt=1)]


class Pretraining(Record):
    """Settings of a base.

    name               of the base, and of its three files
    seed               of phantoms, first weights and noise: all of it is public
    patients           phantoms that are drawn
    slices_per_patient  of each phantom
    phases             the stretches of the training, one after the other
    batch              images a step
    learning_rate      the full one, of which each phase takes shares
    warmup_steps       at the start, while the rate grows from nothing
    ema                how much of the running average of the weights stays at each step; the average is what is kept
    condition_dropout  probability of hiding label and latent together, for guidance
    checkpoint_every   steps between checkpoints, from which an interrupted training goes on
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    seed: Annotated[int, Field(ge=0)] = 0
    patients: Positive = 8000
    slices_per_patient: Positive = 4
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    batch: Positive = 32
    learning_rate: PositiveFloat = 4e-4
    warmup_steps: Positive = 200
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    checkpoint_every: Positive = 250
    performance: Performance = Performance(precision="bfloat16")
    model: SerializeAsAny[ModelSettings] = Field(default_factory=dict, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: Any) -> Any:
        return unless_unknown(cls, tree)

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_kind(cls, tree: object, info: ValidationInfo) -> ModelSettings:
        return settings_last(cls, tree, info)

    @property
    def steps(self) -> int:
        return self.phases[-1].until

    def phase(self, step: int) -> Phase:
        return next(p for p in self.phases if step < p.until)

    def rate(self, step: int) -> float:
        """Share of the full learning rate at a step."""
        phase = self.phase(step)
        begin = max((p.until for p in self.phases if p.until < phase.until), default=0)
        done = (step - begin) / (phase.until - begin)
        return phase.rate[0] + done * (phase.rate[1] - phase.rate[0])
