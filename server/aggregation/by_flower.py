"""Flower's robust rules, asked for one round's updates.

Left out: which of them (median.py, trimmed_mean.py, krum.py, multi_krum.py).
"""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from server.aggregation.base import Tensors, Update

WEIGHT = "weight"


def combined(strategy: FedAvg, updates: list[Update]) -> Tensors:
    """What one of Flower's strategies makes of the updates. It is to know weights under the name WEIGHT."""
    arrays, _ = strategy.aggregate_train(1, [_as_message(update) for update in updates])
    assert arrays is not None
    return {name: torch.from_numpy(array.numpy().copy()).float() for name, array in arrays.items()}


def _as_message(update: Update) -> Message:
    question = Message(content=RecordDict(), dst_node_id=1, message_type="train")
    content = RecordDict({"arrays": ArrayRecord(update.tensors), "metrics": MetricRecord({WEIGHT: update.weight})})
    return Message(content=content, reply_to=question)
