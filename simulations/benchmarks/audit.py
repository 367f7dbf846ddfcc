"""python -m simulations.benchmarks.audit [--canaries 2000]

Does the audit find planted faults at a stated epsilon of 8? The settings of configs/demo.yaml, the real local loop, one fault at a
time, with full batches and with a sampling rate of 0.25. Prints the lower bound on epsilon at 95 % confidence and the p-value of
the test of the sampler; a fault counts as found when either refutes what is stated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table

from client import audit_run
from client.cli import progress
from privacy import audit
from privacy.noise import SecureRandom
from privacy.sgd import PatientOptimizer, clipped_sum, private_step
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.models import weights
from simulations.audit import people

CONFIG = Path("configs/demo.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--canaries", type=int, default=2000)
    options = parser.parse_args()
    clip = read(CONFIG, Experiment).privacy.max_grad_norm
    faults: dict[str, tuple[Callable[..., object], Callable[..., list[int]] | None]] = {
        "none": (private_step, None),
        "noise halved": (half_noise, None),
        "no clipping": (with_bound(None), None),
        "sensitivity 2.5 times": (with_bound(2.5 * clip), None),
        "shuffled batches": (private_step, Shuffled().sample),
        "batches of fixed size": (private_step, lambda n, rate: sorted(rng.permutation(n)[: round(n * rate)].tolist())),
    }
    rng = np.random.default_rng(0)
    table = Table(title=f"{CONFIG}: stated epsilon 8 per patient, {options.canaries} canaries, half of them counted")
    for column in ("sampling rate", "planted fault", "epsilon at least (95 %)", "p of the sampler", "found"):
        table.add_column(column)
    for rate in (1.0, 0.25):
        experiment = read(CONFIG, Experiment, {"privacy.sampling_rate": rate})
        model = weights.load_base(experiment.base, experiment.model, experiment.classes)
        cohort = people(experiment, rng, 4, 2)
        claim = audit_run.stated(experiment)
        for name, (step, sampler) in faults.items():
            if sampler is not None and rate == 1:
                continue  # everybody takes part: there is nothing to shuffle
            planted: AbstractContextManager[Any] = (
                nullcontext() if sampler is None else patch.object(SecureRandom, "poisson_sample", _method(sampler))
            )
            with planted, progress(f"{name}, rate {rate:g}") as tell:
                seen = audit_run.canaries(model, cohort, experiment, options.canaries, step=step, progress=tell)
            bound = audit.lower_bound(seen.inside, seen.outside, claim, experiment.privacy.delta)
            sampling = audit.sampling(seen.taken, rate)
            found = "yes" if bound.refuted or sampling.refuted else "no"
            table.add_row(
                f"{rate:g}", name, f"{bound.epsilon:.2f}", f"{sampling.p_value:.2g} ({sampling.worst})", found
            )
        table.add_section()
    Console(width=130).print(table)


def half_noise(loss: Any, patients: Any, optimizer: PatientOptimizer, *, clipping: Any) -> None:
    """The right step with half of the noise."""
    optimizer.noise_multiplier /= 2
    private_step(loss, patients, optimizer, clipping=clipping)
    optimizer.noise_multiplier *= 2


def with_bound(max_grad_norm: float | None) -> Callable[..., None]:
    """The right noise after clipping to another bound, or none."""

    def step(loss: Any, patients: Any, optimizer: PatientOptimizer, *, clipping: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        found = clipped_sum(loss, patients, optimizer.params, max_grad_norm=max_grad_norm, clipping=clipping)
        for p, gradient in zip(optimizer.params, found.gradients, strict=True):
            p.grad = gradient
        optimizer.step()

    return step


class Shuffled:
    """Batches of shuffled epochs, as a DataLoader makes them."""

    def __init__(self) -> None:
        self.rng, self.left, self.population = np.random.default_rng(1), list[int](), 0

    def sample(self, population: int, rate: float) -> list[int]:
        size = round(population * rate)
        if population != self.population or len(self.left) < size:
            self.population, self.left = population, self.rng.permutation(population).tolist()
        batch, self.left = self.left[:size], self.left[size:]
        return sorted(batch)


def _method(sampler: Callable[..., list[int]]) -> Callable[..., list[int]]:
    return lambda _self, population, rate: sampler(population, rate)


if __name__ == "__main__":
    main()
