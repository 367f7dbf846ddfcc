"""A request that comes twice is answered twice and charged once; anything else is charged."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from client import reply_cache
from shared import messages
from shared.config.experiment import Experiment
from shared.messages import TrainReply

EXPERIMENT = Experiment(name="t")
REPLY = TrainReply(
    "north", {"b": torch.randn(3), "a": torch.randn(2, 2)}, 1 / 3, 4, request="request", ledger=(3, "a" * 64)
)


def identity(experiment: Experiment = EXPERIMENT, number: int = 1, noise: float = 2.0, **tensors: torch.Tensor) -> str:
    arrays = {"a": torch.ones(2), "b": torch.zeros(2)} | tensors
    return messages.request_id(messages.pack_request(messages.TrainRequest(experiment, number, noise, arrays)))


def test_a_kept_reply_comes_back_bit_for_bit_and_for_its_owner_alone(tmp_path: Path) -> None:
    reply_cache.keep(tmp_path, REPLY)
    found = reply_cache.find(tmp_path, "request")
    assert found is not None
    assert (found.site, found.epsilon, found.steps, found.ledger) == ("north", 1 / 3, 4, (3, "a" * 64))
    assert all(torch.equal(found.update[name], t) for name, t in REPLY.update.items())
    assert [p.name for p in tmp_path.iterdir()] == ["node"], "beside the node's key, out of the app's reach"
    assert [p.name for p in (tmp_path / "node").iterdir()] == [reply_cache.FILE]
    assert stat.S_IMODE(reply_cache.path(tmp_path).stat().st_mode) == 0o600


def test_only_the_whole_request_finds_it() -> None:
    assert identity() == identity()
    changed = [
        identity(number=2),
        identity(noise=float(np.nextafter(2.0, 3.0))),
        identity(EXPERIMENT.model_copy(update={"seed": 1})),
        identity(a=torch.tensor([1.0, 1.0 + 1e-7])),
        identity(c=torch.zeros(1)),
        identity(a=torch.zeros(2), b=torch.ones(2)),
    ]
    assert len({identity(), *changed}) == 1 + len(changed)


def test_another_request_and_a_dropped_reply_find_nothing(tmp_path: Path) -> None:
    assert reply_cache.find(tmp_path, "request") is None
    reply_cache.keep(tmp_path, REPLY)
    assert reply_cache.find(tmp_path, "other") is None
    reply_cache.keep(tmp_path, dataclasses.replace(REPLY, request="later"))
    assert reply_cache.find(tmp_path, "request") is None
    reply_cache.drop(tmp_path)
    reply_cache.drop(tmp_path)
    assert reply_cache.find(tmp_path, "later") is None


def test_a_damaged_reply_is_not_used(tmp_path: Path) -> None:
    reply_cache.keep(tmp_path, REPLY)
    path = reply_cache.path(tmp_path)
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert reply_cache.find(tmp_path, "request") is None
    for data in (b"", good[:-1], b"\n", good + b"\0"):
        path.write_bytes(data)
        assert reply_cache.find(tmp_path, "request") is None


def test_a_reply_that_cannot_be_kept_is_no_reason_not_to_send_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply_cache.path(tmp_path).mkdir()
    reply_cache.keep(tmp_path, REPLY)
    assert "charged again" in caplog.text
    assert [p.name for p in (tmp_path / "node").iterdir()] == [reply_cache.FILE]
