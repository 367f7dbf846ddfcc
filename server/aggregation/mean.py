"""The weighted mean, sum_k w_k u_k / sum_k w_k: FedAvg, McMahan et al. 2017, algorithm 1. It trusts every update.

It holds one sum, however many sites there are, and adds as replies arrive: in fixed point (2^-36), so that it does not depend on
their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from server.aggregation.base import Aggregation, Tensors, Update
from shared.config.record import Record

FIXED_POINT = 2.0**36


class Mean(Aggregation):
    name = "mean"

    def __init__(self, settings: Record, weights: Mapping[str, float]) -> None:
        super().__init__(settings, weights)
        self._total: Tensors = {}
        self._taken: list[float] = []

    def take(self, update: Update) -> None:
        self._taken.append(update.weight)
        for name, u in update.tensors.items():
            scaled = u.double().mul_(update.weight)
            fixed = scaled.mul_(FIXED_POINT).round_().to(torch.int64)
            if name in self._total:
                self._total[name].add_(fixed)
            else:
                self._total[name] = fixed

    def result(self) -> Tensors:
        weight = math.fsum(self._taken) * FIXED_POINT
        return {name: total.double().div_(weight).float() for name, total in self._total.items()}
