"""What the global model does with a round's combined update: a step of the server's optimizer.

Reddi et al. 2021, "Adaptive federated optimization", algorithm 2; torch's optimizers, so Adam's bias is corrected, which theirs is
not: "average" adds the update, "momentum" is FedAvgM, "adam" FedAdam.

| edge case                                  | what happens                                                                |
|--------------------------------------------|-----------------------------------------------------------------------------|
| a value of the model beyond 2^20           | it is held there: no run of updates makes the model infinite                |
| a combined update that is not finite       | FederationError before anything is changed                                  |
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from server.aggregation.base import Tensors
from shared.config.experiment import Federation
from shared.errors import FederationError, WeightsError
from shared.models import weights

FARTHEST = 2.0**20  # of one value of the model


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
