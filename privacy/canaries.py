"""Canary patients: made-up patients whose gradient is known, put among real ones to see how well they can be found.

Mechanism     m orthonormal directions u_j. A canary's loss is linear, so its gradient is exactly `LOUD` max_grad_norm u_j,
              far beyond the bound: clipping has to act. Half of them, by fair coins, join the cohort and are sampled, clipped,
              summed and noised by the code under audit like anybody else
Observation   x_tj = <released sum of step t - clipped gradients of the others, u_j> / max_grad_norm. Under the stated
              mechanism x_tj ~ N(b, noise_multiplier^2), b = 1 in the steps in which canary j takes part, else 0
Adversary     the one of the definition: knows everybody else's gradients and each step's noised sum, but not the coin (the
              white-box threat model of Nasr et al. 2021, arXiv 2101.04535, and 2023, arXiv 2302.07956)

The clipped gradients of the others are computed here a second time, in float64, by a formula of our own, not by the code
under audit.

| edge case                          | what happens                                                           |
|------------------------------------|------------------------------------------------------------------------|
| more canaries than parameters / 4  | PrivacyError: ask for fewer a run, and repeat runs                     |
| nobody sampled                     | the step is observed all the same: the noise alone                     |
| a patient's gradient is not finite | counts as zero, as `sgd` promises                                      |
| no clipping                        | PrivacyError: without a bound there is nothing to audit                |

Left out: the coins and the cohort (client/audit_run.py) and what follows from the observations (verifier.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privacy.exact_sum import GAMMA, Clipping
from privacy.sgd import PatientOptimizer, private_step
from shared.errors import PrivacyError

T = TypeVar("T")

LOUD = 1000.0  # norm of a canary's gradient over max_grad_norm
SPREAD = (
    4  # parameters of one direction, at least: it then crosses several tensors and sees a bound kept per tensor only
)


class Directions:
    """m orthonormal directions: direction j has random signs on the coordinates j, j + m, j + 2m, ..., and zeros elsewhere.

    Memory is that of one gradient, whatever m. Coordinates run over all parameters, one tensor after another.
    """

    def __init__(self, sizes: Sequence[int], count: int, rng: np.random.Generator) -> None:
        total = sum(sizes)
        if not 1 <= count <= most(total):
            raise PrivacyError(f"{count} canaries do not fit into {total} parameters; one run holds 1 to {most(total)}")
        self.count, self.total = count, total
        signs = torch.from_numpy(rng.integers(2, size=total).astype(np.float32) * 2 - 1)
        self.length_J = np.sqrt(np.bincount(np.arange(total) % count, minlength=count))  # of the signs alone
        self.signs = list(signs.split(list(sizes)))
        self.starts = np.cumsum([0, *sizes[:-1]])

    def loss(self, j: int, parameters: Sequence[Tensor], norm: float) -> Tensor:
        """Scalar whose gradient is `norm` u_j."""
        value = parameters[0].new_zeros(())
        for p, signs, start in zip(parameters, self.signs, self.starts, strict=True):
            mine = slice(int(j - start) % self.count, None, self.count)
            value = value + (p.reshape(-1)[mine] * signs[mine].to(p.device)).sum()
        return value * (norm / float(self.length_J[j]))

    def project(self, tensors: Sequence[Tensor | None]) -> NDArray[np.float64]:
        """<v, u_j> for all j, (m,) float64; v is given tensor by tensor, None for zeros."""
        flat = torch.zeros(math.ceil(self.total / self.count) * self.count, dtype=torch.float64)
        for tensor, signs, start in zip(tensors, self.signs, self.starts, strict=True):
            if tensor is not None:
                flat[start : start + len(signs)] = tensor.detach().reshape(-1).cpu().double() * signs
        return np.asarray(flat.view(-1, self.count).sum(0).numpy() / self.length_J)


def most(parameters: int) -> int:
    """How many canaries fit into one run."""
    return parameters // SPREAD


class Watch(Generic[T]):
    """Stands where `private_step` stands, adds the canaries' losses, and writes down what each step gives away.

    name       the name of a patient; names in `canaries` get the loss of that direction instead of their own
    canaries   name -> direction, also of canaries that never take part
    step       the step under audit
    observed   x_tj for every step so far, (m,) each
    taken      names that took part in every step so far
    """

    def __init__(
        self,
        name: Callable[[T], str],
        canaries: Mapping[str, int],
        *,
        step: Callable[..., object] = private_step,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.name, self.canaries, self.step = name, canaries, step
        self.rng = np.random.default_rng() if rng is None else rng
        self.observed: list[NDArray[np.float64]] = []
        self.taken: list[set[str]] = []
        self._directions: Directions | None = None

    def __call__(
        self,
        loss: Callable[[T], Tensor],
        patients: Iterable[T],
        optimizer: PatientOptimizer,
        *,
        clipping: Clipping = "fixed",
    ) -> None:
        bound = optimizer.max_grad_norm
        if bound is None:
            raise PrivacyError("without max_grad_norm nothing is promised, so there is nothing to audit")
        parameters: list[Tensor] = optimizer.params
        if self._directions is None:
            self._directions = Directions([p.numel() for p in parameters], len(self.canaries), self.rng)
        directions, others, taken = self._directions, np.zeros(len(self.canaries)), set()

        def watched(patient: T) -> Tensor:
            name = self.name(patient)
            taken.add(name)
            if name in self.canaries:
                return directions.loss(self.canaries[name], parameters, LOUD * bound)
            value = loss(patient)
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
            if math.isfinite(norm):
                factor = bound / (norm + GAMMA) if clipping == "automatic" else min(1.0, bound / max(norm, 1e-30))
                np.add(others, factor * directions.project(gradients), out=others)
            return value

        self.step(watched, patients, optimizer, clipping=clipping)
        released = directions.project([p.grad for p in parameters]) * optimizer.expected_batch_size
        self.observed.append((released - others) / bound)
        self.taken.append(taken)
