"""Only the agreed keys travel, and everything is checked on arrival."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from shared import flower, messages, wire
from shared.config.experiment import Experiment
from shared.errors import ConfigError, MessageError

SHAPES = {"a": (2, 3), "b": (1,)}
HASH = "0a" * 32
LEDGER = (7, HASH)


def reply() -> RecordDict:
    update = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    return messages.pack_reply(messages.TrainReply("north", update, 2.0, 4, request="?", ledger=LEDGER))


def test_a_reply_comes_back_as_it_was_sent() -> None:
    back = messages.unpack_reply(reply(), SHAPES)
    assert isinstance(back, messages.TrainReply)
    assert (back.site, back.epsilon, back.steps, back.request, back.ledger) == ("north", 2.0, 4, "?", LEDGER)
    assert torch.equal(back.update["a"], torch.ones(2, 3))
    assert torch.equal(back.update["b"], torch.zeros(1))
    assert back.bytes > 28


def test_tensors_of_any_shape_travel_in_one_array_and_their_order_does_not_matter() -> None:
    update = {"c": torch.tensor(3.0), "b": torch.tensor([2.0]), "a": torch.arange(6.0).view(2, 3)}
    content = messages.pack_reply(messages.TrainReply("north", update, 2.0, 4))
    assert list(content["arrays"]) == [wire.VECTOR]
    shapes = {"b": (1,), "a": (2, 3), "c": ()}
    back = messages.unpack_reply(content, shapes)
    assert isinstance(back, messages.TrainReply)
    assert {name: (t.shape, t.tolist()) for name, t in back.update.items()} == {
        name: (t.shape, t.tolist()) for name, t in update.items()
    }


def test_figures_travel_only_where_they_were_asked_for() -> None:
    update = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    figures = {"patient-count": -3.0, "mean-loss": 0.25}
    content = messages.pack_reply(messages.TrainReply("north", update, 2.0, 4, statistics=figures))
    back = messages.unpack_reply(content, SHAPES, figures)
    assert isinstance(back, messages.TrainReply)
    assert back.statistics == figures
    for asked in ((), ("mean-loss",), ("mean-loss", "patient-count", "more")):
        with pytest.raises(MessageError):
            messages.unpack_reply(content, SHAPES, asked)
    for value in (float("nan"), float("inf"), 3):
        spoiled = messages.TrainReply("north", update, 2.0, 4, statistics={"mean-loss": value})
        with pytest.raises(MessageError, match="finite number"):
            messages.unpack_reply(messages.pack_reply(spoiled), SHAPES, ["mean-loss"])


def test_a_refusal_comes_back_as_it_was_sent() -> None:
    for refusal in (messages.Refusal("north", "budget"), messages.Refusal("north", "policy", "privacy.delta")):
        assert messages.unpack_reply(messages.pack_refusal(refusal), SHAPES) == refusal


def test_a_refusal_says_one_of_a_few_sentences_and_names_a_setting_or_nothing() -> None:
    for word, setting in (("BudgetExceeded: no", ""), ("policy", "/etc/passwd"), ("policy", "privacy")):
        if setting == "privacy":
            messages.Refusal("north", word, setting)
            continue
        with pytest.raises(ValueError, match="few sentences"):
            messages.Refusal("north", word, setting)
        config = ConfigRecord({"site": "north", "refused": word, "about": setting})
        with pytest.raises(MessageError, match="no site uses"):
            messages.unpack_reply(RecordDict({"config": config}), SHAPES)


def test_a_request_comes_back_as_it_was_sent() -> None:
    experiment = Experiment(name="x")
    sent = messages.TrainRequest(experiment, 2, 1.5, {"a": torch.ones(2, 3), "b": torch.zeros(1)})
    settings, number, noise, arrays = messages.unpack_request(messages.pack_request(sent))
    assert (settings, number, noise) == (experiment, 2, 1.5)
    assert torch.equal(wire.tensors(arrays, SHAPES, "it")["a"], torch.ones(2, 3))


PARTS = """
import torch
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from shared import messages
update = {"a": torch.randn(3_000_000), "b": torch.randn(1)}
content = messages.pack_reply(messages.TrainReply("north", update, 2.0, 4))
print(max(len(part.deflate()) for part in get_all_nested_objects(content).values()), len(get_all_nested_objects(content)))
"""


def test_pain03_a_large_update_travels_in_parts_that_a_slow_link_carries_one_by_one() -> None:
    """A cut line costs one part; httpx bounds the silence within a part, not the time of the whole."""
    environment = os.environ | flower.SETTINGS
    program = [sys.executable, "-c", PARTS]
    said = subprocess.run(program, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    largest, parts = map(int, said.split())
    assert largest <= int(flower.SETTINGS["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"]) + 100
    assert 6 < parts < 16  # 12 MB, and the records that hold them


def _arrays(value: torch.Tensor, **more: torch.Tensor) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: value, **more})

    return spoil


def _other_name(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord({"a": torch.ones(7)})


def _no_array(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord({})


def _extra_metric(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"epsilon": 1.0, "steps": 4, "loss": 0.3})


def _nan_epsilon(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"epsilon": float("nan"), "steps": 4})


def _own_weight(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"epsilon": 1.0, "weight": 1.0, "steps": 4})


def _ledger(text: object) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["config"] = ConfigRecord({"site": "north", "request": "?", "ledger": text})  # type: ignore[dict-item]

    return spoil


def _extra_config(content: RecordDict) -> None:
    content["config"] = ConfigRecord({"site": "north", "note": "hello"})


def _extra_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"a": 1})


@pytest.mark.parametrize(
    "spoil",
    [_arrays(torch.ones(7), patients=torch.zeros(1)), _arrays(torch.ones(6)), _arrays(torch.ones(8)),
     _arrays(torch.ones(7, 1)), _arrays(torch.ones(7).double()), _arrays(torch.full((7,), torch.nan)), _other_name, _no_array,
     _extra_metric, _nan_epsilon, _own_weight, _extra_config, _extra_record,
     *map(_ledger, ("", "0", "7:", f"0:{HASH}", f"-1:{HASH}", f"7:{HASH.upper()}", f"7:{HASH}\n", f"{10**9}:{HASH}", 7))],
)  # fmt: skip
def test_a_spoiled_reply_is_refused(spoil: Callable[[RecordDict], None]) -> None:
    content = reply()
    spoil(content)
    with pytest.raises(MessageError):
        messages.unpack_reply(content, SHAPES)


@pytest.mark.parametrize(
    "config",
    [
        {"experiment": "{", "round": 1, "noise-multiplier": 1.0},
        {"experiment": '{"name": "a", "seeed": 1}', "round": 1, "noise-multiplier": 1.0},
        {"experiment": '{"name": "a", "plugins": ["my_metric.py"]}', "round": 1, "noise-multiplier": 1.0},
        {"experiment": '{"name": "a"}', "round": 99, "noise-multiplier": 1.0},
        {"experiment": '{"name": "a"}', "round": 1, "noise-multiplier": float("nan")},
        {"experiment": '{"name": "a"}', "round": 1, "noise-multiplier": -1.0},
        {"experiment": '{"name": "a"}', "round": 1},
        {"experiment": '{"name": "a"}', "round": 1, "noise-multiplier": 1.0, "noise-seed": 3},
    ],
)
def test_a_spoiled_request_is_refused(config: dict[str, float | int | str]) -> None:
    content = RecordDict({"arrays": ArrayRecord({"a": torch.ones(1)}), "config": ConfigRecord(config)})
    with pytest.raises((MessageError, ConfigError)):
        messages.unpack_request(content)
