"""The mean of each coordinate without its extremes (Yin et al. 2018, arXiv 1803.01498), by Flower. It knows no weights."""

from __future__ import annotations

from flwr.serverapp.strategy import FedTrimmedAvg

from server.aggregation.base import Robust, Tensors, Update
from server.aggregation.by_flower import WEIGHT, combined


class TrimmedMean(Robust):
    name = "trimmed-mean"

    def combine(self, updates: list[Update]) -> Tensors:
        share = min(
            (self.settings.assumed_bad_sites + 0.5) / len(updates), 0.499
        )  # half a site more: Flower rounds down
        return combined(FedTrimmedAvg(beta=share, weighted_by_key=WEIGHT), updates)
