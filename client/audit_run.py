"""A rehearsal of one site's training, watched: the real loop (`client/train.py`) on patients that may be looked at.

Canaries join the cohort as patients of their own, so that encoding, sampling, clipping, noise and optimiser are the ones that
protect the site's patients. `privacy/canaries.py` says what is observed, `privacy/audit.py` what follows.

Never on a real cohort without its own budget: a rehearsal reserves nothing, and what it returns is not private.

Left out: averaging with other sites between rounds (post-processing, no site's noise depends on it), and the ledger.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dataset import Patient
from client.train import Prepared, draws, prepare, train
from privacy import audit, membership_inference
from privacy.accounting import Event, noise_multiplier_for
from privacy.canaries import Watch, most
from privacy.sgd import private_step
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.errors import ConfigError
from shared.models.base import Example, GenerativeModel

A_RUN = 1024  # canaries in one rehearsal, at most; half of them take part
DRAWS = 64  # images of one patient behind its loss in full training: evenly spread slices, the same noise for everyone


def stated(experiment: Experiment) -> Event:
    """What the experiment states of a site's whole run. ConfigError where it trains without privacy."""
    privacy, steps = experiment.privacy, experiment.training.rounds * experiment.training.steps
    if privacy.epsilon is None:
        raise ConfigError("`privacy.epsilon` is none: nothing is stated that an audit could test; give an epsilon")
    noise = noise_multiplier_for(
        epsilon=privacy.epsilon, delta=privacy.delta, sampling_rate=privacy.sampling_rate, steps=steps
    )
    return Event(noise, privacy.sampling_rate, steps)


@dataclass(frozen=True)
class Seen:
    """Scores of the canaries that were in and of those that were not, and who took part, (steps, patients) for each run."""

    inside: NDArray[np.float64]
    outside: NDArray[np.float64]
    taken: list[NDArray[np.bool_]]


def canaries(
    model: GenerativeModel,
    cohort: Sequence[Patient],
    experiment: Experiment,
    count: int,
    *,
    step: Callable[..., object] = private_step,
    progress: Callable[[int, int], None] | None = None,
) -> Seen:
    """Rehearse with `count` canaries among the patients of `cohort`, in as many runs as they need.

    model   as the site receives it in round 1; it is not changed
    step    what takes one private step; another than the real one to see whether the audit finds a planted fault
    """
    claim = stated(experiment)
    rng = np.random.default_rng()
    parameters = sum(p.numel() for p in attach(model, experiment.training.trainable).values())
    size = experiment.model.image_size
    blank = np.zeros((1, size, size), np.uint8)  # its loss is replaced, so a canary needs no picture
    found: list[NDArray[np.float64]] = []
    coins: list[NDArray[np.bool_]] = []
    taken: list[NDArray[np.bool_]] = []
    done = 0
    while done < count:
        here = min(most(parameters), A_RUN, count - done)
        names = [f"canary-{j}" for j in range(here)]
        coin = rng.integers(2, size=here).astype(bool)
        joined = [Patient(name, -1, blank) for name, heads in zip(names, coin, strict=True) if heads]
        # Every second run has canaries alone: patients whose gradients go wrong too, as without clipping, cannot hide them
        people = [*(cohort if len(found) % 2 == 0 else ()), *joined]
        watch: Watch[Prepared] = Watch(
            lambda p: p.pseudonym, {name: j for j, name in enumerate(names)}, step=step, rng=rng
        )
        _run(model, people, experiment, noise_multiplier=claim.noise_multiplier, step=watch)
        found.append(audit.scores(np.stack(watch.observed), claim))
        coins.append(coin)
        taken.append(np.array([[p.pseudonym in names_ for p in people] for names_ in watch.taken]))
        done += here
        if progress:
            progress(done, count)
    score, coin = np.concatenate(found), np.concatenate(coins)
    return Seen(score[coin], score[~coin], taken)


def trajectory(
    model: GenerativeModel, cohort: Sequence[Patient], experiment: Experiment, *, noise_multiplier: float
) -> list[dict[str, Tensor]]:
    """Train on `cohort` as one site alone; the trainable tensors before each round and at the end. `model` ends trained."""
    kept: list[dict[str, Tensor]] = []
    _run(model, cohort, experiment, noise_multiplier=noise_multiplier, kept=kept)
    return kept


def _run(
    model: GenerativeModel,
    cohort: Sequence[Patient],
    experiment: Experiment,
    *,
    noise_multiplier: float,
    step: Callable[..., object] = private_step,
    kept: list[dict[str, Tensor]] | None = None,
) -> None:
    """All rounds. With `kept` the model itself is trained and its states are written down, else a copy is."""
    trained = copy.deepcopy(model) if kept is None else model
    for _ in range(experiment.training.rounds):
        if kept is not None:
            kept.append(_state(trained, experiment))
        train(
            trained,
            list(cohort),
            experiment,
            noise_multiplier=noise_multiplier,
            expected_patients=experiment.expected_patients,
            step=step,
        )
    if kept is not None:
        kept.append(_state(trained, experiment))


def _state(model: GenerativeModel, experiment: Experiment) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in attach(model, experiment.training.trainable).items()}


def evidence(
    model: GenerativeModel,
    states: Sequence[dict[str, Tensor]],
    patients: Sequence[Patient],
    experiment: Experiment,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Membership scores of each patient by each attack, higher for "was trained on"; (patients,) each.

    states   trainable tensors before each round and at the end, as `trajectory` returns or a run's checkpoints hold
    """
    device = next(model.parameters()).device
    people = [prepare(model, patient, device).example for patient in patients]
    updates = [{name: b[name] - a[name] for name in a} for a, b in itertools.pairwise(states)]
    clip = math.inf if experiment.privacy.epsilon is None else experiment.privacy.max_grad_norm
    loss_SP = np.zeros((len(states), len(people)))
    aligned_P = np.zeros(len(people))
    for s, state in enumerate(states):
        model.load_state_dict(state, strict=False)
        trainable = attach(model, experiment.training.trainable)

        def gradient(i: int, trainable: dict[str, torch.nn.Parameter] = trainable) -> tuple[Tensor | None, ...]:
            value = _fixed(model, model.loss, people[i], experiment, seed)
            return torch.autograd.grad(value, list(trainable.values()), allow_unused=True)

        with torch.no_grad():
            for i, person in enumerate(people):
                score = _fixed(model, model.membership_score, person, experiment, seed)
                loss_SP[s, i] = math.nan if score is None else score.item()
        if s < len(updates):
            update = [updates[s][name] for name in trainable]
            aligned_P += membership_inference.by_alignment(gradient, len(people), update, clip)
        if progress:
            progress(s + 1, len(states))
    by_score = {
        "loss": membership_inference.by_loss(loss_SP[-1]),
        "calibrated loss": membership_inference.by_calibrated_loss(loss_SP[-1], loss_SP[0]),
    }
    return (by_score if np.isfinite(loss_SP).all() else {}) | {"update alignment": aligned_P}


def _fixed(model: GenerativeModel, loss: Callable[..., Any], person: Example, experiment: Experiment, seed: int) -> Any:
    """A loss of training, with the same slices and the same noise for every patient and every state."""
    wanted = max(1, DRAWS // experiment.training.draws)
    slices = np.linspace(0, len(person) - 1, wanted).round().astype(int).tolist()
    model.eval()
    rng = torch.Generator(person.x_SCHW.device).manual_seed(seed)
    return loss(person, draws(experiment, slices), rng)
