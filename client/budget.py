"""What a request costs this hospital's patients: on the ledger, whole, before anything is computed.

One ledger stands beside one key, in the folder of records that the site files of a hospital share; see privacy/membership.py
for patients who are in several cohorts.

The epsilon that is returned, and a refusal, travel. Both are worded at the experiment's delta, which is public; the cap holds at
the site's own, which may follow from its number of patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client import dataset, policy
from client.dataset import Patient
from privacy.accounting import Event
from privacy.ledger import Ledger, delta_of
from shared.config import Experiment, Site

LEDGER_FILE = "ledger.jsonl"


def charge(
    site: Site,
    work: Path,
    cohort: Sequence[Patient],
    experiment: Experiment,
    priced: Sequence[tuple[str, Event]],
    run: str,
) -> float:
    """Reserve every event of `priced`, (purpose, event), or none of them. Returns epsilon per patient of all on record.

    Raises BudgetExceeded, with nothing written, when they do not fit together under the site's cap, and LedgerError.
    """
    records = dataset.records(site, work)
    path = records / LEDGER_FILE
    delta = policy.delta(site, len(cohort))
    if site.delta is None:  # follows the number of patients, and never weakens what the ledger began with
        delta = min(delta, delta_of(path) or delta)
    ledger = Ledger(
        path,
        cohort=dataset.cohort_id(records),
        cap=policy.cap(site),
        delta=delta,
        separate_cohorts=site.separate_cohorts,
    )
    members, told = dataset.members(site, work, cohort), experiment.privacy.delta
    events = [event for _, event in priced]
    return [
        ledger.reserve(event, run=run, purpose=purpose, members=members, then=events[i + 1 :], told_delta=told)
        for i, (purpose, event) in enumerate(priced)
    ][-1]
