"""The sum of the patients' clipped gradients, exact: adding or removing one patient moves it by that patient's contribution alone.

Mechanism     a contribution is clip(g, C) in units of C / 2^24, each coordinate cut towards zero to a whole number. It is computed
              from that patient's gradient and public constants. Whole numbers are added as integers: no rounding, any order
Guarantee     the L2 norm of a contribution is at most C, rounding included, for any number of parameters; so is what one
              patient moves the sum by
Relation      add or remove all data of one patient

Why at most C     The norm, in float64, is off by 10^9 2^-53 = 1.1e-7 of itself at most with 10^9 parameters. The scale is
                  2^24 / max(norm (1 + 1e-6), C), in float32: off by 2^-24 = 6e-8, and a product with it by as much again.
                  1.1e-7 + 2 * 6e-8 < 1e-6, so the product is no longer than 2^24. Cutting towards zero lengthens nothing (rounding
                  to nearest would, by sqrt(d) / 2 units: 1e-3 C with 10^9 parameters)
Why it cannot overflow     a coordinate of a contribution is at most 2^24. int32 holds 127 of them; from the 128th patient on it is
                           int64, which holds 2^39 patients. float64 still holds the sum of 2^29 patients without rounding, so
                           adding noise rounds once, after the noise
What cutting costs     less than 2^-24 C = 6e-8 C a coordinate and patient, towards zero, far below the noise

| edge case                          | what happens                                                                          |
|------------------------------------|---------------------------------------------------------------------------------------|
| NaN or infinite gradient           | adds nothing, and `add` says so                                                       |
| a gradient of any finite size      | is scaled like any other; the scale, 2^24 / 1e43 to 2^24 / 1e-6, is a normal float32  |
| denormal numbers                   | far below one unit: zero, whether the processor knows them or takes them for zero     |
| zero gradient                      | contributes zero, no division by zero: C is at least 1e-6                             |
| two gradients in one memory        | each is copied before it is scaled                                                    |
| another type than float32          | converted first; what is clipped is what is added                                     |
| memory runs out                    | MemoryError or RuntimeError, and nothing was added                                    |
| more than 127 patients             | four bytes a parameter more than float32 would take; up to then, none                 |

Left out: whose gradient it is and what to do when there is none (sgd.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from shared.errors import PrivacyError

Clipping = Literal["fixed", "automatic"]

GAMMA = 0.01  # stability constant of automatic clipping, Bu et al. 2022, section 4.2
MARGIN = 1e-6  # more than all roundings of a contribution together
FRACTION_BITS = 24  # near C as fine as float32
SMALLEST, LARGEST = 1e-6, 1e6  # of max_grad_norm: all scales and sums stay far inside the range of float32
BLOCK = 1 << 18  # values of which the norm is taken at once: float64 copies stay small


class ExactSum:
    """Adds one patient's gradient after another.

    parameters      what the gradients belong to; all on one device
    max_grad_norm   C, the L2 bound of one patient's gradient over all parameters together
    clipping        "fixed": g min(1, C / ||g||) (Abadi et al. 2016); "automatic": g C / (||g|| + 0.01) (Bu et al. 2022,
                    arXiv 2206.07136, equation 4.1). Sensitivity C both ways

    Raises PrivacyError when a setting is out of range.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], max_grad_norm: float, clipping: Clipping) -> None:
        check(max_grad_norm)
        if clipping not in ("fixed", "automatic"):
            raise PrivacyError(f'clipping is "{clipping}"; choose "fixed" or "automatic"')
        self._max_grad_norm, self._clipping = max_grad_norm, clipping
        self._shapes = [p.shape for p in parameters]
        self._total = torch.zeros(
            sum(p.numel() for p in parameters), dtype=torch.int32, device=parameters[0].device if parameters else None
        )
        self._free = 2 ** (31 - FRACTION_BITS) - 1  # contributions that still fit

    def add(self, gradients: Sequence[torch.Tensor]) -> bool:
        """Add the contribution of one patient whole, or nothing: False when a gradient is not finite."""
        contribution = self._contribution(gradients)
        if contribution is None:
            return False
        self._include(contribution)
        return True

    def _contribution(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """In units, (d,) int32."""
        flat = torch.cat([g.flatten() for g in gradients]).float()  # a copy: scaled in place below
        # float64: summed in float32 the norm of 10^7 values comes out 4e-4 too low, and C would not be C
        norms = [torch.linalg.vector_norm(block, dtype=torch.float64) for block in flat.split(BLOCK)]
        norm = (norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))).item()  # the only wait
        if not math.isfinite(norm):
            return None
        return flat.mul_(self._scale(norm)).to(torch.int32)  # a conversion to whole numbers cuts towards zero

    def _include(self, contribution: torch.Tensor) -> None:
        if self._free == 0:
            self._total = self._total.to(torch.int64)
        self._total.add_(contribution)
        self._free -= 1

    def _scale(self, norm: float) -> float:
        """Units over the length of a gradient."""
        norm *= 1 + MARGIN
        return 2.0**FRACTION_BITS / (norm + GAMMA if self._clipping == "automatic" else max(norm, self._max_grad_norm))

    def totals(self) -> list[torch.Tensor]:
        """The sum in units, int32 or int64, one tensor for each parameter, in their order."""
        parts = self._total.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def unit(max_grad_norm: float | None) -> float:
    """What one unit of the sum stands for: C / 2^24; 1 without clipping, where nothing is counted in units."""
    return 1.0 if max_grad_norm is None else max_grad_norm * 2.0**-FRACTION_BITS


def check(max_grad_norm: float) -> None:
    if not SMALLEST <= max_grad_norm <= LARGEST:  # false for NaN too
        raise PrivacyError(f"max_grad_norm is {max_grad_norm:g}; it lies between {SMALLEST:g} and {LARGEST:g}")
