"""What this hospital permits. Its own file decides; nothing that arrives can widen it.

Left out: approval of code by hash, and limits on training settings; they come with the deployed federation.
"""

from __future__ import annotations

import math

from shared.config import Experiment, Site
from shared.errors import PrivacyError


def check(site: Site, experiment: Experiment, noise_multiplier: float) -> None:
    """Raise PrivacyError when the request asks for more than this site permits. The ledger checks the sum of all runs."""
    if site.epsilon_cap is None:
        return  # a rehearsal on data that protects nobody
    privacy = experiment.privacy
    if privacy.epsilon is None or noise_multiplier <= 0:
        raise PrivacyError(f"{site.name} does not train without privacy; set `privacy.epsilon` in the experiment")
    if privacy.epsilon > site.epsilon_cap:
        raise PrivacyError(
            f"{site.name} permits epsilon {site.epsilon_cap:g} per patient, the experiment asks for {privacy.epsilon:g}"
        )
    if privacy.delta > site.delta:
        raise PrivacyError(f"{site.name} permits delta {site.delta:g}, the experiment asks for {privacy.delta:g}")


def cap(site: Site) -> float:
    """The ledger's cap: infinite only where the site's own file says `epsilon_cap: null`."""
    return math.inf if site.epsilon_cap is None else site.epsilon_cap
