"""Patient-level DP-SGD: one patient = one micro-batch = one clipped gradient.

Mechanism     sum over the Poisson-sampled patients of clip(g_i, C), plus N(0, (noise_multiplier C)^2 I), divided by the
              public constant sampling_rate * expected_patients (Abadi et al. 2016, algorithm 1, with the patient as the
              record; "user-level sampling" of Charles et al. 2024, arXiv 2407.07737)
Guarantee     one step is the Poisson-subsampled Gaussian mechanism; `accounting.epsilon` composes the steps
Relation      add or remove all data of one patient; the clipped sum then moves by at most C in L2, in exact arithmetic
              (exact_sum.py)
Condition     the loss of a patient depends on that patient alone: no BatchNorm, no statistics across patients. `patients` are
              handles: going through them touches no data and cannot fail, what is read is read inside `loss`

A patient's contribution is a total function. Whatever `loss` does, short of ending the process, a step is taken and noise is
released: that a step failed would be an answer without noise.

| edge case                        | what happens                                                                |
|----------------------------------|-----------------------------------------------------------------------------|
| nobody sampled                   | the sum is zero; noise is added, the optimizer steps, the step is accounted |
| NaN or infinite gradient         | that patient contributes exactly zero and is counted in `rejected`          |
| an exception inside `loss`       | the same; a local line of the log names its type and nothing else           |
| the loss has no gradient         | the same: it is no scalar, or no parameter has a part in it                 |
| KeyboardInterrupt, SystemExit    | end the step: somebody else wants it                                        |
| a device-side assert of CUDA     | ends everything on that device, the noise too: check indices before         |
| an error while going through `patients` | is raised: to go on would make all patients behind it count for one  |
| zero gradient, or of any size    | see exact_sum.py                                                            |
| parameter unused by the loss     | its gradient is zero                                                        |
| parameter not float32            | PrivacyError: use autocast inside the loss                                  |
| settings out of the ranges below | PrivacyError. Inside them the noised sum stays below 1e25: always finite    |
| weights that became infinite     | post-processing of noised sums; later patients contribute zero, noise goes on |
| noise_multiplier 0               | no noise, epsilon is infinite; for tests and non-private baselines          |
| max_grad_norm None               | no clipping, no norm, no guard: the baseline, summed in float32, errors are |
|                                  | raised; PrivacyError if noise is asked                                      |

| setting            | range            |
|--------------------|------------------|
| max_grad_norm      | 1e-6 to 1e6      |
| noise_multiplier   | 0, 1e-9 to 1e9   |
| sampling_rate      | 1e-9 to 1        |
| expected_patients  | 1 to 1e9         |

Why not Opacus' per-sample hooks: they are wrong after attention (tests/privacy/test_sgd.py shows it), cost 2.4-3 times
as much, and bound a slice rather than a patient. bf16 autocast and torch.compile are fine inside `loss`.

Left out: the loss itself (shared/diffusion.py), the loop and the ledger (client/train.py).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping

from privacy.exact_sum import FRACTION_BITS, Clipping, ExactSum, check, unit
from privacy.noise import SecureRandom
from shared.errors import PrivacyError

LOG = logging.getLogger("fedsynth.privacy")
T = TypeVar("T")

GRID_BITS = 20  # the released sum lies on a grid of 2^-20 of its noise: a millionth of a standard deviation
NOISE = 1e-9, 1e9
RATE = 1e-9, 1.0
PATIENTS = 1, 10**9


@dataclass(frozen=True)
class ClippedSum:
    """The sum of the patients' clipped gradients, before noise: private, never to be sent or logged.

    totals        whole numbers of `unit`, exact, one tensor for each parameter, in their order; float32 without clipping
    unit          what one of them stands for: max_grad_norm / 2^24; 1 without clipping
    sensitivity   how far adding or removing one patient can move `totals` times `unit`, L2; infinite without clipping
    rejected      patients whose loss failed or whose gradient was not finite; also private
    """

    totals: list[torch.Tensor]
    unit: float
    sensitivity: float
    rejected: int

    @property
    def gradients(self) -> list[torch.Tensor]:
        """The sum as float32, for a look at it: rounded, so one patient may move it by a little more than `sensitivity`."""
        return [(total.double() * self.unit).float() for total in self.totals]


def clipped_sum(
    loss: Callable[[T], torch.Tensor],
    patients: Iterable[T],
    parameters: Sequence[torch.nn.Parameter],
    *,
    max_grad_norm: float | None,
    clipping: Clipping = "fixed",
) -> ClippedSum:
    """Clip each patient's gradient and add them up. See the top of this file for the guarantee and the edge cases.

    loss            maps one patient (its slices times its noise draws) to a scalar, the mean over its draws
    patients        read lazily, one in memory at a time
    max_grad_norm   C, the L2 bound of one patient's gradient over all parameters together; None: no clipping
    clipping        "fixed" or "automatic", see `exact_sum.ExactSum`
    """
    if max_grad_norm is None:
        return _plain_sum(loss, patients, parameters)
    total = ExactSum(parameters, max_grad_norm, clipping)
    rejected, failed = 0, Counter[str]()
    for patient in patients:
        try:
            counted = total.add(torch.autograd.grad(loss(patient), parameters, materialize_grads=True))
        except Exception as error:  # noqa: BLE001 - a step that fails for one patient tells that this patient is in it
            failed[type(error).__name__] += 1
            counted = False
        rejected += not counted
    for name, patients_ in failed.items():
        LOG.warning("the loss of %d patients raised %s; they contribute zero to this step", patients_, name)
    return ClippedSum(total.totals(), unit(max_grad_norm), max_grad_norm, rejected)


def _plain_sum(
    loss: Callable[[T], torch.Tensor], patients: Iterable[T], parameters: Sequence[torch.nn.Parameter]
) -> ClippedSum:
    """Without a bound, which protects nobody: the baseline."""
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for patient in patients:
        found = torch.autograd.grad(loss(patient), parameters, materialize_grads=True)
        torch._foreach_add_(total, found)
        del found  # free this patient's gradients before the next forward pass
    return ClippedSum(total, unit(None), math.inf, 0)


class PatientOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # opacus ships no types
    """Adds the noise to a clipped sum, divides by a public constant, and steps the wrapped optimizer.

    optimizer           any torch optimizer over float32 parameters
    noise_multiplier    standard deviation of the noise over `max_grad_norm`; 0: none
    max_grad_norm       C; None only without noise
    sampling_rate       probability that a patient takes part in a step
    expected_patients   public constant; sampling_rate * expected_patients divides the sum. Never the true batch size
    noise               source of randomness; None: a fresh one, keyed by the operating system

    The noise is float64, is added in float64, and the result is rounded to a fixed grid of about 2^-20 noise standard
    deviations before anything sees it. The grid depends on public settings alone, so the rounding is post-processing;
    it hides the low bits by which floating-point Gaussian noise gives its input away (Mironov 2012).

    Raises PrivacyError when a setting is out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float | None,
        sampling_rate: float,
        expected_patients: int,
        noise: SecureRandom | None = None,
    ) -> None:
        if max_grad_norm is not None:
            check(max_grad_norm)
        if noise_multiplier != 0 and not NOISE[0] <= noise_multiplier <= NOISE[1]:
            raise PrivacyError(
                f"noise_multiplier is {noise_multiplier}; it is 0, or between {NOISE[0]:g} and {NOISE[1]:g}"
            )
        if noise_multiplier > 0 and max_grad_norm is None:
            raise PrivacyError("noise without max_grad_norm protects nobody; set max_grad_norm")
        if not RATE[0] <= sampling_rate <= RATE[1] or not PATIENTS[0] <= expected_patients <= PATIENTS[1]:
            raise PrivacyError(
                f"sampling_rate {sampling_rate} and expected_patients {expected_patients}: the rate lies between "
                f"{RATE[0]:g} and {RATE[1]:g}, the number between {PATIENTS[0]} and {PATIENTS[1]}"
            )
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=sampling_rate * expected_patients,
        )
        if any(p.dtype != torch.float32 for p in self.params):
            raise PrivacyError("trainable parameters must be float32; use autocast inside the loss for bfloat16")
        self.noise = noise or SecureRandom()

    def accumulate(self) -> None:
        """`private_step` has put its exact sum into `p.summed_grad`; one that came in `p.grad`, as Opacus has it, counts too."""
        for p in self.params:
            if p.grad is not None:
                p.summed_grad, p.grad = p.grad.double() / unit(self.max_grad_norm), None

    def add_noise(self) -> None:
        """p.grad = round_to_grid(sum + N(0, std^2)), std = noise_multiplier * max_grad_norm; the sum is let go."""
        std = self.noise_multiplier * 2.0**FRACTION_BITS  # all in units of the sum, up to the last line
        grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS) if std > 0 else 0.0
        for p in self.params:
            if std > 0:
                value = torch.from_numpy(self.noise.gaussian(tuple(p.shape))).to(p.device)
                value.mul_(std).add_(p.summed_grad).div_(grid).round_().mul_(grid)
            else:
                value = p.summed_grad.double()
            p.grad, p.summed_grad = value.mul_(unit(self.max_grad_norm)).to(torch.float32), None


def private_step(
    loss: Callable[[T], torch.Tensor],
    patients: Iterable[T],
    optimizer: PatientOptimizer,
    *,
    clipping: Clipping = "fixed",
) -> ClippedSum:
    """One step of DP-SGD on the sampled `patients`, of whom there may be none.

    The same function is the non-private baseline: `noise_multiplier=0, max_grad_norm=None`.

    Returns what `clipped_sum` found with `totals` left empty: the sum without noise stays in here. The step counts
    as spent even when it fails half-way, so reserve it in the ledger first.
    """
    parameters = optimizer.params
    found = clipped_sum(loss, patients, parameters, max_grad_norm=optimizer.max_grad_norm, clipping=clipping)
    optimizer.zero_grad(set_to_none=True)  # here: what a `backward()` inside `loss` left in p.grad was never clipped
    for p, total in zip(parameters, found.totals, strict=True):
        p.summed_grad = total
    found = dataclasses.replace(found, totals=[])
    optimizer.step()
    return found
