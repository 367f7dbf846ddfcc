"""From what was done to an epsilon per patient, and from a target epsilon to the noise.

Mechanism     compositions of the Poisson-subsampled Gaussian mechanism, each an `Event`
Relation      add or remove all data of one patient (dp-accounting: ADD_OR_REMOVE_ONE); the worse direction counts
Of record     privacy loss distributions of dp-accounting with connect-the-dots discretisation (Doroshenko et al. 2022,
              arXiv 2207.04380): always at or above the truth. Full batches are one Gaussian, for which the exact formula
              is used (Balle and Wang 2018, theorem 8)
In the loop   the PRV accountant of Opacus (Gopi et al. 2021, arXiv 2106.02848), within 0.02 of the record

| edge case                            | what happens                                                            |
|--------------------------------------|-------------------------------------------------------------------------|
| no events, 0 steps, or sampling_rate 0 | epsilon 0                                                             |
| noise_multiplier 0                   | epsilon infinite, unless the event has no steps or samples nobody       |
| noise_multiplier under `FAINT`       | counts as rate 1: delta forgives no telling of all, now and then        |
| one run in many small events         | the same epsilon as in one event: equal events are merged first         |
| very small or very large noise       | the discretisation follows the spread of the loss, so time stays bounded|
| target already spent                 | PrivacyError                                                            |

All this is for settings that are fixed beforehand; filters.py is for those that may follow from what was seen.
The GDP accountant (central limit theorem) is not here: it can report less than is spent (6.20 for 8.39).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import gaussian_mechanism
from dp_accounting.pld import privacy_loss_distribution as pld_lib
from scipy.optimize import brentq
from scipy.stats import norm

from shared.errors import PrivacyError

SMALLEST_NOISE, LARGEST_NOISE = 0.01, 1e6  # where `noise_multiplier_for` looks
NONE = 1e-6  # noise that counts as none: epsilon 5e11 and more, and arithmetic that ends
FAINT = 0.3  # noise under which one step at rate 1 costs epsilon 19 and more at delta 1e-5
GRID_POINTS = 200_000  # of one step's privacy loss; more points bring epsilon closer to the truth, from above

Merged = tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Event:
    """`steps` equal steps of DP-SGD. Raises PrivacyError when a value is out of range.

    noise_multiplier   standard deviation of the noise over the L2 bound of one patient, >= 0
    sampling_rate      probability that a patient takes part in a step, in [0, 1]
    steps              optimiser steps, >= 0
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        numbers = (self.noise_multiplier, self.sampling_rate)
        if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers) or type(self.steps) is not int:
            raise PrivacyError(f"an event needs two numbers and a whole number of steps, not {self}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise PrivacyError(f"noise_multiplier is {self.noise_multiplier}; it is finite and not negative")
        if not 0 <= self.sampling_rate <= 1:
            raise PrivacyError(f"sampling_rate is {self.sampling_rate}; it lies in [0, 1]")
        if not 0 <= self.steps < 2**53:
            raise PrivacyError("steps is negative, or 2**53 or more")

    def to_dict(self) -> dict[str, float | int]:
        """Plain values; `from_dict` gives the same event back, bit for bit, also through JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Event:
        """Exactly the three keys of `to_dict`. Raises PrivacyError otherwise."""
        if set(values) != {"noise_multiplier", "sampling_rate", "steps"}:
            raise PrivacyError(f"an event has noise_multiplier, sampling_rate and steps, not {sorted(values)}")
        return cls(values["noise_multiplier"], values["sampling_rate"], values["steps"])


def epsilon(events: Sequence[Event], delta: float, coarser: int = 1) -> float:
    """Epsilon per patient of all `events` together at `delta`; `coarser` than the grid of the record: faster, and never lower."""
    _check_delta(delta)
    return _epsilon(_merge(events), delta, coarser)


def deltas(events: Sequence[Event], epsilons: Sequence[float]) -> list[float]:
    """Delta of all `events` together at each epsilon >= 0: the whole profile, from which every attack is bounded.

    Any attack on one patient has TPR <= e^epsilon FPR + delta at every pair (Kairouz et al. 2015, theorem 2.1). On a grid
    32 times coarser.
    """
    merged = _merge(events)
    if not merged or any(noise == 0 for noise, _, _ in merged):
        return [float(bool(merged))] * len(epsilons)
    if all(rate == 1 for _, rate, _ in merged):
        mu, e = 1 / _full_batches(merged), np.asarray(epsilons, dtype=np.float64)
        return list(gaussian_deltas(np.full(len(e), mu), e))
    return [float(d) for d in _composed(merged, 32).get_delta_for_epsilon(list(epsilons))]


def gaussian_deltas(mus: np.ndarray, epsilons: np.ndarray) -> np.ndarray:
    """Delta of the Gaussian mechanism of each mu > 0 at each epsilon >= 0 (Balle and Wang 2018, theorem 8)."""
    low, high = -mus / 2 - epsilons / mus, mus / 2 - epsilons / mus
    return np.asarray(norm.cdf(high) - np.exp(epsilons + norm.logcdf(low)))


def epsilon_prv(events: Sequence[Event], delta: float) -> float:
    """The same by Opacus' PRV accountant (upper end of its interval). For progress lines, not for the record.

    Takes minutes for a million steps. Raises PrivacyError where its discretisation fails (noise far below 0.3).
    """
    from opacus.accountants import PRVAccountant  # noqa: PLC0415 - loads torch, which planning does not need

    _check_delta(delta)
    merged = _merge(events)
    if not merged or any(noise == 0 for noise, _, _ in merged):
        return _epsilon(merged, delta)
    accountant = PRVAccountant()
    accountant.history = list(merged)
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        # Opacus takes log(1 - rate) at rate 1 without using it, and sizes its grid by RDP, whose order is of no concern
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        try:
            return float(accountant.get_epsilon(delta))
        except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
            raise PrivacyError("the PRV accountant cannot treat this schedule; use the number of record") from error


def noise_multiplier_for(
    *, epsilon: float, delta: float, sampling_rate: float, steps: int, spent: Sequence[Event] = ()
) -> float:
    """The smallest noise multiplier of four significant digits whose `steps`, after `spent`, keep within `epsilon`.

    Judged by the number of record, so a new ledger with that cap accepts it. Raises PrivacyError when `spent` leaves
    nothing, or so little that more than 1e6 would be needed.
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf or steps < 1 or not 0 < sampling_rate <= 1:
        raise PrivacyError(
            f"cannot plan epsilon {epsilon}, sampling_rate {sampling_rate}, steps {steps}: epsilon is positive and "
            "finite, the rate lies in (0, 1], there is at least one step"
        )
    before = _epsilon(_merge(spent), delta)
    if before >= epsilon:
        raise PrivacyError(f"epsilon {before:.4g} per patient is already spent; the target is {epsilon:.4g}")

    def excess(noise: float, coarser: int = 1) -> float:
        total = _epsilon(_merge([*spent, Event(noise, sampling_rate, steps)]), delta, coarser)
        return math.log(max(total, 1e-12) / epsilon)

    rough = _root(lambda noise: excess(noise, 8), start=1.0, factor=2.0, tolerance=1e-3)
    noise = _root(excess, start=rough, factor=1.01, tolerance=5e-5) if rough < math.inf else rough
    if noise > LARGEST_NOISE:
        raise PrivacyError(
            f"epsilon {before:.4g} of {epsilon:.4g} is spent; no noise up to {LARGEST_NOISE:g} fits {steps} more steps "
            "into the rest: ask for fewer steps or a lower sampling rate"
        )
    noise = _digits(noise, 0)
    while noise > SMALLEST_NOISE and excess(_digits(noise, -1)) <= 0:
        noise = _digits(noise, -1)
    while excess(noise) > 0:
        noise = _digits(noise, +1)
    return noise


def nsr(*, parameters: int, noise_multiplier: float, sampling_rate: float, patients: int) -> float:
    """Noise over signal, per step, at one site: sqrt(d) noise_multiplier / (sampling_rate N).

    The expected norm of the noise over that of the sum when all expected patients pull fully the same way. Real gradients agree
    less, so a run sees more noise than this says. Published successes lie between 0.2 and 0.9.
    """
    if parameters < 1 or patients < 1 or not 0 < sampling_rate <= 1 or not noise_multiplier >= 0:
        raise PrivacyError("the noise-to-signal ratio needs parameters, patients and a sampling rate above zero")
    return math.sqrt(parameters) * noise_multiplier / (sampling_rate * patients)


def gdp_mu(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian that is exactly (epsilon, delta)-DP (Balle and Wang 2018, theorem 8): to read, not to account."""
    _check_delta(delta)
    if not epsilon >= 0:
        raise PrivacyError(f"epsilon is {epsilon}; it is not negative")
    return math.inf if epsilon == math.inf else 1 / float(gaussian_mechanism.get_sigma_gaussian(epsilon, delta))


@dataclass(frozen=True)
class Attack:
    """The best that any membership attack on one patient can do.

    auc           area under the ROC curve; 0.5 is guessing
    tpr_at_1pct   true positive rate at a false positive rate of 1 %; 0.01 is guessing
    """

    auc: float
    tpr_at_1pct: float


def best_attack(guarantee: float | Sequence[Event], delta: float) -> Attack:
    """Bound every membership attack, by the Gaussian mechanism equivalent to `guarantee` at `delta`.

    guarantee   an epsilon per patient, or the events it comes from

    AUC = Phi(mu / sqrt 2), TPR(a) = Phi(Phi^-1(a) + mu) (Dong, Roth and Su 2022, equation 6). Exact for full batches. With Poisson
    sampling it reads (epsilon, delta) as mu-GDP: the profiles agree at `delta` and may differ elsewhere.
    """
    mu = gdp_mu(guarantee if isinstance(guarantee, (int, float)) else epsilon(guarantee, delta), delta)
    return Attack(float(norm.cdf(mu / math.sqrt(2))), float(norm.cdf(norm.ppf(0.01) + mu)))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}; it lies between 0 and 1, and well under one over the patients")


def _merge(events: Sequence[Event]) -> Merged:
    """Equal steps added up, empty ones dropped, in a fixed order: the same history always gives the same number."""
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if event.steps and event.sampling_rate:
            rate = 1.0 if event.noise_multiplier < FAINT else float(event.sampling_rate)
            noise = 0.0 if event.noise_multiplier < NONE else min(float(event.noise_multiplier), LARGEST_NOISE)
            steps[noise, rate] = steps.get((noise, rate), 0) + event.steps
    return tuple((noise, rate, count) for (noise, rate), count in sorted(steps.items()))


@lru_cache(maxsize=256)
def _epsilon(merged: Merged, delta: float, coarser: int = 1) -> float:
    if not merged:
        return 0.0
    if any(noise == 0 for noise, _, _ in merged):
        return math.inf
    full = _full_batches(merged)
    if all(rate == 1 for _, rate, _ in merged):
        return float(gaussian_mechanism.get_epsilon_gaussian(full, delta))
    return float(_composed(merged, coarser).get_epsilon_for_delta(delta))


@lru_cache(maxsize=8)
def _composed(merged: Merged, coarser: int) -> Any:
    """The privacy loss distribution of steps of which at least one is sampled."""
    full, interval = _full_batches(merged), _interval(merged) * coarser
    parts = [_loss(noise, rate, count, interval) for noise, rate, count in merged if rate < 1]
    if full < math.inf:
        parts.append(_loss(full, 1.0, 1, interval))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


def _full_batches(merged: Merged) -> float:
    """All steps at rate 1 are one Gaussian: 1 / noise^2 adds up. Infinite when there is none."""
    precision = sum(count / noise**2 for noise, rate, count in merged if rate == 1)
    return 1 / math.sqrt(precision) if precision else math.inf


@lru_cache(maxsize=8)
def _loss(noise: float, rate: float, count: int, interval: float) -> Any:
    one = pld_lib.from_gaussian_mechanism(noise, value_discretization_interval=interval, sampling_prob=rate)
    return one.self_compose(count) if count > 1 else one


def _interval(merged: Merged) -> float:
    """A grid of `GRID_POINTS` over the widest loss, of one step or of the whole, in powers of two above 1e-5.

    A Gaussian of mu has losses within mu^2 / 2 + 12 mu. One step has mu = 1 / noise; the whole about
    rate sqrt(count (exp(1 / noise^2) - 1)), and never more than sqrt(count) / noise.
    """
    squares = 0.0
    for noise, rate, count in merged:
        amplified = rate**2 * math.expm1(min(1 / noise**2, 600.0))
        squares += count * min(amplified, 1 / noise**2)
    widest = max(math.sqrt(squares), *(1 / noise for noise, rate, _ in merged if rate < 1))
    points = (widest**2 / 2 + 12 * widest) / (GRID_POINTS * 1e-5)
    return 1e-5 * 2.0 ** max(0, math.ceil(math.log2(points)))


def _root(excess: Callable[[float], float], *, start: float, factor: float, tolerance: float) -> float:
    """Where the decreasing `excess` crosses 0, to a relative `tolerance`. Infinite beyond the largest noise."""
    low = high = start
    while excess(low) <= 0:
        if low <= SMALLEST_NOISE:
            return SMALLEST_NOISE
        high, low, factor = low, max(low / factor, SMALLEST_NOISE), min(factor**2, 2.0)
    while excess(high) > 0:
        if high > LARGEST_NOISE:
            return math.inf
        low, high, factor = high, high * factor, min(factor**2, 2.0)
    return math.exp(brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=tolerance))


def _digits(value: float, places: int) -> float:
    """Round `value` up to four significant digits, then move by `places` of the last digit."""
    unit = Decimal(1).scaleb(Decimal(repr(value)).adjusted() - 3)
    units = (Decimal(repr(value)) / unit).to_integral_value(ROUND_CEILING)
    return float((units + places) * unit)
