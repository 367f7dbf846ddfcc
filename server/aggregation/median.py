"""The median of each coordinate (Yin et al. 2018, arXiv 1803.01498), by Flower. It knows no weights."""

from __future__ import annotations

from flwr.serverapp.strategy import FedMedian

from server.aggregation.base import Robust, Tensors, Update
from server.aggregation.by_flower import WEIGHT, combined


class Median(Robust):
    name = "median"

    def combine(self, updates: list[Update]) -> Tensors:
        return combined(FedMedian(weighted_by_key=WEIGHT), updates)
