"""The seam of an adapter: which parameters of a model a hospital trains and sends.

The wire, the hospital's policy, the bound on an update, the cards and the checks ask it for names and shapes and nothing else.

Left out: how they are trained (client/train.py), and which pays (server/plan.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from shared.config.model import ADAPTERS
from shared.models.base import GenerativeModel


class Adapter(ABC):
    """One way to train a model on patients. Keeps nothing. `name`: what an experiment calls it; its file has the same."""

    name: ClassVar[str]

    @abstractmethod
    def chosen(self, model: GenerativeModel) -> dict[str, nn.Parameter]:
        """The parameters by name; may put new ones into the model, with the same weights at every site and in every call."""


def attach(model: GenerativeModel, name: str) -> dict[str, nn.Parameter]:
    """The parameters that a site may change and that travel, by name; all others are frozen. ConfigError: no such adapter."""
    adapter: Adapter = ADAPTERS[name]()
    chosen = adapter.chosen(model)
    ids = {id(p) for p in chosen.values()}
    for p in model.parameters():
        p.requires_grad_(id(p) in ids)
    return {name: p for name, p in model.named_parameters() if id(p) in ids}
