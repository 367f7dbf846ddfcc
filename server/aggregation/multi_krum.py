"""Multi-Krum: the weighted mean of the updates that are nearest to their neighbours, all but `assumed_bad_sites` (Blanchard et al.
2017), by Flower.
"""

from __future__ import annotations

from flwr.serverapp.strategy import MultiKrum as FlowerMultiKrum

from server.aggregation.base import Robust, Tensors, Update
from server.aggregation.by_flower import WEIGHT, combined


class MultiKrum(Robust):
    name, beside = "multi-krum", 3

    def combine(self, updates: list[Update]) -> Tensors:
        bad = self.settings.assumed_bad_sites
        chosen = FlowerMultiKrum(
            num_malicious_nodes=bad, num_nodes_to_select=len(updates) - bad, weighted_by_key=WEIGHT
        )
        return combined(chosen, updates)
