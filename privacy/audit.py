"""From canaries that were found to a lower bound on epsilon, and a test of the sampler. Evidence, never a guarantee.

Bound         A canary is guessed "in" when its likelihood ratio is above a threshold. The threshold is chosen on every other
              canary; the rest are counted. True and false positive rates get Clopper-Pearson bounds, (1 - confidence) / 2 each.
              Every Poisson-subsampled Gaussian mechanism limits what an attack can reach (its profile, `accounting.deltas`).
              The bound is the epsilon of the largest noise multiplier that could still have allowed what was seen, at the
              stated rate and number of steps. After Nasr et al. 2023 (arXiv 2302.07956: audit against the f-DP curve of the
              mechanism rather than a single epsilon, delta) with many canaries a run (Andrew et al. 2023, arXiv 2302.03098)
Confidence    If the code does what it states, the bound is above the stated epsilon with probability at most 1 - confidence:
              canaries have orthogonal directions, own coins and own sampling, so their scores are independent, and
              Clopper-Pearson is exact at every size. A bound above the stated epsilon so refutes the stated mechanism. Its
              value as *an* epsilon assumes in addition that the code is of the family, with some other noise or bound
Power         A bound below the stated epsilon proves nothing: canaries see noise, clipping and rate, and no other fault. With
              1,000 canaries and epsilon 8 stated, correct code gives about 5.5, half of the noise 14

Sampling      Poisson sampling is tested by itself, because canaries can hardly tell it from shuffling: number of inclusions,
              spread of batch sizes (fixed batches have none; also 0 when patients come in pairs), spread of inclusions per
              patient (epochs have none), and patients common to consecutive steps (shuffling: too few). Each against
              simulated Poisson sampling of the same shape (Monte-Carlo test, exact at every size), with Bonferroni's correction

Left out: bounds for one observed run without white-box access (they cannot refute epsilon 8), faults in the accountant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import beta

from privacy import accounting
from privacy.accounting import Event
from shared.errors import PrivacyError

FEWEST = 20  # canaries in, and out; below this no bound is worth printing
CANDIDATES = 19  # thresholds that are tried on the half that is not counted
SIMULATED = 19_999  # cohorts behind the test of the sampler
DECISIONS = (
    10_000  # in or out, of one patient in one step: the test of the sampler takes the first runs up to this many
)
SAMPLING_LEVEL = 0.001  # probability that correct sampling is called wrong


@dataclass(frozen=True)
class Bound:
    """What the canaries prove.

    epsilon      lower bound per patient at `delta`, valid with probability `confidence`; 0: nothing
    stated       what the accountant says of the stated mechanism
    noise        the largest noise multiplier that could have allowed what was seen; infinite: any
    threshold    of the log likelihood ratio
    inside, outside   how many canaries were in the run, and were not, of those that are counted
    found, mistaken   of those, how many were guessed in
    tpr_low, fpr_high   Clopper-Pearson bounds of the two rates
    """

    epsilon: float
    stated: float
    delta: float
    confidence: float
    noise: float
    threshold: float
    inside: int
    outside: int
    found: int
    mistaken: int
    tpr_low: float
    fpr_high: float

    @property
    def refuted(self) -> bool:
        """Whether the code does not do what it states."""
        return self.epsilon > self.stated


@dataclass(frozen=True)
class Sampling:
    """Whether patients were sampled as stated. `p_value` of the worst of the statistics, corrected for their number."""

    p_value: float
    worst: str
    batches: int

    @property
    def refuted(self) -> bool:
        return self.p_value < SAMPLING_LEVEL


def scores(observed_TJ: NDArray[np.float64], stated: Event) -> NDArray[np.float64]:
    """Log likelihood ratio of each canary, in over out, under the stated mechanism: (steps, canaries) -> (canaries,).

    In a step x ~ (1 - q) N(0, s^2) + q N(1, s^2) when the canary is in, N(0, s^2) when it is out (Neyman and Pearson: no
    other score finds canaries better).
    """
    if len(observed_TJ) != stated.steps:
        raise PrivacyError(f"{len(observed_TJ)} steps were observed, {stated.steps} are stated; observe the whole run")
    if stated.noise_multiplier == 0 or stated.sampling_rate == 0:
        raise PrivacyError("without noise or without patients nothing is stated that could be audited")
    ratio_TJ = (observed_TJ - 0.5) / stated.noise_multiplier**2
    if stated.sampling_rate < 1:
        q = stated.sampling_rate
        ratio_TJ = np.logaddexp(math.log1p(-q), math.log(q) + ratio_TJ)
    return np.asarray(ratio_TJ.sum(0))


def lower_bound(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    stated: Event,
    delta: float,
    *,
    confidence: float = 0.95,
) -> Bound:
    """The bound from the scores of canaries that were in and of those that were not. See the top of this file.

    Raises PrivacyError with fewer than 20 of either kind, or a confidence outside (0, 1).
    """
    if min(len(inside), len(outside)) < FEWEST:
        raise PrivacyError(f"{len(inside)} canaries in and {len(outside)} out; at least {FEWEST} of each are needed")
    if not 0 < confidence < 1:
        raise PrivacyError(f"confidence is {confidence}; it lies between 0 and 1")
    error = (1 - confidence) / 2
    threshold = _threshold(inside[::2], outside[::2], error)
    inside, outside = inside[1::2], outside[1::2]
    found, mistaken = int((inside > threshold).sum()), int((outside > threshold).sum())
    tpr_low = float(_at_least(np.array(found), len(inside), error))
    fpr_high = float(1 - _at_least(np.array(len(outside) - mistaken), len(outside), error))
    noise = _largest_noise(tpr_low, fpr_high, stated)
    epsilon = 0.0
    if noise < math.inf:
        epsilon = accounting.epsilon([Event(noise, stated.sampling_rate, stated.steps)], delta)
    says = accounting.epsilon([stated], delta)
    counts = (len(inside), len(outside), found, mistaken)
    return Bound(epsilon, says, delta, confidence, noise, threshold, *counts, tpr_low, fpr_high)


def _threshold(inside: NDArray[np.float64], outside: NDArray[np.float64], error: float) -> float:
    """The quantile of all scores that separates best: the largest Phi^-1(TPR) - Phi^-1(FPR), at the bounds of the rates."""
    candidates = np.quantile(np.concatenate([inside, outside]), np.linspace(0, 1, CANDIDATES + 2)[1:-1])
    tpr_low = _at_least((inside > candidates[:, None]).sum(1), len(inside), error)
    fpr_high = 1 - _at_least((outside <= candidates[:, None]).sum(1), len(outside), error)
    return float(candidates[np.argmax(ndtri(np.maximum(tpr_low, 1e-9)) - ndtri(np.minimum(fpr_high, 1 - 1e-9)))])


def _at_least(hits: NDArray[np.int64], trials: int, error: float) -> NDArray[np.float64]:
    """Clopper and Pearson 1934: the true rate is at least this, but for a probability of `error`."""
    return np.where(hits > 0, beta.ppf(error, np.maximum(hits, 1), trials - hits + 1), 0.0)


def _largest_noise(tpr: float, fpr: float, stated: Event) -> float:
    """The largest noise multiplier at which some attack can have a true positive rate of `tpr` or more at `fpr` or less."""
    if tpr <= fpr:
        return math.inf
    if stated.sampling_rate == 1:  # one Gaussian: TPR = Phi(Phi^-1(FPR) + mu) (Dong, Roth and Su 2022, equation 6)
        return math.sqrt(stated.steps) / float(ndtri(tpr) - ndtri(fpr))
    epsilons = np.linspace(0, math.log((1 - fpr) / min(fpr, 1 - tpr)) + 1, 60)

    def excess(log_noise: float) -> float:
        """Above 0 where this much noise would not have allowed it, in either direction of the relation."""
        event = Event(math.exp(log_noise), stated.sampling_rate, stated.steps)
        deltas = np.array(accounting.deltas([event], epsilons.tolist()))
        growth = np.exp(epsilons)
        return float(max((tpr - growth * fpr - deltas).max(), (1 - fpr - growth * (1 - tpr) - deltas).max()))

    low, high = math.log(accounting.SMALLEST_NOISE * 10), math.log(stated.noise_multiplier)
    while excess(high) <= 0:
        high += math.log(2)
        if high > math.log(accounting.LARGEST_NOISE):
            return math.inf
    if excess(low) > 0:
        return math.exp(low)
    return math.exp(brentq(excess, low, high, xtol=1e-3) + 1e-3)  # a little more noise, a little less epsilon


STATISTICS = ("inclusions", "batch sizes", "inclusions per patient", "patients common to consecutive steps")


def sampling(
    runs: Sequence[NDArray[np.bool_]],
    rate: float,
    *,
    simulated: int = SIMULATED,
    rng: np.random.Generator | None = None,
) -> Sampling:
    """Test who took part, (steps, patients) for each run, against Poisson sampling at `rate`. See the top of this file.

    At rate 1 (or 0) there is nothing random: everybody (nobody) takes part in every step, or the p-value is 0.
    """
    batches = sum(len(taken) for taken in runs)
    if not batches or not 0 <= rate <= 1:
        raise PrivacyError(f"{batches} steps at rate {rate}: the test needs a step, and a rate in [0, 1]")
    if rate in (0, 1):
        kept = all((taken == bool(rate)).all() for taken in runs)
        return Sampling(float(kept), STATISTICS[0], batches)
    rng = np.random.default_rng() if rng is None else rng
    sizes = np.cumsum([taken.size for taken in runs])
    runs = [taken for taken, size in zip(runs, sizes, strict=True) if size <= DECISIONS] or [
        runs[0][: max(1, DECISIONS // runs[0].shape[1])]
    ]
    batches = sum(len(taken) for taken in runs)
    seen = np.zeros(len(STATISTICS))
    null = np.zeros((simulated, len(STATISTICS)))
    for taken_TN in runs:
        seen += _statistics(taken_TN[None], rate)[0]
        for start in range(0, simulated, 500):
            shape = (min(500, simulated - start), *taken_TN.shape)
            null[start : start + 500] += _statistics(rng.random(shape, dtype=np.float32) < rate, rate)
    above = ((null >= seen - 1e-9).sum(0) + 1) / (simulated + 1)
    below = ((null <= seen + 1e-9).sum(0) + 1) / (simulated + 1)
    p_values = np.minimum(1.0, 2 * np.minimum(above, below) * len(STATISTICS))
    worst = int(p_values.argmin())
    return Sampling(float(p_values[worst]), STATISTICS[worst], batches)


def _statistics(taken_BTN: NDArray[np.bool_], rate: float) -> NDArray[np.float64]:
    """(cohorts, steps, patients) -> (cohorts, 4), in the order of `STATISTICS`."""
    steps, patients = taken_BTN.shape[1:]
    size_BT, count_BN = taken_BTN.sum(2), taken_BTN.sum(1)
    return np.stack(
        [
            size_BT.sum(1).astype(np.float64),
            np.square(size_BT - rate * patients).sum(1),
            np.square(count_BN - rate * steps).sum(1),
            (taken_BTN[:, 1:] & taken_BTN[:, :-1]).sum((1, 2)).astype(np.float64),
        ],
        axis=1,
    )
