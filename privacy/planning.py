"""What a run would cost a patient, whether it can learn anything, and what the alternatives would cost.

Everything here is computed from public numbers; no data is read and nothing is recorded.
Left out: the plan of an experiment file (server/plan.py), which counts the parameters of its own network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from privacy.accounting import Event, best_attack, epsilon, noise_multiplier_for, nsr
from shared.errors import PrivacyError

WARN_NSR, REFUSE_NSR = 4.0, 10.0  # published successes: 0.2 to 0.9, one at 6


@dataclass(frozen=True)
class Schedule:
    """What a coordinator chooses.

    patients        at one site; its public, expected number
    epsilon         target per patient over all rounds, at `delta`
    steps           optimiser steps a round
    sampling_rate   probability that a patient takes part in a step
    parameters      trainable ones
    sites           whose updates are averaged
    """

    patients: int
    epsilon: float
    delta: float
    rounds: int
    steps: int
    sampling_rate: float
    parameters: int
    sites: int = 1


@dataclass(frozen=True)
class Plan:
    """What it comes to.

    epsilon          per patient, of record, at most the target
    nsr              noise over the largest possible signal, per step, at one site
    nsr_all_sites    the same after averaging all sites' updates: nsr / sqrt(sites)
    attack_auc, attack_tpr_at_1pct   the best that a membership attack on one patient can do
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    epsilon: float
    delta: float
    nsr: float
    nsr_all_sites: float
    attack_auc: float
    attack_tpr_at_1pct: float


def default_delta(patients: int) -> float:
    """min(1e-5, 1 / (10 N)), rounded down to a power of ten: well under the chance of publishing one of N patients whole.

    The power of ten is there so that a delta does not tell N: it says no more than how many digits N has, from 10,001 up.
    """
    largest_delta(patients)
    return float(f"1e-{max(5, len(str(10 * patients - 1)))}")


def largest_delta(patients: int) -> float:
    """1 / (10 N): the largest with which a plan makes sense."""
    if patients < 1:
        raise PrivacyError(f"{patients} patients cannot be protected; there is at least one")
    return 1 / (10 * patients)


def plan(schedule: Schedule) -> Plan:
    """The smallest noise that keeps within the target, and what follows. Raises PrivacyError for impossible numbers."""
    if schedule.rounds < 1 or schedule.sites < 1:
        raise PrivacyError(f"{schedule.rounds} rounds over {schedule.sites} sites: there is at least one of each")
    most = largest_delta(schedule.patients)
    if schedule.delta > most:
        raise PrivacyError(
            f"delta {schedule.delta:g} is no promise to {schedule.patients} patients: it may forgive telling one of them whole; "
            f"take {most:g} or less"
        )
    steps = schedule.rounds * schedule.steps
    noise = noise_multiplier_for(
        epsilon=schedule.epsilon, delta=schedule.delta, sampling_rate=schedule.sampling_rate, steps=steps
    )
    events = [Event(noise, schedule.sampling_rate, steps)]
    ratio = nsr(
        parameters=schedule.parameters,
        noise_multiplier=noise,
        sampling_rate=schedule.sampling_rate,
        patients=schedule.patients,
    )
    attack = best_attack(events, schedule.delta)
    return Plan(
        noise_multiplier=noise,
        sampling_rate=schedule.sampling_rate,
        steps=steps,
        epsilon=epsilon(events, schedule.delta),
        delta=schedule.delta,
        nsr=ratio,
        nsr_all_sites=ratio / math.sqrt(schedule.sites),
        attack_auc=attack.auc,
        attack_tpr_at_1pct=attack.tpr_at_1pct,
    )


def alternatives(schedule: Schedule) -> dict[str, Plan]:
    """One change at a time, by name. Those that make no difference to `schedule` are left out."""
    twice = 2 * schedule.patients
    changed = {
        "1/10 parameters": replace(schedule, parameters=max(1, schedule.parameters // 10)),
        "twice the patients": replace(schedule, patients=twice, delta=min(schedule.delta, largest_delta(twice))),
        "half the rounds": replace(schedule, rounds=(schedule.rounds + 1) // 2),
        "sampling rate 1": replace(schedule, sampling_rate=1.0),
        "half the rate": replace(schedule, sampling_rate=schedule.sampling_rate / 2),
        "epsilon 3": replace(schedule, epsilon=3.0),
        "epsilon 1": replace(schedule, epsilon=1.0),
    }
    return {name: plan(other) for name, other in changed.items() if other != schedule}


def judge(found: Plan, *, force: bool = False) -> str | None:
    """A warning above NSR 4, or None. Raises PrivacyError above NSR 10 unless forced."""
    if found.nsr > REFUSE_NSR and not force:
        raise PrivacyError(
            f"the noise would be {found.nsr:.3g} times the largest possible signal at a site (limit {REFUSE_NSR:g}): train "
            "fewer parameters, take fewer steps, or find more patients; --force plans it all the same"
        )
    if found.nsr > WARN_NSR:
        return f"noise {found.nsr:.3g} times the largest possible signal at a site: expect little to be learned"
    return None
