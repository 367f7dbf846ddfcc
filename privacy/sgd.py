"""Patient-level DP-SGD: one patient = one micro-batch = one clipped gradient.

Mechanism     sum over the Poisson-sampled patients of clip(g_i, C), plus N(0, (noise_multiplier C)^2 I), divided by the
              public constant sampling_rate * expected_patients (Abadi et al. 2016, algorithm 1, with the patient as the
              record; "user-level sampling" of Charles et al. 2024, arXiv 2407.07737)
Guarantee     one step is the Poisson-subsampled Gaussian mechanism; `accounting.epsilon` composes the steps
Relation      add or remove all data of one patient; the clipped sum then moves by at most C in L2
Condition     the loss of a patient depends on that patient alone: no BatchNorm, no statistics across patients

| edge case                        | what happens                                                                |
|----------------------------------|-----------------------------------------------------------------------------|
| nobody sampled                   | the sum is zero; noise is added, the optimizer steps, the step is accounted |
| NaN or infinite gradient         | that patient contributes exactly zero and is counted in `rejected`          |
| a gradient norm beyond 1e30 C    | the same: a smaller factor would lose its precision in float32              |
| zero gradient                    | contributes zero, no division by zero                                       |
| parameter unused by the loss     | its gradient is zero                                                        |
| parameter not float32            | PrivacyError: rounding the sum would change the sensitivity                 |
| noise_multiplier 0               | no noise, epsilon is infinite; for tests and non-private baselines          |
| max_grad_norm None               | no clipping, no norm, no guard: the baseline; PrivacyError if noise is asked|

Why not Opacus' per-sample hooks: they are wrong after attention (tests/test_privacy_sgd.py shows it), cost 2.4-3 times
as much, and bound a slice rather than a patient. bf16 autocast and torch.compile are fine inside `loss`.

Left out: the loss itself (shared/diffusion.py), the loop and the ledger (client/train.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping

from privacy.noise import SecureRandom
from shared.errors import PrivacyError

T = TypeVar("T")
Clipping = Literal["fixed", "automatic"]

GAMMA = 0.01  # stability constant of automatic clipping, Bu et al. 2022, section 4.2
MARGIN = 1e-6  # covers the rounding of the scaled gradient to float32
SMALLEST_FACTOR = 1e-30  # below this a float32 factor is no longer exact to 1e-7
GRID_BITS = 20  # the released sum lies on a grid of 2^-20 of its noise: a millionth of a standard deviation


@dataclass(frozen=True)
class ClippedSum:
    """The sum of the patients' clipped gradients, before noise: private, never to be sent or logged.

    gradients     float32, one for each parameter, in their order
    sensitivity   how far adding or removing one patient can move `gradients`, L2; infinite without clipping
    rejected      patients whose gradient was not finite; also private
    """

    gradients: list[torch.Tensor]
    sensitivity: float
    rejected: int


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
    clipping        "fixed": g min(1, C / ||g||) (Abadi et al. 2016); "automatic": g C / (||g|| + 0.01) (Bu et al. 2022,
                    arXiv 2206.07136, equation 4.1). Sensitivity C both ways
    """
    _check_clipping(max_grad_norm, clipping)
    total = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    rejected = 0
    for patient in patients:
        found = torch.autograd.grad(loss(patient), parameters, allow_unused=True)
        used = [(t, g.float()) for t, g in zip(total, found, strict=True) if g is not None]
        del found
        if not used:
            continue
        totals, gradients = [t for t, _ in used], [g for _, g in used]
        if max_grad_norm is None:
            torch._foreach_add_(totals, gradients)
        else:
            # float64: summed in float32 the norm of 10^7 values comes out 4e-4 too low, and C would not be C
            norms = torch.stack(list(torch._foreach_norm(gradients, 2, torch.float64)))
            norm = torch.linalg.vector_norm(norms).item()  # the only wait for the device
            factor = _factor(norm, max_grad_norm, clipping) if math.isfinite(norm) else 0.0
            if factor < SMALLEST_FACTOR:
                rejected += 1
            else:
                torch._foreach_add_(totals, gradients, alpha=factor)
        del used, gradients  # free this patient's gradients before the next forward pass
    return ClippedSum(total, math.inf if max_grad_norm is None else max_grad_norm, rejected)


def _factor(norm: float, max_grad_norm: float, clipping: Clipping) -> float:
    norm *= 1 + MARGIN
    return max_grad_norm / (norm + GAMMA) if clipping == "automatic" else min(1.0, max_grad_norm / max(norm, 1e-30))


def _check_clipping(max_grad_norm: float | None, clipping: str) -> None:
    if max_grad_norm is not None and not (0 < max_grad_norm < math.inf):
        raise PrivacyError(f"max_grad_norm is {max_grad_norm}; it is positive and finite, or none without privacy")
    if clipping not in ("fixed", "automatic"):
        raise PrivacyError(f'clipping is "{clipping}"; choose "fixed" or "automatic"')


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
        _check_clipping(max_grad_norm, "fixed")
        if not (0 <= noise_multiplier < math.inf):
            raise PrivacyError(f"noise_multiplier is {noise_multiplier}; it is finite and not negative")
        if noise_multiplier > 0 and max_grad_norm is None:
            raise PrivacyError("noise without max_grad_norm protects nobody; set max_grad_norm")
        if not 0 < sampling_rate <= 1 or expected_patients < 1:
            raise PrivacyError(
                f"sampling_rate {sampling_rate} and expected_patients {expected_patients}: the rate lies in (0, 1], "
                "the number is at least 1"
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
        """Hand `p.grad` over as the sum of this step, without Opacus' copy."""
        for p in self.params:
            p.summed_grad, p.grad = p.grad, None

    def add_noise(self) -> None:
        """p.grad = round_to_grid(sum + N(0, std^2)), std = noise_multiplier * max_grad_norm; the sum is let go."""
        std = self.noise_multiplier * (self.max_grad_norm or 0.0)
        grid = 2.0 ** (math.floor(math.log2(std)) - GRID_BITS) if std > 0 else 0.0
        for p in self.params:
            if std > 0:
                value = torch.from_numpy(self.noise.gaussian(tuple(p.shape))).to(p.device)
                value.mul_(std).add_(p.summed_grad).div_(grid).round_().mul_(grid)
                p.grad = value.to(torch.float32)
            else:
                p.grad = p.summed_grad
            p.summed_grad = None


def private_step(
    loss: Callable[[T], torch.Tensor],
    patients: Iterable[T],
    optimizer: PatientOptimizer,
    *,
    clipping: Clipping = "fixed",
) -> ClippedSum:
    """One step of DP-SGD on the sampled `patients`, of whom there may be none.

    The same function is the non-private baseline: `noise_multiplier=0, max_grad_norm=None`.

    Returns what `clipped_sum` found with `gradients` left empty: the sum without noise stays in here. The step counts
    as spent even when it fails half-way, so reserve it in the ledger first.
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = optimizer.params
    found = clipped_sum(loss, patients, parameters, max_grad_norm=optimizer.max_grad_norm, clipping=clipping)
    for p, gradient in zip(parameters, found.gradients, strict=True):
        p.grad = gradient
    found = dataclasses.replace(found, gradients=[])
    optimizer.step()
    return found
