"""What this hospital permits. Its own file decides; nothing that arrives can widen it.

The app asks before it computes; in a deployed federation the node's boundary asks again, in a process of its own, on the way in
and on the way out (boundary.py).

Left out: approval of code by hash (approval.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from privacy.planning import default_delta
from privacy.statistics import asked
from shared import errors
from shared.config import Experiment, Site
from shared.errors import FedsynthError, PolicyError, PrivacyError
from shared.messages import Refusal, TrainReply

LARGEST_DELTA = 1e-5  # of an experiment, where the site's file says nothing


def check(site: Site, experiment: Experiment, noise_multiplier: float) -> None:
    """Raise PrivacyError when the request asks for more than this site permits. The ledger checks the sum of all runs."""
    refused = sorted(set(asked(experiment.privacy.statistics, 1)) - set(site.share))
    if refused:
        raise PrivacyError(
            f"{site.name} does not share its {refused[0]}; ask without `privacy.statistics.{refused[0].replace('-', '_')}`, "
            f"or the hospital adds {refused[0]} to `share` in its file"
        )
    _check_limits(site, experiment)
    if site.epsilon_cap is None:
        return  # a rehearsal on data that protects nobody
    privacy = experiment.privacy
    if privacy.epsilon is None or noise_multiplier <= 0:
        raise PrivacyError(f"{site.name} does not train without privacy; set `privacy.epsilon` in the experiment")
    if privacy.epsilon > site.epsilon_cap:
        raise PrivacyError(
            f"{site.name} permits epsilon {site.epsilon_cap:g} per patient, the experiment asks for {privacy.epsilon:g}"
        )
    largest = LARGEST_DELTA if site.delta is None else site.delta
    if privacy.delta > largest:
        raise PrivacyError(f"{site.name} permits delta {largest:g}, the experiment asks for {privacy.delta:g}")


def refuse_seeds(*configurations: Mapping[str, object]) -> None:
    """PrivacyError when the node's or the run's configuration names a seed: noise that can be repeated can be taken away."""
    for key in (key for configuration in configurations for key in configuration):
        if "seed" in key.lower():
            raise PrivacyError(f"the configuration holds `{key[:40]}`; a hospital's app takes no seed, leave it out")


def _check_limits(site: Site, experiment: Experiment) -> None:
    limits, training = site.policy, experiment.training
    steps = training.rounds * training.steps
    if training.rounds > limits.rounds:
        raise PolicyError(f"{site.name} permits {limits.rounds} rounds, the experiment asks for {training.rounds}")
    if steps > limits.steps:
        raise PolicyError(f"{site.name} permits {limits.steps} steps in all, the experiment asks for {steps}")
    if training.trainable not in limits.trainable:
        raise PolicyError(f"{site.name} permits training of {', '.join(limits.trainable)}, not `{training.trainable}`")
    if limits.bases and experiment.base not in limits.bases:
        raise PolicyError(f"{site.name} permits the bases {', '.join(limits.bases)}, not the one asked for")


def check_reply(site: Site, experiment: Experiment, reply: TrainReply) -> None:
    """Raise PolicyError unless a reply says of itself what this hospital's file and the request say."""
    if reply.site != site.name:
        raise PolicyError("the reply bears another site's name")
    if reply.steps != experiment.training.steps:
        raise PolicyError("the reply states other steps than were asked for")


def refusal(site: Site, reply: Refusal) -> Refusal:
    """What may leave of an app's refusal: the name of the error, if it is one of ours. Its text stays in the site's log."""
    name = reply.reason.partition(":")[0]
    kind = getattr(errors, name, None) if name.isidentifier() else None
    known = name if isinstance(kind, type) and issubclass(kind, FedsynthError) else "the site's app refused or failed"
    return Refusal(site.name, f"{known}: the site's own log says why")


def delta(site: Site, patients: int) -> float:
    """The delta at which the cap holds. Without a word in the site's file it follows the number of patients: keep it here."""
    return default_delta(patients) if site.delta is None else site.delta


def cap(site: Site) -> float:
    """The ledger's cap: infinite only where the site's own file says `epsilon_cap: null`."""
    return math.inf if site.epsilon_cap is None else site.epsilon_cap
