"""Two figures that a hospital may choose to give beside its update: how many patients it has, and their mean loss.

Mechanism     the Gaussian mechanism on a sum over all patients of the cohort, noise from privacy/noise.py, then a public grid
Relation      add or remove all data of one patient

| figure        | what is summed, over patients | one patient moves it by           | noise, standard deviation          |
|---------------|-------------------------------|-----------------------------------|------------------------------------|
| patient count | 1                             | exactly 1                         | z                                  |
| mean loss     | (min(loss, L) / L, 1) at once | at most sqrt 2 in L2, at loss L   | z sqrt 2 on each of the two sums   |

Guarantee     each figure is one full-batch step with noise multiplier z, Event(z, 1, 1), on the ledger before it is computed; all
              figures and all training compose there (accounting.py). The mean is L times the first noisy sum over the second,
              which is post-processing: the true number of patients divides nothing
Condition     a patient's loss depends on that patient alone, and on public weights

| edge case                        | what happens                                                                         |
|----------------------------------|--------------------------------------------------------------------------------------|
| nobody in the cohort             | the count is noise; the mean is noise too                                            |
| a loss that is not finite        | counts as L                                                                          |
| a negative count                 | given as it is: cutting it at 0 would bias an average over sites                     |
| a noisy number of patients below 1 | 1 divides: the mean is then worthless, and nothing about it is revealed by an error|
| the mean beyond 0 or L           | cut to [0, L]                                                                        |
| z or L beyond 1e-9 to 1e9        | PrivacyError, before anything is computed: inside, no number overflows whatever the losses |

Losses are added as whole numbers of L / 2^24, cut towards zero, so that one patient moves the sum by no rounding of others'. The
count is rounded to a whole number, the two sums to a grid of 2^-20 of their noise: the low bits of floating-point noise, by which
it gives its input away (Mironov 2012), never leave.

Left out: figures per class, and anything that needs a bound which data would have to suggest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from privacy.accounting import Event, epsilon
from privacy.noise import SecureRandom
from shared.config.experiment import Experiment, Statistics
from shared.errors import PrivacyError

COUNT, LOSS = "patient-count", "mean-loss"  # as they are named in a site's `share` and in its reply
MOST_PATIENTS = 10_000_000  # of one hospital
FARTHEST = 12.0  # standard deviations: SecureRandom's noise ends at 8.57
JOINT = math.sqrt(2)  # L2 sensitivity of (loss / L, 1)
GRID_BITS = 20
UNITS = 2**24  # of a loss, in L
SMALLEST, LARGEST = 1e-9, 1e9  # of z and of L


def asked(settings: Statistics, number: int) -> dict[str, float]:
    """What an experiment asks in round `number`: figure -> noise multiplier. The count in round 1 alone, the loss in every one."""
    wanted = {COUNT: settings.patient_count if number == 1 else None, LOSS: settings.mean_loss}
    return {name: noise for name, noise in wanted.items() if noise is not None}


def events(settings: Statistics, rounds: int) -> list[Event]:
    """What all figures of a run cost one patient, for planning."""
    return [Event(z, 1.0, 1) for number in range(1, rounds + 1) for z in asked(settings, number).values()]


def prices(experiment: Experiment) -> dict[str, float]:
    """Figure -> epsilon per patient that it costs by itself, over all rounds of an experiment."""
    settings, rounds = experiment.privacy.statistics, experiment.training.rounds
    return {
        name: epsilon([Event(z, 1.0, 1 if name == COUNT else rounds)], experiment.privacy.delta)
        for name, z in asked(settings, 1).items()
    }


def possible(settings: Statistics, name: str, value: float) -> bool:
    """Whether a site can have computed this value of a figure that was asked for."""
    if name == LOSS:
        return 0 <= value <= settings.loss_bound
    farthest = FARTHEST * (settings.patient_count or 0.0) + 1
    return value == math.floor(value) and -farthest <= value <= MOST_PATIENTS + farthest


def patient_count(patients: int, noise_multiplier: float, noise: SecureRandom | None = None) -> int:
    """The number of patients, noised, a whole number, possibly negative."""
    _check(noise_multiplier)
    value = (noise or SecureRandom()).gaussian((1,))[0]
    return round(patients + noise_multiplier * float(value))


def mean_loss(
    losses: Sequence[float], noise_multiplier: float, *, bound: float, noise: SecureRandom | None = None
) -> float:
    """The mean of one loss a patient, clipped to [0, bound], noised.

    losses   one number for each patient of the cohort, all of them: not a sample
    bound    L, a public constant
    """
    total, patients = noisy_sums(losses, noise_multiplier, bound=bound, noise=noise)
    return bound * min(1.0, max(0.0, total / max(patients, 1.0)))


def noisy_sums(
    losses: Sequence[float], noise_multiplier: float, *, bound: float, noise: SecureRandom | None = None
) -> tuple[float, float]:
    """Sum of loss / L and number of patients, both noised, on their grid. Standard deviation noise_multiplier sqrt 2 each."""
    _check(noise_multiplier)
    if not SMALLEST <= bound <= LARGEST:
        raise PrivacyError(
            f"the bound of a loss is {bound}; it lies between {SMALLEST:g} and {LARGEST:g}, whatever the data"
        )
    clipped = [min(1.0, max(0.0, x / bound)) if math.isfinite(x) else 1.0 for x in losses]
    exact = sum(int(x * UNITS) for x in clipped) / UNITS  # a power of two: no rounding
    std = noise_multiplier * JOINT
    grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)
    values = (noise or SecureRandom()).gaussian((2,))
    total, patients = (
        round((figure + std * float(v)) / grid) * grid
        for figure, v in zip((exact, float(len(clipped))), values, strict=True)
    )
    return total, patients


def _check(noise_multiplier: float) -> None:
    if not SMALLEST <= noise_multiplier <= LARGEST:
        raise PrivacyError(
            f"the noise multiplier of a figure is {noise_multiplier}; it lies between {SMALLEST:g} and {LARGEST:g}"
        )
