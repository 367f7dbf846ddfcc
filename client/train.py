"""The local loop: one function from a site's patients to its update.

One patient is one micro-batch and one gradient; patients are Poisson-sampled; the sum of clipped gradients is noised by
`privacy.sgd`. Reserving the budget is the caller's duty, before this function runs.

Left out: evaluation. Loss and gradient norms are not differentially private, so they are not even computed for display; a noisy
mean loss, where the site shares one, is private_statistics.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.dataset import Patient
from privacy.noise import SecureRandom
from privacy.sgd import PatientOptimizer, private_step
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.models.base import Draws, Example, GenerativeModel

LOG = logging.getLogger("fedsynth.client")


@dataclass(frozen=True)
class Prepared:
    """One patient as the model sees them. The pseudonym is for an audit, which must know its canaries."""

    pseudonym: str
    example: Example


def train(
    model: GenerativeModel,
    cohort: list[Patient],
    experiment: Experiment,
    *,
    noise_multiplier: float,
    expected_patients: int,
    progress: Callable[[int, int], None] | None = None,
    step: Callable[..., object] = private_step,
) -> dict[str, Tensor]:
    """Run one round's steps and return the update: trained minus received value of every trainable tensor.

    noise_multiplier   of the Gaussian mechanism; 0 trains without clipping and noise
    expected_patients  public constant; divides each sum together with the sampling rate
    step               what takes one private step; an audit puts its own around it (see client/audit_run.py)
    """
    # Set up
    settings, privacy = experiment.training, experiment.privacy
    device = next(model.parameters()).device
    model.train()
    trainable = attach(model, settings.trainable)
    before = {name: p.detach().clone() for name, p in trainable.items()}
    parameters = list(trainable.values())
    plain: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        plain = torch.optim.SGD(parameters, lr=settings.learning_rate)
    else:
        plain = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
    secure = SecureRandom()
    optimizer = PatientOptimizer(
        plain,
        noise_multiplier=noise_multiplier,
        max_grad_norm=privacy.max_grad_norm if noise_multiplier > 0 else None,
        sampling_rate=privacy.sampling_rate,
        expected_patients=expected_patients,
        noise=secure,
    )
    # Prepare once: what looks at the patients here is public and frozen
    patients = list(usable(model, cohort, device, strict=noise_multiplier == 0))
    # Noise of the diffusion process protects nobody, so a fast generator will do; its seed is as secret as the rest
    rng = torch.Generator(device).manual_seed(secure.seed())

    def loss(patient: Prepared) -> Tensor:
        return model.loss(patient.example, draws(experiment, secure.subset(len(patient.example), settings.slices)), rng)

    # Steps
    for number in range(settings.steps):
        chosen = secure.poisson_sample(len(patients), privacy.sampling_rate)
        step(loss, [patients[i] for i in chosen], optimizer, clipping=privacy.clipping)
        model.after_step(rng)
        _pull_back(trainable, before, settings.learning_rate * experiment.federation.proximal)
        if progress:
            progress(number + 1, settings.steps)
    return {name: p.detach() - before[name] for name, p in trainable.items()}


@torch.no_grad()
def _pull_back(trainable: dict[str, torch.nn.Parameter], before: dict[str, Tensor], strength: float) -> None:
    """FedProx (Li et al. 2020, arXiv 1812.06127, equation 2) as the proximal operator of mu/2 |w - w_received|^2.

    It looks at released parameters alone, so it is post-processing and costs no budget.
    """
    if strength > 0:
        for name, p in trainable.items():
            p.lerp_(before[name], strength / (1 + strength))


def draws(experiment: Experiment, slices: Sequence[int]) -> Draws:
    """What a loss of this experiment looks at, of the given slices."""
    settings = experiment.training
    return Draws(slices, settings.draws, settings.condition_dropout, experiment.performance)


def usable(
    model: GenerativeModel, cohort: Sequence[Patient], device: torch.device, *, strict: bool
) -> Iterator[Prepared]:
    """The patients, prepared. One who cannot be contributes zero; without privacy (`strict`) that is an error."""
    for patient in cohort:
        try:
            yield prepare(model, patient, device)
        except Exception as error:
            if strict:
                raise
            LOG.error("%s while a patient was prepared, who contributes nothing", type(error).__name__)


def prepare(model: GenerativeModel, patient: Patient, device: torch.device) -> Prepared:
    """Move a patient to the device and let the model's public parts look."""
    x_SCHW = torch.from_numpy(patient.x_SHW).to(device)[:, None]
    return Prepared(patient.pseudonym, model.prepare(x_SCHW, patient.label))
