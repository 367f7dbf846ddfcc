"""python -m simulations.benchmarks.accounting [--schedules 200] [--seed 0]

The accountant of record against two that others wrote: dp-accounting's PLD accountant as it comes, and Opacus' PRV accountant
(its estimate, without the error bound that it adds). Random schedules of one to three parts: noise multiplier 1 to 20, sampling
rate 0.01 to 1 (one in five parts: full batches), 1 to 1,000 steps, delta 1e-5 to 1e-7. Prints the worst gap either way, absolute
and relative, and the schedule it belongs to. Below a judge is the dangerous side.
"""

from __future__ import annotations

import argparse
import math
import random
import time
import warnings

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from privacy.accounting import Event, epsilon

Schedule = list[Event]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, seconds = random.Random(options.seed), 0.0
    judges = {"dp-accounting, PLD": pld, "Opacus, PRV": prv}
    gaps: dict[str, list[tuple[float, float, Schedule, float]]] = {name: [] for name in judges}
    for _ in track(range(options.schedules), "accounting", console=Console(stderr=True), transient=True):
        schedule, delta = draw(rng), 10.0 ** -rng.uniform(5, 7)
        start = time.process_time()
        ours = epsilon(schedule, delta)
        seconds += time.process_time() - start
        for name, judge in judges.items():
            theirs = judge(schedule, delta)
            gaps[name].append((ours - theirs, ours, schedule, theirs))
    table = Table(
        "judge", "worst gap", "epsilon", "relative", "ours", "schedule (noise multiplier, rate, steps)", box=SIMPLE_HEAD
    )
    for name, found in gaps.items():
        for kind, worst in (
            ("most below", min(found, key=lambda g: g[0])),
            ("most above", max(found, key=lambda g: g[0])),
            ("most above, relative", max(found, key=lambda g: g[0] / g[3])),
        ):
            gap, ours, schedule, theirs = worst
            words = ", ".join(f"({e.noise_multiplier:.3g}, {e.sampling_rate:.3g}, {e.steps})" for e in schedule)
            table.add_row(name, kind, f"{gap:+.5f}", f"{gap / theirs:+.3%}", f"{ours:.4f}", words)
    Console(width=150).print(table)
    Console().print(
        f"{options.schedules} schedules; ours took {seconds / options.schedules:.2f} s each", highlight=False
    )


def draw(rng: random.Random) -> Schedule:
    """One to three parts."""
    return [
        Event(
            math.exp(rng.uniform(0, math.log(20))),
            1.0 if rng.random() < 0.2 else math.exp(rng.uniform(math.log(0.01), 0)),
            round(math.exp(rng.uniform(0, math.log(1000)))),
        )
        for _ in range(rng.randint(1, 3))
    ]


def pld(schedule: Schedule, delta: float) -> float:
    accountant = PLDAccountant()
    for event in schedule:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.steps)
    return float(accountant.get_epsilon(delta))


def prv(schedule: Schedule, delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sampling_rate, e.steps) for e in schedule]
    with np.errstate(divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(1 - rate) at rate 1, and the order of RDP that sizes the grid
        return float(
            accountant._get_dprv(eps_error=0.01, delta_error=delta / 1000).compute_epsilon(delta, delta / 1000, 0.01)[1]
        )


if __name__ == "__main__":
    main()
