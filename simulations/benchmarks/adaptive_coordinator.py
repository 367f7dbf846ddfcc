"""python -m simulations.benchmarks.adaptive_coordinator

What a coordinator gains who chooses noise and sampling rate after looking at the answers. Each of its queries is one step of the
subsampled Gaussian mechanism on one number, the worst case of that mechanism; after each answer it takes, of all queries that the
rule still admits, the one that serves it best. What it reaches is a true lower bound on epsilon, found without Monte Carlo:

    delta(eps, path) = max over admitted queries of  sum over outcomes of  P(outcome) delta(eps - loss(outcome), path + query)

Outcomes are cells of the real line with their exact masses under both neighbours. To look only at cells is to process the
answer, so the bound stays one; the last answer is taken whole, in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from privacy.accounting import Event

CELLS = 300  # of one answer, over all of its outcomes
Numbers = NDArray[np.float64]
Path = tuple[Event, ...]
Options = Callable[[Path], Sequence[Event]]


def best_delta(epsilons: Numbers, path: Path, options: Options, *, rounds: int, added: bool) -> Numbers:
    """Delta at each epsilon that the best strategy reaches with at most `rounds` queries after `path`.

    options   the queries that are admitted after a path, each of one step
    added     the patient is added (True) or removed: which of the two neighbours is the first
    """
    reached = np.maximum(0.0, -np.expm1(np.minimum(epsilons, 700.0)))  # ask nothing more
    if rounds == 0:
        return reached
    for query in options(path):
        if rounds == 1:
            found = delta_of(query, epsilons, added=added)
        else:
            masses, losses = outcomes(query, added=added)
            rest = (epsilons[:, None] - losses[None, :]).ravel()
            after = best_delta(rest, (*path, query), options, rounds=rounds - 1, added=added)
            found = after.reshape(len(epsilons), -1) @ masses
        reached = np.maximum(reached, found)
    return reached


def best_epsilon(path: Path, options: Options, delta: float, *, rounds: int) -> float:
    """A lower bound on the true epsilon at `delta` of a coordinator that adapts: what its best strategy reaches, to 1e-3."""
    low, high = 0.0, 64.0

    def reaches(epsilon: float) -> bool:
        at = np.array([epsilon])
        return any(best_delta(at, path, options, rounds=rounds, added=a)[0] > delta for a in (False, True))

    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def delta_of(query: Event, epsilons: Numbers, *, added: bool) -> Numbers:
    """The exact privacy profile of one step, at any epsilon: P(loss > epsilon) - e^epsilon Q(loss > epsilon)."""
    noise, rate = query.noise_multiplier, query.sampling_rate
    e = np.minimum(epsilons, 700.0)
    ratio = (
        np.exp(np.clip(-e if added else e, -700.0, 700.0)) - (1 - rate)
    ) / rate  # of N(1) to N(0), where the loss is e
    with np.errstate(divide="ignore"):
        x = np.where(ratio > 0, noise**2 * np.log(np.maximum(ratio, 0.0)) + 0.5, -np.inf)
    if added:  # P = N(0), Q the mixture, and the loss falls with x
        return np.asarray(ndtr(x / noise) - np.exp(e) * ((1 - rate) * ndtr(x / noise) + rate * ndtr((x - 1) / noise)))
    mixture = (1 - rate) * ndtr(-x / noise) + rate * ndtr((1 - x) / noise)
    return np.asarray(mixture - np.exp(e) * ndtr(-x / noise))


def outcomes(query: Event, *, added: bool) -> tuple[Numbers, Numbers]:
    """Mass under the first neighbour and privacy loss of each cell of an answer's outcomes."""
    noise, rate = query.noise_multiplier, query.sampling_rate
    edges = np.concatenate([[-np.inf], np.linspace(-9 * noise, 1 + 9 * noise, CELLS - 1), [np.inf]])
    without, with_one = _log_masses(edges / noise), _log_masses((edges - 1) / noise)
    with np.errstate(divide="ignore"):
        mixture = np.logaddexp(without + np.log(1 - rate), with_one + math.log(rate))
    first, second = (without, mixture) if added else (mixture, without)
    return np.exp(first), first - second


def _log_masses(edges: Numbers) -> Numbers:
    """Log of the standard normal's mass between neighbouring edges, from the side on which it is small."""
    low, high = edges[:-1], edges[1:]
    low, high = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
    with np.errstate(invalid="ignore"):
        return np.asarray(log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high))))
