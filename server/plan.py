"""What a run will cost a patient and whether it can work, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from privacy import noisy_statistics
from privacy.accounting import Event, epsilon, noise_multiplier_for, nsr
from server.aggregation import base as aggregation
from server.metrics import base as metrics
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.errors import PrivacyError
from shared.models import weights


@dataclass(frozen=True)
class Plan:
    """The numbers that a coordinator decides on.

    noise_multiplier   of every step at every site; 0 without privacy
    epsilon            per patient at the end, none without privacy
    statistics         figure beside the update -> what it costs a patient alone, over all rounds; part of `epsilon`
    nsr                norm of one site's noise over the largest possible signal, per step; none without privacy
    """

    trainable_parameters: int
    total_parameters: int
    steps: int
    noise_multiplier: float
    epsilon: float | None
    nsr: float | None
    statistics: dict[str, float] = field(default_factory=dict)


def plan(experiment: Experiment, *, force: bool = False) -> Plan:
    """Calibrate the noise. PrivacyError when it would drown the signal (`privacy.max_nsr`), unless forced.

    ConfigError first, where the experiment names a metric or a rule of aggregation that there is not.
    """
    metrics.check(experiment.evaluation)
    aggregation.check(experiment.federation)
    with torch.device("meta"):  # sizes alone: the weights need not be there to plan
        model = weights.build(experiment.model, tuple(experiment.classes), experiment.classes)
        trainable = sum(p.numel() for p in attach(model, experiment.training.trainable).values())
    total = sum(p.numel() for p in model.parameters())
    privacy, steps = experiment.privacy, experiment.training.rounds * experiment.training.steps
    if privacy.epsilon is None:
        return Plan(trainable, total, steps, 0.0, None, None)
    figures = noisy_statistics.events(privacy.statistics, experiment.training.rounds)
    noise = noise_multiplier_for(
        epsilon=privacy.epsilon, delta=privacy.delta, sampling_rate=privacy.sampling_rate, steps=steps, spent=figures
    )
    ratio = nsr(
        parameters=trainable,
        noise_multiplier=noise,
        sampling_rate=privacy.sampling_rate,
        patients=experiment.expected_patients,
    )
    if ratio > privacy.max_nsr and not force:
        raise PrivacyError(
            f"the noise would be {ratio:.3g} times the largest possible signal (`privacy.max_nsr` is {privacy.max_nsr:g}); "
            f"train fewer parameters ({trainable} now), fewer steps ({steps} now), or more patients"
        )
    spent = epsilon([*figures, Event(noise, privacy.sampling_rate, steps)], privacy.delta)
    return Plan(trainable, total, steps, noise, spent, ratio, noisy_statistics.prices(experiment))
