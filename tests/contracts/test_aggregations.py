"""What every rule of aggregation promises, whatever file it lies in: a new one is tested the moment it appears."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from server.aggregation.base import LARGEST, RULES, Tensors, aggregator, check
from shared import plugins
from shared.config.experiment import Federation
from shared.errors import ConfigError, FederationError, MessageError
from shared.messages import TrainReply
from simulations.testbed.fake_grid import inside_a_run

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_aggregation.py"
OWN = RULES.names()
ALL = [*OWN, "geometric-median"]
SITES = 7


@pytest.fixture(scope="module", autouse=True)
def _example() -> Iterator[None]:
    """The example of the documentation keeps the promises as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_LOADED", {})
        plugins.load(EXAMPLE)
        yield


@pytest.fixture(autouse=True)
def _inside_a_run() -> Iterator[None]:
    with inside_a_run():
        yield


def reply(number: int, update: Tensors) -> TrainReply:
    return TrainReply(f"s{number}", update, 1.0, 3)


def honest(seed: int = 0, count: int = SITES) -> list[TrainReply]:
    """Updates of two tensors around one point."""
    rng = torch.Generator().manual_seed(seed)
    return [
        reply(n, {"a": 1 + 0.1 * torch.randn(3, generator=rng), "b": 0.1 * torch.randn(2, 2, generator=rng)})
        for n in range(count)
    ]


def combine(name: str, replies: list[TrainReply], **settings: object) -> torch.Tensor:
    rule = aggregator(Federation(aggregation=name, **settings))
    for one in replies:
        rule.add(one)
    result = rule.result()
    assert {n: tuple(t.shape) for n, t in result.items()} == {"a": (3,), "b": (2, 2)}
    assert all(t.dtype is torch.float32 for t in result.values())
    return torch.cat([result["a"].flatten(), result["b"].flatten()])


@pytest.mark.parametrize("name", OWN)
def test_a_rule_lies_in_the_file_of_its_name(name: str) -> None:
    assert RULES[name].__module__ == f"server.aggregation.{plugins.slug(name)}"


@pytest.mark.parametrize("name", ALL)
def test_the_order_in_which_replies_arrive_does_not_matter(name: str) -> None:
    replies = honest(count=5)
    expected = combine(name, replies)
    for order in itertools.islice(itertools.permutations(replies), 1, 120, 17):
        assert torch.equal(combine(name, list(order)), expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, -3.0, 2.0**13])
def test_equal_updates_give_that_update(name: str, value: float) -> None:
    replies = [reply(n, {"a": torch.full((3,), value), "b": torch.full((2, 2), value)}) for n in range(SITES)]
    assert torch.equal(combine(name, replies), torch.full((7,), value))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_the_result_lies_among_the_updates(name: str, seed: int) -> None:
    replies = honest(seed)
    found = combine(name, replies, assumed_bad_sites=2)
    x_SD = torch.stack([torch.cat([r.update["a"], r.update["b"].flatten()]) for r in replies])
    assert (found >= x_SD.min(dim=0).values - 1e-6).all()
    assert (found <= x_SD.max(dim=0).values + 1e-6).all()


@pytest.mark.parametrize("name", ALL)
def test_whatever_is_let_in_the_result_is_finite_and_what_is_beyond_is_named(name: str) -> None:
    sign = itertools.cycle([1.0, -1.0])
    wild = [
        reply(n, {"a": torch.full((3,), next(sign) * LARGEST), "b": torch.full((2, 2), 1e-38)}) for n in range(SITES)
    ]
    assert torch.isfinite(combine(name, wild)).all()
    for value in (math.nan, math.inf, 2 * LARGEST):
        with pytest.raises(MessageError, match="beyond 16384"):
            combine(name, [*honest(), reply(9, {"a": torch.full((3,), value), "b": torch.zeros(2, 2)})])


@pytest.mark.parametrize("name", [name for name in OWN if RULES[name].withstands] + ["geometric-median"])
@pytest.mark.parametrize("bad", [1, 2])
def test_a_rule_that_claims_it_withstands_as_many_bad_sites_as_it_was_told(name: str, bad: int) -> None:
    """The result stays within the honest updates, widened by the longest way between two of them, whatever the others send."""
    good = honest(seed=5, count=SITES - bad)
    x_SD = torch.stack([torch.cat([r.update["a"], r.update["b"].flatten()]) for r in good])
    wide = torch.cdist(x_SD, x_SD).max()
    low, high = x_SD.min(dim=0).values - wide, x_SD.max(dim=0).values + wide
    rng = torch.Generator().manual_seed(1)
    for size in (1.0, 100.0, LARGEST / 8):
        for together in (True, False):
            shift = torch.randn(7, generator=rng) * size
            sent = [shift if together else torch.randn(7, generator=rng) * size for _ in range(bad)]
            attack = [
                reply(90 + n, {"a": v[:3].clamp(-LARGEST, LARGEST), "b": v[3:].view(2, 2).clamp(-LARGEST, LARGEST)})
                for n, v in enumerate(sent)
            ]
            found = combine(name, [*attack, *good], assumed_bad_sites=bad)
            assert (found >= low).all() and (found <= high).all(), (size, together)


@pytest.mark.parametrize("name", [name for name in OWN if RULES[name].withstands] + ["geometric-median"])
def test_a_rule_that_withstands_bad_sites_says_how_many_good_ones_it_needs(name: str) -> None:
    with pytest.raises(FederationError, match=f"{name} against 3 bad sites needs .* sites"):
        combine(name, honest(count=6), assumed_bad_sites=3)


def test_an_unknown_rule_or_setting_is_refused_with_what_there_is() -> None:
    names = ", ".join(OWN)
    with pytest.raises(ConfigError, match=f"`federation.aggregation` names `meen`.*did you mean `mean`.*{names}"):
        check(Federation(aggregation="meen"))
    with pytest.raises(ConfigError, match=f"names no rule.*{names}"):
        check(Federation(aggregation={"steps": 3}))
    with pytest.raises(
        ConfigError, match=r"`federation.aggregation` \(geometric-median\): unknown key `step`.*`steps`"
    ):
        check(Federation(aggregation={"rule": "geometric-median", "step": 3}))
    with pytest.raises(ConfigError, match=r"\(geometric-median\): `steps` is 0"):
        check(Federation(aggregation={"rule": "geometric-median", "steps": 0}))
    check(Federation(aggregation={"rule": "trimmed-mean", "assumed_bad_sites": 2}))
    check(Federation(aggregation={"rule": "geometric-median", "steps": 3}))
