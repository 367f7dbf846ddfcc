"""python -m simulations.benchmarks.adaptive_coordinator [--only attack | --only cost]

What a coordinator gains who chooses noise and sampling rate after looking at the answers. Each of its queries is one step of the
subsampled Gaussian mechanism on one number, the worst case of that mechanism; after each answer it takes, of all queries that the
rule still admits, the one that serves it best. What it reaches is a true lower bound on epsilon, found without Monte Carlo:

    delta(eps, path) = max over admitted queries of  sum over outcomes of  P(outcome) delta(eps - loss(outcome), path + query)

Outcomes are cells of the real line with their exact masses under both neighbours. To look only at cells is to process the
answer, so the bound stays one; the last answer is taken whole, in closed form.

Two tables. The first: the best attack found against the old rule (the PLD of what was realised stays under the cap) and against the
new one (privacy/filters.py), over a grid of first looks and of the rates and noises that then just fit. The second: what the filter
counts for 1, 2 and 5 equal runs whose PLD together is 8 or 3, calibrated each time: what the filter costs.
The attack has two queries, of one step each. More can only reach more under the old rule.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.special import log_ndtr, ndtr

from privacy import accounting, filters
from privacy.accounting import Event, epsilon, noise_multiplier_for

DELTA = 1e-5
CELLS = 300  # of one answer, over all of its outcomes
LOOKS = (1.05, 1.15, 1.3, 1.5, 2.0)  # noise of the first query, over that which would spend the cap at once
RATES = (1.0, 0.2, 0.03, 0.001, 1e-4, 2e-5, 9e-6, 8e-6, 6e-6, 3e-6)  # the last reveal, with a chance under delta
RUNS = ((1.0, 12), (0.25, 12), (0.25, 100), (0.05, 12), (0.05, 200))  # sampling rate and steps of one run
Numbers = NDArray[np.float64]
Path = tuple[Event, ...]
Options = Callable[[Path], Sequence[Event]]
Rule = Callable[[Path], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("attack", "cost"))
    only = parser.parse_args().only
    if only != "cost":
        attacks = Table("rule", "cap", "true epsilon, at least", "noise of the first query", box=SIMPLE_HEAD)
        for name, rule in (("PLD of what was realised", old_rule), ("filter", new_rule)):
            for cap in (8.0, 3.0):
                reached, look = best_attack(rule, cap)
                attacks.add_row(name, f"{cap:g}", f"{reached:.2f}", f"{look.noise_multiplier:.3f}")
        Console(width=120).print(attacks)
    if only == "attack":
        return
    costs = Table("a run", "target", *(f"{n} run{'s' * (n > 1)}" for n in (1, 2, 5)), box=SIMPLE_HEAD)
    for target in (8.0, 3.0):
        for rate, steps in RUNS:
            told = [f"{spent:.2f} -> {counted:.2f}" for spent, counted in cost(rate, steps, target)]
            costs.add_row(f"rate {rate:g}, {steps} steps", f"{target:g}", *told)
    Console(width=120).print(costs)


def old_rule(path: Path) -> float:
    """Everything on record as if it had been fixed beforehand, by the PLD alone: sampling is credited to any noise."""
    parts = tuple((query.noise_multiplier, query.sampling_rate, 1) for query in path)
    return accounting._epsilon(parts, DELTA, 8)


def new_rule(path: Path) -> float:
    """Each query a plan of its own."""
    return filters.epsilon([[query] for query in path], DELTA)


def best_attack(rule: Rule, cap: float) -> tuple[float, Event]:
    """The largest lower bound found, and the first query with which it was reached."""
    at_once = noise_multiplier_for(epsilon=cap, delta=DELTA, sampling_rate=1.0, steps=1)
    queries = cache(partial(fitting, rule, cap))
    found = []
    for factor in LOOKS:
        look = Event(factor * at_once, 1.0, 1)
        if rule((look,)) <= cap:
            found.append((best_epsilon(_after(look, queries), DELTA, rounds=2), look))
    return max(found, key=lambda f: f[0])


def _after(look: Event, queries: Options) -> Options:
    return lambda path: queries(path) if path else [look]


def fitting(rule: Rule, cap: float, path: Path) -> list[Event]:
    """After a path: for each rate the query with the least noise that the rule admits, and one with twice that noise."""
    found = []
    for rate in RATES:
        low, high = math.log(0.02), math.log(300.0)
        if rule((*path, Event(300.0, rate, 1))) > cap:
            continue
        while high - low > 0.01:
            middle = (low + high) / 2
            low, high = (low, middle) if rule((*path, Event(math.exp(middle), rate, 1))) <= cap else (middle, high)
        found += [Event(math.exp(high), rate, 1), Event(2 * math.exp(high), rate, 1)]
    return found


def cost(rate: float, steps: int, target: float) -> list[tuple[float, float]]:
    """PLD and filter of 1, 2 and 5 equal runs that spend `target` together."""
    found = []
    for runs in (1, 2, 5):
        noise = noise_multiplier_for(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps * runs)
        run = [Event(noise, rate, steps)]
        found.append((epsilon(run * runs, DELTA), filters.epsilon([run] * runs, DELTA)))
    return found


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


def best_epsilon(options: Options, delta: float, *, rounds: int) -> float:
    """A lower bound on the true epsilon at `delta` of a coordinator that adapts: what its best strategy reaches, to 1e-3."""
    low, high = 0.0, 64.0

    def reaches(epsilon: float) -> bool:
        at = np.array([epsilon])
        return any(best_delta(at, (), options, rounds=rounds, added=a)[0] > delta for a in (False, True))

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


if __name__ == "__main__":
    main()
