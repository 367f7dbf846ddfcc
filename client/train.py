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
from shared.appearance import statistics
from shared.config.experiment import Experiment
from shared.device import precision
from shared.diffusion import Process
from shared.network import Model
from shared.prior import levels

LOG = logging.getLogger("fedsynth.client")
SLICES_AT_ONCE = 64


@dataclass(frozen=True)
class Encoded:
    """One patient on the training device: x (S, H, W) uint8, latents z (S, F), statistics s (S, A), levels u (S,), label."""

    pseudonym: str
    x_SHW: Tensor
    z_SF: Tensor
    s_SA: Tensor
    u_S: Tensor
    label: int


def train(
    model: Model,
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
    trainable = model.trainable(settings.trainable)
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
    # Encode once: the encoder is public and frozen
    patients = list(usable(model, cohort, device, strict=noise_multiplier == 0))
    process = Process(device)
    # Noise of the diffusion process protects nobody, so a fast generator will do; its seed is as secret as the rest
    rng = torch.Generator(device).manual_seed(secure.seed())

    def loss(patient: Encoded) -> Tensor:
        return patient_loss(
            model, process, patient, experiment, secure.subset(len(patient.x_SHW), settings.slices), rng
        )

    # Steps
    for number in range(settings.steps):
        chosen = secure.poisson_sample(len(patients), privacy.sampling_rate)
        step(loss, [patients[i] for i in chosen], optimizer, clipping=privacy.clipping)
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


def patient_loss(
    model: Model,
    process: Process,
    patient: Encoded,
    experiment: Experiment,
    slices: Sequence[int],
    rng: torch.Generator,
) -> Tensor:
    """Scalar: what training minimises for one patient, with the given slices (full training) and the draws of `rng`."""
    label_S = torch.tensor([patient.label], device=patient.z_SF.device).expand(len(patient.z_SF))
    looks = model.appearance.loss(patient.s_SA, label_S)
    if experiment.training.trainable == "adapter":
        return looks
    where = model.prior.loss(patient.z_SF, label_S, patient.u_S)
    return denoising_loss(model, process, patient, experiment, slices, rng) + where + looks


def denoising_loss(
    model: Model,
    process: Process,
    patient: Encoded,
    experiment: Experiment,
    slices: Sequence[int],
    rng: torch.Generator,
) -> Tensor:
    """Scalar: the diffusion part of a patient's loss in full training, the only one that sees the pixels themselves."""
    settings, device = experiment.training, patient.z_SF.device
    # m slices, K noise draws each (Dockhorn et al. 2023, "noise multiplicity"), a fixed shape for every patient
    pick = torch.tensor(slices, device=device).repeat_interleave(settings.draws)
    x = patient.x_SHW[pick].float()[:, None] / 127.5 - 1
    with precision(experiment.performance, device):
        return process.losses(
            model.denoiser,
            x,
            model.base_label(torch.tensor([patient.label], device=device)).expand(len(pick)),
            patient.z_SF[pick],
            condition_dropout=settings.condition_dropout,
            rng=rng,
        ).mean()


def usable(model: Model, cohort: Sequence[Patient], device: torch.device, *, strict: bool) -> Iterator[Encoded]:
    """The patients, encoded. One who cannot be is left out, a contribution of zero; without privacy (`strict`) that is an error."""
    for patient in cohort:
        try:
            yield encode(model, patient, device)
        except Exception as error:
            if strict:
                raise
            LOG.error("%s while a patient was encoded, who contributes nothing", type(error).__name__)


@torch.no_grad()
def encode(model: Model, patient: Patient, device: torch.device) -> Encoded:
    """Move a patient to the device and summarise its slices with the public encoder, a few at a time.

    A label that the experiment does not know is none: a patient's loss is defined whatever the coordinator's classes are.
    """
    x_SHW = torch.from_numpy(patient.x_SHW).to(device)
    label = patient.label if 0 <= patient.label < len(model.classes) else -1
    z, s = [], []
    for x_BHW in x_SHW.split(SLICES_AT_ONCE):
        x_B1HW = x_BHW.float()[:, None] / 127.5 - 1
        z.append(model.encoder(x_B1HW)[0])
        s.append(statistics(x_B1HW))
    return Encoded(patient.pseudonym, x_SHW, torch.cat(z), torch.cat(s), levels(len(x_SHW)).to(device), label)
