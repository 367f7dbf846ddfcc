"""The seam of the rules by which updates combine. A rule is one file of this room: a class of `Aggregation` with a `name`.

    class Midpoint(Together):
        name = "midpoint"                                   in midpoint.py; the experiment says `aggregation: midpoint`

        def combine(self, updates: list[Update]) -> Tensors:
            ...

Rules that look at all updates together are `Together`; the mean, which needs none of them kept, is an `Aggregation` itself. A rule
with settings of its own has a record `Settings` in its file: `aggregation: {rule: midpoint, ...}`. `federation.assumed_bad_sites`
is handed to every rule whose settings have it.

Updates are checked before they come here. A reply says nothing about its own weight: weights are the experiment's.

| edge case                                  | what happens                                                                |
|--------------------------------------------|-----------------------------------------------------------------------------|
| a value of an update beyond 2^14           | the update is left out, whole, with the reason                              |
| weights of 0.01 and 100 in one experiment  | divided by the largest first: 8,192 sites fit into the sum, whatever they weigh |
| a rule or a setting that there is not      | ConfigError before the run begins                                           |

Left out: what the model does with the result (server_optimizer.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from shared.config.experiment import Federation
from shared.config.loading import validate
from shared.config.record import Record
from shared.errors import ConfigError, FederationError, MessageError
from shared.messages import TrainReply
from shared.plugins import Registry

Tensors = dict[str, Tensor]
LARGEST = 2.0**14  # of one value of an update: 8,192 sites of these fit into 63 bits
BAD_SITES = "assumed_bad_sites"  # beside the rule in `federation`, because several rules have it


@dataclass(frozen=True)
class Update:
    """One site's update. `weight`: of this site, the largest weight of any being 1."""

    site: str
    tensors: Tensors
    weight: float


class Aggregation(ABC):
    """One round's updates.

    Settings    what the rule can be told
    withstands  whether as many sites as `assumed_bad_sites` may send anything, and the result stays among the honest updates

    weights     of the sites that do not count 1
    """

    class Settings(Record):
        """None."""

    name: ClassVar[str]
    withstands: ClassVar[bool] = False

    def __init__(self, settings: Record, weights: Mapping[str, float]) -> None:
        self.settings, self._weights, self._largest = settings, weights, max([1.0, *weights.values()])

    def add(self, reply: TrainReply) -> None:
        """Take one update in, or leave it out whole with a MessageError that says why."""
        if not all(float(u.abs().max()) <= LARGEST for u in reply.update.values()):
            raise MessageError(f"a value of the update is beyond {LARGEST:.0f}")
        self.take(Update(reply.site, reply.update, self._weights.get(reply.site, 1.0) / self._largest))

    @abstractmethod
    def take(self, update: Update) -> None:
        """Take an update in that was looked at."""

    @abstractmethod
    def result(self) -> Tensors:
        """The combined update; FederationError where the rule cannot be met with what came."""


class Together(Aggregation):
    """A rule that looks at all updates together, in the order of the sites' names, so that the order of arrival does not matter."""

    def __init__(self, settings: Record, weights: Mapping[str, float]) -> None:
        super().__init__(settings, weights)
        self._updates: list[Update] = []

    def take(self, update: Update) -> None:
        self._updates.append(update)

    def result(self) -> Tensors:
        return self.combine(sorted(self._updates, key=lambda update: update.site))

    @abstractmethod
    def combine(self, updates: list[Update]) -> Tensors:
        """The combined update of at least one."""


class Robust(Together):
    """A rule that withstands some sites that send nonsense, and needs enough others for it.

    beside   sites that it needs beside twice the bad ones
    """

    class Settings(Record):
        """assumed_bad_sites   how many sites may send anything"""

        assumed_bad_sites: Annotated[int, Field(ge=0)] = 1

    settings: Settings
    withstands = True
    beside: ClassVar[int] = 1

    def result(self) -> Tensors:
        bad, sites = self.settings.assumed_bad_sites, len(self._updates)
        needed = 2 * bad + self.beside
        if sites < needed:
            raise FederationError(
                f"{self.name} against {bad} bad site{'s' * (bad != 1)} needs {needed} sites "
                f"(`federation.assumed_bad_sites`), {sites} contributed"
            )
        return super().result()


RULES: Registry[Aggregation] = Registry("server.aggregation", "Aggregation", "federation.aggregation")


def check(federation: Federation) -> None:
    """ConfigError when the experiment names a rule that there is not, or a setting that its rule does not have."""
    _chosen(federation)


def aggregator(federation: Federation) -> Aggregation:
    """An empty aggregation by the rule that the experiment names."""
    rule, settings = _chosen(federation)
    return rule(settings, federation.weights)


def _chosen(federation: Federation) -> tuple[type[Aggregation], Record]:
    """The rule and its settings."""
    said = federation.aggregation
    tree: dict[str, Any] = {"rule": said} if isinstance(said, str) else dict(said)
    name = tree.pop("rule", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"`federation.aggregation` names no rule; give {{rule: ...}} with one of {', '.join(RULES.names())}"
        )
    rule = RULES[name]
    if BAD_SITES in rule.Settings.model_fields:
        tree.setdefault(BAD_SITES, federation.assumed_bad_sites)
    return rule, validate(tree, rule.Settings, source=f"`federation.aggregation` ({name})")


def check_weights(federation: Federation, sites: Collection[str]) -> None:
    """ConfigError when the experiment gives a weight to a name that none of its sites bears: a misspelt one would count 1."""
    unknown = sorted(set(federation.weights) - set(sites))
    if unknown:
        raise ConfigError(f"`federation.weights` names `{unknown[0]}`; the sites are {', '.join(sorted(sites))}")
