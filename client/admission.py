"""The hospital's door: what a message must pass, in order, before anything is computed.

    open         the message is what it should be: names, shapes, numbers, a base from the list
    policy       the hospital's own file permits it, and the cohort is of the same kind; public facts alone
    asked before the reply that was kept is the answer, and costs nothing
    spend        the whole plan of the run is on the ledger, or the count of answers on its record; from here on it is spent,
                 whatever happens

Who stands here: at a deployed site the node's process (link/boundary.py), so that the app, which sees the patients, neither reads
nor writes what the hospital keeps about its budget. In a simulation, where no node stands before it, the app itself.

Nothing here opens a patient, so nothing here depends on one: what is refused follows from the message, the site's own file and its
ledger. After it nothing may be refused any more (see app.py).

Left out: approval of code (link/approval.py); training and judging.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor

from client import budget, dataset, policy, reply_cache
from client.answers import Answers
from client.dataset import Facts
from privacy import noisy_statistics
from privacy.ledger import Drawn, Mark
from shared import messages, wire
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.errors import ConfigError, MessageError, PolicyError, WeightsError
from shared.messages import TrainReply, Vote
from shared.models import weights
from shared.models.base import GenerativeModel, shapes


@dataclass(frozen=True)
class AdmittedRound:
    """A round that may be trained. `request`: what its reply must say that it answers; `figures`: name -> noise multiplier."""

    experiment: Experiment
    number: int
    noise_multiplier: float
    received: dict[str, Tensor]
    figures: dict[str, float]
    request: str

    @property
    def shapes(self) -> wire.Shapes:
        return shapes(self.received)


@dataclass(frozen=True)
class Question:
    """A release that the site is asked about. `digest` names the question; `images` as in messages.Proposal."""

    experiment: Experiment
    received: dict[str, Tensor]
    images: dict[str, np.ndarray]
    digest: str


def round_of(content: RecordDict, site: Site) -> AdmittedRound:
    """Open a request and hold it against the site's file. Raises MessageError, PolicyError or ConfigError."""
    experiment, number, noise_multiplier, arrays = messages.unpack_request(content)
    policy.check(site, experiment, noise_multiplier)
    received = wire.tensors(arrays, _expected(site, experiment), "the request's arrays")
    policy.check_weights(site, received)
    figures = noisy_statistics.asked(experiment.privacy.statistics, number)
    return AdmittedRound(experiment, number, noise_multiplier, received, figures, messages.request_id(content))


def question_of(content: RecordDict, site: Site) -> Question:
    """Open a proposal and hold it against the same file. Raises as `round_of`."""
    if not site.release_checks:
        raise PolicyError(f"{site.name} does not judge releases (`release_checks`)", word="answers")
    experiment, arrays, images = messages.unpack_proposal(content)
    policy.check(site, experiment)
    received = wire.tensors(arrays, _expected(site, experiment), "the proposal's arrays")
    policy.check_weights(site, received)
    digest = hashlib.sha256(experiment.model_dump_json().encode())
    for record in (arrays, content["images"]):
        for name in sorted(record):
            digest.update(f"{name} {record[name].shape} ".encode() + record[name].data)
    return Question(experiment, received, images, digest.hexdigest())


def spend(
    asked: AdmittedRound, site: Site, work: Path, run: str, marks: Sequence[Mark] = ()
) -> TrainReply | tuple[Drawn, Facts]:
    """The kept reply where the same was asked before; else what the ledger holds once this round is on it.

    Raises PolicyError, BudgetExceeded, LedgerError, and DataError where no ingest was finished.
    """
    facts = dataset.facts(work)
    policy.check_cohort(site, asked.experiment, facts)
    if (kept := reply_cache.find(work, asked.request)) is not None:
        return kept
    drawn = budget.charge(site, work, facts, asked.experiment, asked.noise_multiplier, asked.number, run, marks)
    reply_cache.drop(work)
    return drawn, facts


def count(asked: Question, site: Site, work: Path) -> Vote | None:
    """The answer given before to the same question, or none once one more answer is counted. PolicyError: no more are left."""
    policy.check_cohort(site, asked.experiment, dataset.facts(work))
    may, before = Answers(dataset.records(site, work), also=work).ask(asked.digest, site.release_checks)
    if not may:
        raise PolicyError(
            f"{site.name} answers {site.release_checks} questions about releases and has answered them; the hospital may raise "
            "`release_checks` in its file",
            word="answers",
        )
    return None if before is None else Vote(site.name, before)


def model_of(experiment: Experiment, received: dict[str, Tensor]) -> GenerativeModel:
    """The model that a message speaks of, with the weights that came, and its trainable part chosen."""
    model = weights.load_base(experiment.base, experiment.model, experiment.classes)
    attach(model, experiment.training.trainable)
    model.load_state_dict(received, strict=False)
    return model


def _expected(site: Site, experiment: Experiment) -> wire.Shapes:
    """Names and shapes of the tensors that may travel: a function of the settings, for which no weights are read."""
    try:
        labels = weights.labels_of(experiment.base, experiment.model, experiment.classes)
    except WeightsError as error:
        raise PolicyError(str(error), setting="base") from error
    try:
        with torch.device("meta"):
            model = weights.build(experiment.model, labels, experiment.classes)
            travels = attach(model, experiment.training.trainable)
    except (RuntimeError, ValueError, ZeroDivisionError, ConfigError) as error:
        raise MessageError(f"no model can be made of the experiment's settings ({type(error).__name__})") from error
    policy.check_size(site, sum(p.numel() for p in model.parameters()))
    return shapes(travels)
