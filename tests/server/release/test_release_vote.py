"""Every site is asked once about the very images that would be released; who does not answer has not said yes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from server import checkpoint
from server.evaluation.heldout import Heldout
from server.events import Events, read
from server.release import gate
from server.release.release_vote import answers, propose, proposed
from shared import messages, wire
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.models import weights
from shared.models.base import shapes
from shared.models.pixel_diffusion import PixelDiffusion
from simulations.testbed.fake_grid import Clock, MemoryGrid, Site, inside_a_run

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "model": {"image_size": 16, "channels": (8, 16), "groups": 4, "latents": 4, "encoder_channels": 8},
        "release": {"images_per_class": 3, "sampler_steps": 2},
        "performance": {"sampling_batch": 4},
    }
)
HELDOUT = Heldout(
    np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8), np.array([0, 0, 1, 1]), np.zeros(4, int)
)


class Federation(MemoryGrid):
    """A federation of nodes, each with what it says."""

    def __init__(self, *says: Site) -> None:
        super().__init__(dict(enumerate(says)), Clock())


def says(site: str, passed: bool) -> Site:
    return lambda *_: messages.pack_verdict(messages.Vote(site, passed))


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    checkpoint.save(tmp_path / "checkpoints", 1, attach(model(), "appearance"))
    checkpoint.mark_best(tmp_path / "checkpoints", 1, "FD-efflite0", 1.0)
    with inside_a_run():
        yield tmp_path


def model() -> PixelDiffusion:
    return weights.load_base("none", EXPERIMENT.model, EXPERIMENT.classes)


def ask(out: Path, grid: Federation, experiment: Experiment = EXPERIMENT) -> dict[str, Any] | None:
    nodes = grid.get_node_ids()
    events = Events(out / "events.jsonl")
    propose(grid, experiment, model(), lambda _: nodes, HELDOUT, events, out)  # type: ignore[arg-type]
    return answers(out)


def test_the_sites_see_the_images_that_would_be_released_and_their_bits_are_bound_to_them(out: Path) -> None:
    grid = Federation(says("north", True), says("south", False))
    found = ask(out, grid)
    drawn = proposed(out, EXPERIMENT, model())
    assert found == {"images_sha256": drawn.sha256(), "sites": {"north": True, "south": False}}
    assert grid.kinds == [MessageType.QUERY] * 2
    experiment, arrays, images = messages.unpack_proposal(grid.questions[0])
    assert experiment == EXPERIMENT
    np.testing.assert_array_equal(images["proposed"], np.concatenate([x for _, x in drawn.batches()]))
    np.testing.assert_array_equal(images["heldout"], HELDOUT.x_NHW)
    trained = attach(model(), "appearance")
    assert set(wire.tensors(arrays, shapes(trained), "it")) == set(trained)
    assert not gate.agreed(found, drawn.sha256(), 2).passed
    kinds = [e["event"] for e in read(out / "events.jsonl")]
    assert kinds[0] == "proposing"
    assert kinds.count("site_judged") == 2


def test_who_refuses_fails_or_answers_twice_has_not_said_yes(out: Path) -> None:
    grid = Federation(
        says("north", True),
        says("north", True),
        lambda *_: messages.pack_refusal(messages.Refusal("south", "answers")),
        lambda *_: RecordDict({"config": ConfigRecord({"site": "east", "passed": "yes"})}),
        lambda *_: RecordDict({"config": ConfigRecord({"site": "west", "passed": True, "patients": 24})}),
    )
    found = ask(out, grid)
    assert found is not None
    assert found["sites"] == {"north": True}
    reasons = [e["reason"] for e in read(out / "events.jsonl") if e["event"] == "site_did_not_judge"]
    assert len(reasons) == 4
    assert not gate.agreed(found, found["images_sha256"], 4).passed


class Torn(Federation):
    """Flower cannot put the message of node 0 together."""

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        wanted = list(names)
        if wanted == ["0-1"]:
            raise KeyError("patient 42")
        return super().pull_messages(wanted)


JUNK: list[RecordDict] = [
    RecordDict({}),
    RecordDict({"config": MetricRecord({"passed": 1})}),
    RecordDict({"config": ConfigRecord({"site": ["south"], "passed": True})}),
    RecordDict({"config": ConfigRecord({"site": "south", "passed": 1})}),
    RecordDict({"config": ConfigRecord({"site": "\u202e../south", "passed": True})}),
    RecordDict({"config": ConfigRecord({"site": "south", "refused": ["\x1b[2J" * 500], "about": ""})}),
    RecordDict({"config": ConfigRecord({"passed": True}), "arrays": ArrayRecord([np.zeros(3)])}),
]


def test_attack_06_no_site_can_stop_the_others_from_judging(out: Path) -> None:
    grid = Torn(*[lambda *_, junk=junk: junk for junk in [RecordDict({}), *JUNK]], says("north", True))
    found = ask(out, grid)
    assert found is not None
    assert found["sites"] == {"north": True}
    said = [e for e in read(out / "events.jsonl") if e["event"] == "site_did_not_judge"]
    assert len(said) == 1 + len(JUNK)
    for event in said:
        assert event["reason"].isascii() and event["reason"].isprintable() and len(event["reason"]) <= 300
        assert "42" not in event["reason"]


def test_a_node_that_no_site_owns_says_nothing_where_nodes_are_known(out: Path) -> None:
    """Also when the list of nodes is empty: that is not the same as a simulation, which has none."""
    (out / "nodes.json").write_text("{}")
    found = ask(out, Federation(says("north", True)))
    assert found is not None
    assert found["sites"] == {}


def test_nobody_is_asked_twice_about_the_same_images_nor_when_nothing_is_released(out: Path) -> None:
    first = ask(out, Federation(says("north", True)))
    again = Federation(says("north", False))
    assert ask(out, again) == first
    assert not again.questions
    tree = json.loads(EXPERIMENT.model_dump_json())
    for change in ({"images_per_class": 0}, {"gate": {"required": ["privacy"]}}):
        quiet = Experiment.model_validate(tree | {"release": tree["release"] | change})
        ask(out, again, quiet)
        assert not again.questions
    other = Experiment.model_validate(tree | {"seed": 5})
    found = ask(out, again, other)
    assert again.questions
    assert found != first
