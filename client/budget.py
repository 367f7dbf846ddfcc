"""What a run costs this hospital's patients: its whole plan on the ledger when it is first met, before anything is computed.

One ledger stands beside one key, in the folder of records that the site files of a hospital share; see privacy/ledger_members.py
for patients who are in several cohorts, and privacy/ledger.py for plans, rounds and what is asked twice.

The epsilon that is returned travels, worded at the experiment's delta, which is public; the cap holds at the site's own, which may
follow from its number of patients.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from client import dataset, policy
from client.dataset import LEDGER_FILE, Facts
from privacy import high_water, noisy_statistics
from privacy.accounting import Event
from privacy.ledger import Drawn, Ledger, Mark, ReservedPlan, checked_records, delta_of
from shared.config.experiment import Experiment
from shared.config.site import Site

DECIDES = {"name", "classes", "base", "model", "training", "privacy"}  # of an experiment: what its noise protects


def plan(experiment: Experiment, noise_multiplier: float) -> ReservedPlan:
    """Everything that a run will take from a patient, round by round; its key follows from the settings alone."""
    step = Event(noise_multiplier, experiment.privacy.sampling_rate, experiment.training.steps)
    rounds = tuple(
        (*(Event(z, 1.0, 1) for z in noisy_statistics.asked(experiment.privacy.statistics, number).values()), step)
        for number in range(1, experiment.training.rounds + 1)
    )
    said = [experiment.model_dump_json(include=DECIDES), experiment.expected_patients, float(noise_multiplier).hex()]
    return ReservedPlan(hashlib.sha256(json.dumps(said).encode()).hexdigest(), experiment.name, rounds)


def charge(
    site: Site,
    work: Path,
    facts: Facts,
    experiment: Experiment,
    noise_multiplier: float,
    number: int,
    run: str,
    marks: Sequence[Mark] = (),
) -> Drawn:
    """Put round `number` on the ledger: within the run's reservation, or with a new one. Returns what is on record then.

    marks   high-water marks of the ledger that are known from elsewhere; it must run through each of them

    Raises BudgetExceeded, with nothing written, when the plan does not fit under the site's cap, and LedgerError.
    """
    path = dataset.records(site, work) / LEDGER_FILE
    delta = policy.delta(site, facts)
    if site.delta is None:  # follows the number of patients, and never weakens what the ledger began with
        delta = min(delta, delta_of(path) or delta)
    ledger = Ledger(
        path,
        cohort=facts.cohort,
        cap=policy.cap(site),
        delta=delta,
        separate_cohorts=site.separate_cohorts,
        marks=marks,
    )
    return ledger.draw(
        plan(experiment, noise_multiplier),
        number,
        run=run,
        members=facts.members,
        told_delta=experiment.privacy.delta,
    )


def end(site: Site, work: Path) -> tuple[int, str]:
    """How many records the ledger holds now, and the hash of the last, which goes with every update."""
    mark = high_water.now(checked_records(dataset.records(site, work) / LEDGER_FILE))
    return mark.records, mark.hash
