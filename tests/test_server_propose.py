"""Every site is asked once about the very images that would be released; who does not answer has not said yes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server import checkpoint
from server.events import Events, read
from server.measure.heldout import Heldout
from server.publish import gate
from server.publish.propose import answers, propose, proposed
from shared import messages, weights
from shared.config import Experiment
from shared.network import Model

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "network": {"image_size": 16, "channels": (8, 16), "groups": 4, "latents": 4, "encoder_channels": 8},
        "release": {"images_per_class": 3, "sampler_steps": 2},
        "performance": {"sampling_batch": 4},
    }
)
HELDOUT = Heldout(
    np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8), np.array([0, 0, 1, 1]), np.zeros(4, int)
)


class Grid:
    """A federation of three nodes, each with what it says."""

    def __init__(self, *says: Callable[[RecordDict], RecordDict]) -> None:
        self.says = says
        self.asked: list[RecordDict] = []

    def send_and_receive(self, asked: list[Message], timeout: float) -> list[Message]:
        replies = []
        for message in asked:
            assert message.metadata.message_type == MessageType.QUERY
            self.asked.append(message.content)
            message.metadata.__dict__["_message_id"] = "1"
            replies.append(Message(self.says[message.metadata.dst_node_id](message.content), reply_to=message))
        return replies


def says(site: str, passed: bool) -> Callable[[RecordDict], RecordDict]:
    return lambda _: messages.pack_verdict(messages.Verdict(site, passed))


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("_run_id", "_node_id", "_task_id"):  # Flower sets them where an app runs
        monkeypatch.setattr(TaskIdentity, name, 1)
    checkpoint.save(tmp_path / "checkpoints", 1, model().trainable("adapter"))
    checkpoint.mark_best(tmp_path / "checkpoints", 1, "FD-efflite0", 1.0)
    return tmp_path


def model() -> Model:
    return weights.load_base("none", EXPERIMENT.network, EXPERIMENT.classes)


def ask(out: Path, grid: Grid, experiment: Experiment = EXPERIMENT) -> dict[str, Any] | None:
    nodes = list(range(len(grid.says)))
    events = Events(out / "events.jsonl")
    propose(grid, experiment, model(), lambda _: nodes, HELDOUT, events, out)  # type: ignore[arg-type]
    return answers(out)


def test_the_sites_see_the_images_that_would_be_released_and_their_bits_are_bound_to_them(out: Path) -> None:
    grid = Grid(says("north", True), says("south", False))
    found = ask(out, grid)
    drawn = proposed(out, EXPERIMENT, model())
    assert found == {"images_sha256": drawn.sha256(), "sites": {"north": True, "south": False}}
    experiment, arrays, images = messages.unpack_proposal(grid.asked[0])
    assert experiment == EXPERIMENT
    np.testing.assert_array_equal(images["proposed"], np.concatenate([x for _, x in drawn.batches()]))
    np.testing.assert_array_equal(images["heldout"], HELDOUT.x_NHW)
    assert set(arrays) == set(model().trainable("adapter"))
    assert not gate.agreed(found, drawn.sha256(), 2).passed
    kinds = [e["event"] for e in read(out / "events.jsonl")]
    assert kinds[0] == "proposing"
    assert kinds.count("site_judged") == 2


def test_who_refuses_fails_or_answers_twice_has_not_said_yes(out: Path) -> None:
    grid = Grid(
        says("north", True),
        says("north", True),
        lambda _: messages.pack_refusal(messages.Refusal("south", "no")),
        lambda _: RecordDict({"config": ConfigRecord({"site": "east", "passed": "yes"})}),
        lambda _: RecordDict({"config": ConfigRecord({"site": "west", "passed": True, "patients": 24})}),
    )
    found = ask(out, grid)
    assert found is not None
    assert found["sites"] == {"north": True}
    reasons = [e["reason"] for e in read(out / "events.jsonl") if e["event"] == "site_did_not_judge"]
    assert len(reasons) == 4
    assert not gate.agreed(found, found["images_sha256"], 4).passed


def test_nobody_is_asked_twice_about_the_same_images_nor_when_nothing_is_released(out: Path) -> None:
    first = ask(out, Grid(says("north", True)))
    again = Grid(says("north", False))
    assert ask(out, again) == first
    assert not again.asked
    tree = json.loads(EXPERIMENT.model_dump_json())
    for change in ({"images_per_class": 0}, {"gate": {"required": ["privacy"]}}):
        quiet = Experiment.model_validate(tree | {"release": tree["release"] | change})
        ask(out, again, quiet)
        assert not again.asked
    other = Experiment.model_validate(tree | {"seed": 5})
    found = ask(out, again, other)
    assert again.asked
    assert found != first
