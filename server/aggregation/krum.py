"""Krum: the update that is nearest to its neighbours (Blanchard et al. 2017), by Flower. It knows no weights."""

from __future__ import annotations

from flwr.serverapp.strategy import Krum as FlowerKrum

from server.aggregation.base import Robust, Tensors, Update
from server.aggregation.by_flower import WEIGHT, combined


class Krum(Robust):
    name, beside = "krum", 3

    def combine(self, updates: list[Update]) -> Tensors:
        bad = self.settings.assumed_bad_sites
        return combined(FlowerKrum(num_malicious_nodes=bad, weighted_by_key=WEIGHT), updates)
