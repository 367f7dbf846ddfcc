"""What this hospital permits. Its own file decides; nothing that arrives can widen it.

One checker for every kind of message. Whoever stands at the door asks it before anything else (admission.py); the app asks it once
more before it computes.

| bounded here                                  | because                                                                     |
|-----------------------------------------------|-----------------------------------------------------------------------------|
| epsilon, delta, noise and rate from below     | what the ledger counts must be what protects                                |
| `max_grad_norm`, learning rate, received weights | what is computed before the noise must stay finite                       |
| slices times draws, parameters, steps, rounds | what a step costs must not tell patients apart, nor stop the machine        |
| base, trainable part, modality, classes, size | a stranger chooses from a list                                              |

Left out: approval of code by hash (approval.py), and what is spent (budget.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from client.dataset import Facts
from privacy.noisy_statistics import asked
from shared import refusals
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.errors import (
    BudgetExceeded,
    ConfigError,
    LedgerError,
    MessageError,
    PolicyError,
    PrivacyError,
    WeightsError,
)
from shared.messages import TrainReply
from shared.modalities.base import PIPELINE

LARGEST_DELTA = 1e-5  # of an experiment, where the site's file says nothing


def check(site: Site, experiment: Experiment, noise_multiplier: float | None = None) -> None:
    """Raise PolicyError when a message asks for more than this site permits. The ledger checks the sum of all runs.

    noise_multiplier   of a round; none: the message is about a release and trains nothing
    """
    limits, training, privacy = site.policy, experiment.training, experiment.privacy
    figures = asked(privacy.statistics, 1)
    steps, pictures = training.rounds * training.steps, training.slices * training.draws
    for name in figures:
        key = f"privacy.statistics.{name.replace('-', '_')}"
        _most(site, key, name in site.share, f"does not share its {name} (`share`)")
    for key, value, most in (
        ("training.rounds", training.rounds, limits.rounds),
        ("training.steps", steps, limits.steps),
        ("training.slices", pictures, limits.pictures),
        ("training.learning_rate", training.learning_rate, limits.learning_rate),
        ("privacy.max_grad_norm", privacy.max_grad_norm, limits.largest_norm),
    ):
        _most(site, key, value <= most, f"permits {most:g} at most, the experiment asks for {value:g}")
    kind, part = experiment.model.kind, training.trainable
    _most(site, "model", not limits.models or kind in limits.models, f"permits the models {', '.join(limits.models)}")
    known = f"permits training of {', '.join(limits.parts)}"
    _most(site, "training.trainable", not limits.parts or part in limits.parts, known)
    allowed = not limits.bases or experiment.base in limits.bases
    _most(site, "base", allowed, f"permits the bases {', '.join(limits.bases)}")
    if noise_multiplier is None or site.epsilon_cap is None:  # without a cap: a rehearsal on data that protects nobody
        return
    private = privacy.epsilon is not None and noise_multiplier > 0
    _most(site, "privacy.epsilon", private, "does not train without privacy")
    assert privacy.epsilon is not None
    said = f"permits epsilon {site.epsilon_cap:g} per patient, the experiment asks for {privacy.epsilon:g}"
    _most(site, "privacy.epsilon", privacy.epsilon <= site.epsilon_cap, said)
    largest = LARGEST_DELTA if site.delta is None else site.delta
    said = f"permits delta {largest:g}, the experiment asks for {privacy.delta:g}"
    _most(site, "privacy.delta", privacy.delta <= largest, said)
    least = min([noise_multiplier, *figures.values()])
    said = f"permits no noise multiplier below {limits.smallest_noise:g}, the round has {least:g}"
    _most(site, "privacy.epsilon", least >= limits.smallest_noise, said)
    said = f"permits no sampling rate below {limits.smallest_rate:g}, the experiment asks for {privacy.sampling_rate:g}"
    _most(site, "privacy.sampling_rate", privacy.sampling_rate >= limits.smallest_rate, said)


def check_weights(site: Site, received: Mapping[str, Tensor]) -> None:
    """Raise PolicyError when a received weight is larger than any that an honest network has."""
    largest = max((float(t.abs().max()) for t in received.values() if t.numel()), default=0.0)
    if not largest <= site.policy.weight:
        raise PolicyError(
            f"a received weight of {largest:g}; {site.name} permits {site.policy.weight:g} (`policy.weight`)"
        )


def check_size(site: Site, parameters: int) -> None:
    """Raise PolicyError when a model is larger than this site permits."""
    if parameters > site.policy.parameters:
        raise PolicyError(
            f"a model of {parameters} parameters; {site.name} permits {site.policy.parameters} (`policy.parameters`)",
            setting="model",
        )


def check_cohort(site: Site, experiment: Experiment, facts: Facts) -> None:
    """Raise PolicyError when the experiment is for other images or classes than the cohort's. Compares public facts alone."""
    size, channels, classes = experiment.model.image_size, experiment.model.image_channels, tuple(experiment.classes)
    again = "run `fedsynth client ingest`"
    for setting, fits, said, cure in (
        ("modality", facts.modality == experiment.modality,
         f"is of {facts.modality}, the experiment of {experiment.modality}",
         "take part with a site file and a work folder of that modality"),
        ("model.image_channels", facts.channels == channels,
         f"has images of {facts.channels} channels, the experiment of {channels}", f"{again} again"),
        ("model.image_size", facts.image_size == size,
         f"has images of {facts.image_size} pixels, the experiment wants {size}", f"{again} with --image-size {size} to take part"),
        ("classes", not facts.classes or facts.classes == classes,
         f"was made with the classes {', '.join(facts.classes)}, the experiment has {', '.join(classes)[:200]}",
         f"{again} with --classes in that order to take part as {site.name}"),
        ("", facts.pipeline == PIPELINE,
         f"was made by pipeline {facts.pipeline}, this version is pipeline {PIPELINE} and makes other pictures", f"{again} again"),
    ):  # fmt: skip
        if not fits:
            raise PolicyError(f"the cohort {said}: {cure}", word="cohort", setting=setting)


def _most(site: Site, key: str, holds: bool, said: str) -> None:
    if not holds:
        raise PolicyError(f"{site.name} {said} (`{key}`)", setting=key)


def refuse_seeds(*configurations: Mapping[str, object]) -> None:
    """PrivacyError when the node's or the run's configuration names a seed: noise that can be repeated can be taken away."""
    for key in (key for configuration in configurations for key in configuration):
        if "seed" in key.lower():
            raise PrivacyError(f"the configuration holds `{key[:40]}`; a hospital's app takes no seed, leave it out")


def check_reply(site: Site, experiment: Experiment, reply: TrainReply) -> None:
    """Raise PolicyError unless a reply says of itself what this hospital's file and the request say."""
    if reply.site != site.name:
        raise PolicyError("the reply bears another site's name")
    if reply.steps != experiment.training.steps:
        raise PolicyError("the reply states other steps than were asked for")


def refusal(name: str, error: BaseException) -> refusals.Refusal:
    """What may leave of an error: one of a few sentences, by its kind. Its text stays in the site's log."""
    kinds: list[tuple[Any, str]] = [
        (BudgetExceeded, "budget"),
        (LedgerError, "ledger"),
        ((MessageError, ConfigError, WeightsError), "unreadable"),
    ]
    if isinstance(error, PolicyError):
        return refusals.Refusal(name, error.word, error.setting)
    return refusals.Refusal(name, next((word for kind, word in kinds if isinstance(error, kind)), "failed"))


def delta(site: Site, facts: Facts) -> float:
    """The delta at which the cap holds. Without a word in the site's file it follows the number of patients: keep it here."""
    return facts.delta if site.delta is None else site.delta


def cap(site: Site) -> float:
    """The ledger's cap: infinite only where the site's own file says `epsilon_cap: null`."""
    return math.inf if site.epsilon_cap is None else site.epsilon_cap
