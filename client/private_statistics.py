"""The noisy figures that this hospital's file shares, from its cohort and the received weights.

Charging for them and asking the policy come first and are the caller's duty. What they are and promise:
privacy/noisy_statistics.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch

from client.dataset import Patient
from client.train import draws, prepare
from privacy import noisy_statistics
from privacy.noise import SecureRandom
from shared.config.experiment import Experiment
from shared.models.base import GenerativeModel

LOG = logging.getLogger("fedsynth.client")
TIMES = 4  # losses of one patient that are averaged, each over the slices and draws of a training step


def measure(
    model: GenerativeModel, cohort: list[Patient], experiment: Experiment, asked: Mapping[str, float]
) -> dict[str, float]:
    """Figure -> noised value, for `asked`: figure -> noise multiplier."""
    found: dict[str, float] = {}
    if noisy_statistics.COUNT in asked:
        found[noisy_statistics.COUNT] = float(
            noisy_statistics.patient_count(len(cohort), asked[noisy_statistics.COUNT])
        )
    if noisy_statistics.LOSS in asked:
        bound = experiment.privacy.statistics.loss_bound
        found[noisy_statistics.LOSS] = noisy_statistics.mean_loss(
            losses(model, cohort, experiment), asked[noisy_statistics.LOSS], bound=bound
        )
    return found


@torch.no_grad()
def losses(model: GenerativeModel, cohort: list[Patient], experiment: Experiment, times: int = TIMES) -> list[float]:
    """The training loss of every patient of the cohort, exact: private, never to be sent or logged. NaN where there is none."""
    device = next(model.parameters()).device
    secure = SecureRandom()
    rng = torch.Generator(device).manual_seed(secure.seed())
    found = []
    for patient in cohort:
        try:
            example = prepare(model, patient, device).example
            slices = [secure.subset(len(patient.x_SHW), experiment.training.slices) for _ in range(times)]
            drawn = [model.loss(example, draws(experiment, chosen), rng) for chosen in slices]
            found.append(float(torch.stack(drawn).mean()))
        except Exception as error:  # noqa: BLE001 - a failure would tell of a patient: no number, which has its own rule
            LOG.error("%s while a loss was measured", type(error).__name__)
            found.append(math.nan)
    return found
