"""How updates combine, and what the global model does with them.

| rule           | result                                               | source                                  | memory        |
|----------------|------------------------------------------------------|-----------------------------------------|---------------|
| "mean"         | sum_k w_k u_k / sum_k w_k, added as replies arrive   | FedAvg, McMahan et al. 2017, alg. 1     | one update    |
| "median"       | median of each coordinate                            | Yin et al. 2018, arXiv 1803.01498       | all updates   |
| "trimmed-mean" | mean of each coordinate without its extremes         | the same                                | all updates   |
| "krum"         | the update nearest to its neighbours                 | Blanchard et al. 2017                   | all updates   |
| "multi-krum"   | mean of the updates nearest to their neighbours      | the same                                | all updates   |

The last four are Flower's and withstand some sites that send nonsense; only "mean" and "multi-krum" use the weights, which are the
experiment's (`federation.weights`). A reply says nothing about its own. The mean is summed in fixed point (2^-36), so that it does
not depend on the order in which replies arrive.

| edge case                                  | what happens                                                                |
|--------------------------------------------|-----------------------------------------------------------------------------|
| a value of an update beyond 2^14           | the update is left out, whole, with the reason                              |
| weights of 0.01 and 100 in one experiment  | divided by the largest first: 8,192 sites fit into the sum, whatever they weigh |
| a value of the model beyond 2^20           | it is held there: no run of updates makes the model infinite                |
| a combined update that is not finite       | FederationError before anything is changed                                  |

The combined update is then a step of the server's optimizer (Reddi et al. 2021, "Adaptive federated optimization", algorithm 2;
torch's optimizers, so Adam's bias is corrected, which theirs is not): "average" adds it, "momentum" is FedAvgM, "adam" FedAdam.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from torch import Tensor

from shared.config.experiment import Federation
from shared.errors import ConfigError, FederationError, MessageError, WeightsError
from shared.messages import TrainReply
from shared.models import weights

Tensors = dict[str, Tensor]
FIXED_POINT = 2.0**36
LARGEST = 2.0**14  # of one value of an update: 8,192 sites of these fit into 63 bits
FARTHEST = 2.0**20  # of one value of the model


class Aggregator(ABC):
    """One round's updates, checked before they come here. `weights`: of the sites that do not count 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights, self._largest = weights, max([1.0, *weights.values()])

    def add(self, reply: TrainReply) -> None:
        """Take one update in, or leave it out whole with a MessageError that says why."""
        if not all(float(u.abs().max()) <= LARGEST for u in reply.update.values()):
            raise MessageError(f"a value of the update is beyond {LARGEST:.0f}")
        self._take(reply, self._weights.get(reply.site, 1.0) / self._largest)

    @abstractmethod
    def _take(self, reply: TrainReply, weight: float) -> None:
        """Take an update in that was looked at. `weight`: of this site, the largest being 1."""

    @abstractmethod
    def result(self) -> Tensors:
        """The combined update; FederationError where the rule cannot be met with what came."""


def aggregator(settings: Federation) -> Aggregator:
    """An empty aggregator of the rule that the experiment names."""
    return Mean(settings.weights) if settings.aggregation == "mean" else Robust(settings)


def check_weights(settings: Federation, sites: Collection[str]) -> None:
    """ConfigError when the experiment gives a weight to a name that none of its sites bears: a misspelt one would count 1."""
    unknown = sorted(set(settings.weights) - set(sites))
    if unknown:
        raise ConfigError(f"`federation.weights` names `{unknown[0]}`; the sites are {', '.join(sorted(sites))}")


class Mean(Aggregator):
    """The weighted mean; holds one sum, however many sites there are."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self._total: Tensors = {}
        self._taken: list[float] = []

    def _take(self, reply: TrainReply, weight: float) -> None:
        self._taken.append(weight)
        for name, u in reply.update.items():
            scaled = u.double().mul_(weight)
            fixed = scaled.mul_(FIXED_POINT).round_().to(torch.int64)
            if name in self._total:
                self._total[name].add_(fixed)
            else:
                self._total[name] = fixed

    def result(self) -> Tensors:
        weight = math.fsum(self._taken) * FIXED_POINT
        return {name: total.double().div_(weight).float() for name, total in self._total.items()}


class Robust(Aggregator):
    """Flower's robust rules, which look at all updates together."""

    def __init__(self, settings: Federation) -> None:
        super().__init__(settings.weights)
        self._settings = settings
        self._replies: list[tuple[TrainReply, float]] = []

    def _take(self, reply: TrainReply, weight: float) -> None:
        self._replies.append((reply, weight))

    def result(self) -> Tensors:
        bad, sites = self._settings.assumed_bad_sites, len(self._replies)
        needed = 2 * bad + (3 if "krum" in self._settings.aggregation else 1)
        if sites < needed:
            raise FederationError(
                f"{self._settings.aggregation} against {bad} bad site{'s' * (bad != 1)} needs {needed} sites "
                f"(`federation.assumed_bad_sites`), {sites} contributed"
            )
        self._replies.sort(key=lambda taken: taken[0].site)
        arrays, _ = self._strategy(bad, sites).aggregate_train(1, [_as_message(*taken) for taken in self._replies])
        assert arrays is not None
        return {name: torch.from_numpy(array.numpy().copy()).float() for name, array in arrays.items()}

    def _strategy(self, bad: int, sites: int) -> FedAvg:
        match self._settings.aggregation:
            case "median":
                return FedMedian(weighted_by_key="weight")
            case "trimmed-mean":
                return FedTrimmedAvg(beta=min((bad + 0.5) / sites, 0.499), weighted_by_key="weight")
            case "krum":
                return Krum(num_malicious_nodes=bad, weighted_by_key="weight")
            case _:
                select = sites - bad
                return MultiKrum(num_malicious_nodes=bad, num_nodes_to_select=select, weighted_by_key="weight")


def _as_message(reply: TrainReply, weight: float) -> Message:
    question = Message(content=RecordDict(), dst_node_id=1, message_type="train")
    content = RecordDict({"arrays": ArrayRecord(reply.update), "metrics": MetricRecord({"weight": weight})})
    return Message(content=content, reply_to=question)


class ServerOptimizer:
    """Applies combined updates to the global tensors, in place.

    Its moments are part of a checkpoint: a run that goes on without them would be another run.
    """

    def __init__(self, settings: Federation, tensors: Tensors) -> None:
        self._parameters = {name: torch.nn.Parameter(t, requires_grad=True) for name, t in tensors.items()}
        rate = settings.server_learning_rate
        values = list(self._parameters.values())
        self._optimizer: torch.optim.Optimizer
        match settings.server_optimizer:
            case "adam":
                self._optimizer = torch.optim.Adam(values, lr=rate, betas=(0.9, 0.99), eps=1e-3)
            case "momentum":
                self._optimizer = torch.optim.SGD(values, lr=rate, momentum=0.9)
            case _:
                self._optimizer = torch.optim.SGD(values, lr=rate)

    def step(self, update: Tensors) -> None:
        """x <- the optimizer's step with minus the update as its gradient. FederationError, and no step, where it is not finite."""
        if not all(bool(torch.isfinite(u).all()) for u in update.values()):
            raise FederationError("the combined update is not finite; the round is not used")
        for name, p in self._parameters.items():
            p.grad = -update[name]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for p in self._parameters.values():
                p.clamp_(-FARTHEST, FARTHEST)

    def save(self, path: Path) -> None:
        """Write the moments, if this optimizer has any."""
        found = {
            f"{name}/{key}": value
            for name, p in self._parameters.items()
            for key, value in self._optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor)
        }
        if found:
            weights.write(path, found)

    def load(self, path: Path) -> None:
        """Read the moments back, where some were written."""
        if not path.exists():
            return
        for name, value in weights.read(path).items():
            if not bool(torch.isfinite(value).all()):
                raise WeightsError(f"{path.name} holds a moment that is not finite; go on from an earlier round")
            parameter, _, key = name.rpartition("/")
            self._optimizer.state[self._parameters[parameter]][key] = value
