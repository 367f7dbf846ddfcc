"""How much several plans cost together, when each may be chosen after looking at what those before it gave: a privacy filter.

A plan is a run whose noise, sampling rates and steps are fixed before the first of its steps: inside it, composing privacy loss
distributions is exact (accounting.py). Between plans it is not: a coordinator that takes the next settings from the last answers
reaches epsilon 9.45 where that composition says 8, in two steps (simulations/benchmarks/adaptive_coordinator.py);
that a filter of this natural kind is not valid in general is shown in arXiv 2602.06756.

Guarantee     while `epsilon(plans, delta)` <= cap is asked before each plan, and refused otherwise, everything together is
              (cap, delta)-DP, whatever was looked at before the plans were chosen, stopped or interleaved. It is a filter: the
              guarantee is the *cap*. The number for less is no statement about a ledger that happened to stop there (an odometer,
              which cannot be had as cheaply: Rogers et al. 2016, arXiv 1605.08294)
Relation      add or remove all data of one patient; both directions
The account   epsilon of [PLD of the first plan] x [Gaussian of mu = sqrt(sum of mu_i^2 of the later plans)], at (1 - A) delta, with
              A = `ALLOWANCE`; with one plan only, its PLD at delta

Why it holds. Let delta_M(e) = sup P(loss > e) - exp(e) Q(loss > e) for all real e, and H(e, m) that of the Gaussian with mu^2 = m.
1. A later plan i, at rate 1 throughout, is the Gaussian of mu_i^2 = sum of steps / noise^2. A sampled one lies under a Gaussian
   but for d_i: delta_i(e) <= d_i + (1 - d_i) H(e, mu_i^2) for all e >= 0 in both directions, and so for all real e. It is therefore
   no more than a process on that Gaussian, which with probability d_i may see everything (Blackwell; Dong, Roth and Su
   2022, theorem 2).
2. Gaussians compose under full adaptivity as if they had been fixed (Smith and Thakurta 2022, arXiv 2210.17520; Koskela et
   al. 2023, arXiv 2209.15596). In short: with mu^2 = m left, let V be the most that can be reached. By induction over the plans
   V(e, m) <= sup over a <= m of E[H(e - loss_a, m - a)] = H(e, m), because the losses of Gaussians add up to one of the sum.
3. The first plan is fixed before anything is seen of the patient, so V after it is at most E[H(e - loss_1, m)]: the
   composition of its PLD with the Gaussian of m.
4. The chance that any plan ever "sees everything" is at most the sum of all d_i, which is at most A delta however many plans
   come: plan i of those that need one takes d_i = A delta / (n k (k + 1)), n = 2^(k-1) <= i < 2^k. It is taken off delta as
   a whole and in advance: were it taken off as it is used, a coordinator could choose, by what it saw, between the plans
   that need it and more of those that do not.
5. Plans that run side by side are covered too: a filter that is valid for mechanisms which answer once is valid for
   interactive ones that interleave (Haney et al. 2023, arXiv 2309.05901, for f-DP; Vadhan and Zhang 2023, arXiv 2207.08335).

| edge case                                  | what happens                                                             |
|--------------------------------------------|--------------------------------------------------------------------------|
| no plans, or plans without steps           | 0; plans without steps are as if they were not there                     |
| one plan                                   | its PLD, at delta                                                        |
| all at rate 1                              | the exact Gaussian at (1 - A) delta: at epsilon 8 that is 0.004 more     |
| noise 0                                    | infinite                                                                 |
| tiny noise at a tiny rate                  | counts as rate 1 (`accounting.FAINT`)                                    |
| a sampled plan that no Gaussian lies above | counted at rate 1, which is never less than the truth                    |

The domination is looked at on a grid: delta_i and H both fall, so delta_i(e_k) <= d + (1 - d) H(e_k+1, m) for all k covers
what lies between, and from the last point on delta_i <= d. delta_i is that of accounting.py, at or above the truth.

Left out: whom a plan touched (ledger_members.py), and what is on record (ledger.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from privacy import accounting
from privacy.accounting import Event
from shared.errors import PrivacyError

ALLOWANCE = 0.01  # A: the part of delta for what lies above a Gaussian
COARSER = 8  # than the grid of the record, for several plans: 1e-5 higher, five times as fast
POINTS = 3_000  # of the grid on which domination is looked at
SPREAD = [
    float(e) for e in np.geomspace(1e-4, 600.0, 300)
]  # where it is looked for how far that grid must reach; exp() ends at 709


def epsilon(plans: Sequence[Sequence[Event]], delta: float) -> float:
    """Epsilon per patient of `plans`, in the order in which they were fixed, as the filter counts it. See the top of this file."""
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}; it lies between 0 and 1, and well under one over the patients")
    working = [tuple(e for e in plan if e.steps and e.sampling_rate) for plan in plans]
    first, *later = [plan for plan in working if plan] or [()]
    if not later:
        return accounting.epsilon(first, delta)
    sampled, squares = 0, []
    for plan in later:
        if (at_rate_1 := _square(plan)) < math.inf and any(e.sampling_rate < 1 for e in plan):
            sampled += 1
            squares.append(min(at_rate_1, _dominating(plan, _share(sampled) * ALLOWANCE * delta) ** 2))
        else:
            squares.append(at_rate_1)
    if not math.isfinite(total := math.fsum(squares)):
        return math.inf
    rest = [Event(1 / math.sqrt(total), 1.0, 1)] if total else []
    return accounting.epsilon([*first, *rest], (1 - ALLOWANCE) * delta, COARSER)


def _share(number: int) -> float:
    """The part of the allowance for the plan of this number, from 1. All together at most 1; equal for 1, 2, 4, ... plans."""
    k = number.bit_length()
    return 1.0 / (1 << (k - 1)) / (k * (k + 1))


def _square(plan: Sequence[Event]) -> float:
    """mu^2 of a plan if all its steps had rate 1."""
    faint = any(e.noise_multiplier < accounting.NONE for e in plan)
    return math.inf if faint else math.fsum(e.steps / e.noise_multiplier / e.noise_multiplier for e in plan)


@lru_cache(maxsize=1024)
def _dominating(plan: tuple[Event, ...], d: float) -> float:
    """The smallest mu (to 1e-4) of which delta_plan <= d + (1 - d) delta_mu everywhere. Infinite when there is none."""
    epsilons, found = _profile(plan, d)
    if not len(epsilons):
        return math.inf
    ends, needed = epsilons[1:], (found[:-1] - d) / (1 - d)
    ends, needed = ends[needed > 0], needed[needed > 0]
    low, high = np.full(len(ends), 1e-9), np.full(len(ends), 1e6)
    if not len(ends) or not (accounting.gaussian_deltas(high, ends) >= needed).all():
        return math.inf if len(ends) else 0.0
    for _ in range(60):
        middle = np.sqrt(low * high)
        enough = accounting.gaussian_deltas(middle, ends) >= needed
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return float(high.max())


@lru_cache(maxsize=64)
def _profile(plan: tuple[Event, ...], d: float) -> tuple[np.ndarray, np.ndarray]:
    """Epsilons from 0 to where delta is at most `d`, and delta at each. Empty when it stays above."""
    reach = next((e for e, found in zip(SPREAD, accounting.deltas(plan, SPREAD), strict=True) if found <= d), None)
    if reach is None:
        return np.empty(0), np.empty(0)
    epsilons = [float(e) for e in np.linspace(0.0, reach, POINTS + 1)]
    return np.array(epsilons), np.array(accounting.deltas(plan, epsilons))
