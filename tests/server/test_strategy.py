"""Rounds that survive: whatever a site sends or does not send, the round ends, names it, and counts what is good."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Error, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from privacy.accounting import Event, epsilon
from server.aggregation.base import check_weights
from server.aggregation.server_optimizer import ServerOptimizer
from server.events import Events, read
from server.ledgers import Ledgers
from server.strategy import Strategy, largest_update
from shared import messages, wire
from shared.config.experiment import Experiment, Federation, Privacy, Training
from shared.errors import ConfigError, FederationError, WeightsError
from shared.models import weights as store
from shared.refusals import WORDS
from simulations.testbed.fake_grid import Clock, MemoryGrid, Site, inside_a_run

EXPERIMENT = Experiment(
    name="t", training=Training(rounds=3), federation=Federation(deadline_s=10.0, join_timeout_s=5.0, attempts=2)
)

SPENT = epsilon([Event(1.0, 1.0, 3)], EXPERIMENT.privacy.delta)


def good(name: str, value: float = 1.0, **changes: object) -> Site:
    """A site whose update is `value` everywhere."""

    def answer(request: RecordDict, _: int) -> RecordDict:
        update = {"a": torch.full((3,), value), "b": torch.full((2, 2), value)}
        reply = messages.TrainReply(name, update, SPENT, 3, request=messages.request_id(request))
        return messages.pack_reply(replace(reply, **changes))

    return answer


@pytest.fixture(autouse=True)
def _inside_a_run() -> Iterator[None]:
    with inside_a_run():
        yield


def run(
    tmp_path: Path, sites: dict[int, Site], *, minimum: int = 1, last: int = 1, delay_s: dict[int, float] | None = None,
    largest: float = math.inf, names: Callable[[], dict[int, str] | None] = lambda: None,
    keep: Callable[[MemoryGrid], None] = lambda _: None, **federation: object,
) -> tuple[dict[str, torch.Tensor], list[dict[str, object]], MemoryGrid]:  # fmt: skip
    clock = Clock()
    settings = EXPERIMENT.federation.model_copy(update=federation)
    experiment = EXPERIMENT.model_copy(update={"federation": settings})
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    grid = MemoryGrid(sites, clock, delay_s)
    keep(grid)
    events = Events(tmp_path / "events.jsonl")
    strategy = Strategy(
        experiment, tensors, noise_multiplier=1.0, sites=len(sites), minimum_sites=minimum, largest=largest, events=events,
        optimizer=ServerOptimizer(settings, tensors), after_round=lambda *_: None, ledgers=Ledgers(tmp_path), names=names,
        clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    try:
        strategy.run(grid, 1, last)
    finally:
        found = read(events.path)
    return tensors, found, grid


def failures(events: list[dict[str, object]]) -> dict[object, str]:
    return {e["site"]: str(e["reason"]) for e in events if e["event"] == "site_failed"}


def test_the_mean_uses_the_experiments_weights(tmp_path: Path) -> None:
    tensors, events, _ = run(tmp_path, {1: good("x", 1.0), 2: good("y", 4.0)}, weights={"y": 2.0})
    assert torch.equal(tensors["a"], torch.full((3,), 3.0))
    assert events[-1]["contributed"] == ["x", "y"]


@pytest.mark.parametrize("rule", ["mean", "multi-krum"])
def test_weights_as_far_apart_as_they_may_be_give_the_weighted_mean(tmp_path: Path, rule: str) -> None:
    weights = {f"s{n}": w for n, w in enumerate((0.01, 100.0, 1.0, 7.0, 0.5), 1)}
    values = dict(zip(weights, (-100.0, 3.0, 0.001, 2.0**13, -4.0), strict=True))
    sites = {n: good(name, values[name]) for n, name in enumerate(weights, 1)}
    tensors, _, _ = run(tmp_path, sites, weights=weights, aggregation=rule, assumed_bad_sites=0)
    expected = sum(weights[n] * values[n] for n in weights) / sum(weights.values())
    assert float(tensors["a"][0]) == pytest.approx(expected, rel=1e-6)


def test_no_number_of_extreme_updates_makes_the_model_or_the_servers_optimizer_infinite(tmp_path: Path) -> None:
    for name in ("average", "momentum", "adam"):
        settings = Federation(server_optimizer=name, server_learning_rate=100.0)  # type: ignore[arg-type]
        model = {"a": torch.zeros(3)}
        optimizer = ServerOptimizer(settings, model)
        for _ in range(200):
            optimizer.step({"a": torch.tensor([2.0**14, -(2.0**14), 1e-30])})
        assert float(model["a"].abs().max()) <= 2.0**20
        with pytest.raises(FederationError, match="not finite"):
            optimizer.step({"a": torch.tensor([1.0, math.nan, 0.0])})
        optimizer.save(tmp_path / name)
        ServerOptimizer(settings, {"a": torch.zeros(3)}).load(tmp_path / name)


def test_moments_that_are_not_finite_are_not_gone_on_with(tmp_path: Path) -> None:
    store.write(tmp_path / "moments", {"a/momentum_buffer": torch.tensor([math.inf])})
    with pytest.raises(WeightsError, match="not finite"):
        ServerOptimizer(Federation(server_optimizer="momentum"), {"a": torch.zeros(1)}).load(tmp_path / "moments")


def test_a_weight_for_a_name_that_no_site_bears_is_an_error() -> None:
    check_weights(Federation(weights={"north": 2.0}), ["north", "south"])
    with pytest.raises(ConfigError, match="`nroth`; the sites are north, south"):
        check_weights(Federation(weights={"nroth": 2.0}), ["north", "south"])


def test_the_result_does_not_depend_on_the_order_of_arrival(tmp_path: Path) -> None:
    sites = {n: good(f"s{n}", 0.1 * n + 1e-3 / n) for n in range(1, 8)}
    weights = {f"s{n}": 1.0 + n / 7 for n in sites}
    results = [
        run(tmp_path / str(k), sites, delay_s={n: ((n * k) % 5) * 0.3 for n in sites}, weights=weights)[0]["a"]
        for k in range(1, 5)
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_pain07_a_site_that_never_answers_cannot_hang_a_run_and_is_named_once_it_is_known(tmp_path: Path) -> None:
    def once(request: RecordDict, asked: int) -> RecordDict | None:
        return good("y", 5.0)(request, asked) if asked == 1 else None

    tensors, events, grid = run(tmp_path, {1: good("x"), 2: once, 3: lambda *_: None}, last=2)
    assert grid.clock.now < 2 * 10.0 + 5.0
    assert failures(events) == {"node 3": "no reply within 10 s", "y": "no reply within 10 s"}
    assert torch.equal(tensors["a"], torch.full((3,), 4.0))  # (1 + 5) / 2, then 1


def test_a_reply_after_the_deadline_is_not_added(tmp_path: Path) -> None:
    tensors, events, _ = run(tmp_path, {1: good("x"), 2: good("y", 100.0)}, delay_s={2: 11.0}, last=3)
    assert torch.equal(tensors["a"], torch.full((3,), 3.0))
    assert len([e for e in events if e["event"] == "site_failed"]) == 3


def test_pain06_a_stale_reply_is_rejected_and_the_site_named(tmp_path: Path) -> None:
    first: list[RecordDict] = []

    def replays(request: RecordDict, asked: int) -> RecordDict:
        first.append(good("y", 7.0)(request, asked))
        return first[0]

    tensors, events, _ = run(tmp_path, {1: good("x"), 2: replays}, last=2)
    assert "another request" in failures(events)["y"]
    assert torch.equal(tensors["a"], torch.full((3,), 5.0))  # (1 + 7) / 2, then 1


def spoiled(change: Callable[[RecordDict], None]) -> Site:
    def answer(request: RecordDict, asked: int) -> RecordDict:
        content = good("bad", 100.0)(request, asked)
        change(content)
        return content

    return answer


def put(value: torch.Tensor, **more: torch.Tensor) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: value, **more})

    return change


def lie_about_the_shape(content: RecordDict) -> None:
    huge = ArrayRecord({"a": torch.zeros(1000)})["a"]
    content["arrays"][wire.VECTOR].data = huge.data  # the bytes of 1,000 numbers behind the shape of seven


def hide_in_metrics(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({**content["metrics"], "extra": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(torch.tensor([1.0] * 6 + [math.nan])), "not finite"),
        (put(torch.tensor([1.0] * 6 + [math.inf])), "not finite"),
        (put(torch.zeros(8)), "expected float32"),
        (put(torch.zeros(7, dtype=torch.float64)), "expected float32"),
        (put(torch.zeros(7), c=torch.zeros(3)), "may not travel"),
        (put(torch.full((7,), 1e9)), "honest one"),
        (put(torch.full((7,), 1e5)), "beyond 16384"),
        (lie_about_the_shape, "declared"),
        (hide_in_metrics, "may not travel"),
    ],
)
def test_a_bad_update_is_rejected_with_its_reason_and_the_round_stands(
    tmp_path: Path, change: Callable[[RecordDict], None], said: str
) -> None:
    tensors, events, _ = run(tmp_path, {1: good("x"), 2: spoiled(change)}, largest=1e6)
    assert torch.equal(tensors["a"], torch.ones(3))
    (reason,) = failures(events).values()
    assert said in reason


def test_an_error_a_refusal_and_a_second_reply_under_one_name_are_told_apart(tmp_path: Path) -> None:
    sites: dict[int, Site] = {
        1: good("x"),
        2: lambda *_: Error(code=0, reason="patient 42"),
        3: lambda *_: messages.pack_refusal(messages.Refusal("z", "budget")),
        4: good("x", 50.0),
        5: lambda *_: Error(code=ErrorCode.NODE_UNAVAILABLE, reason="offline"),
    }
    tensors, events, _ = run(tmp_path, sites)
    assert torch.equal(tensors["a"], torch.ones(3))
    said = failures(events)
    assert "the app at the site failed" in said["node 2"] and "not heard of any more" in said["node 5"]
    assert said["z"] == WORDS["budget"] and "second reply" in said["x"]
    assert "patient" not in said["node 2"]


def test_pain07_too_few_good_replies_are_asked_again_and_then_end_the_run(tmp_path: Path) -> None:
    def second_time(request: RecordDict, asked: int) -> RecordDict | None:
        return None if asked == 1 else good("y", 3.0)(request, asked)

    tensors, events, grid = run(tmp_path, {1: good("x"), 2: second_time}, minimum=2)
    assert torch.equal(tensors["a"], torch.full((3,), 2.0))
    assert [e["attempt"] for e in events if e["event"] == "round_failed"] == [1]
    assert grid.asked == {1: 2, 2: 2}
    with pytest.raises(FederationError, match="1 of 2 sites contributed, the experiment requires 2"):
        run(tmp_path / "again", {1: good("x"), 2: lambda *_: None}, minimum=2)


def test_pain01_a_site_that_drops_the_question_while_it_is_handed_out_takes_nobody_with_it(tmp_path: Path) -> None:
    def drops(*_: object) -> RecordDict:
        raise ObjectPushError("a", 1, "b")

    tensors, events, grid = run(tmp_path, {1: drops, 2: good("y", 5.0)})
    assert torch.equal(tensors["a"], torch.full((3,), 5.0))
    assert failures(events) == {"node 1": "the request could not be handed to it"}
    assert grid.clock.now < 1.0


def test_a_site_that_stays_away_is_waited_for_once_and_asked_again_when_it_is_back(tmp_path: Path) -> None:
    left: list[float] = []

    def counts(request: RecordDict, asked: int) -> RecordDict | None:
        left.append(grid[0].clock.now)
        grid[0].absent = {2} if asked < 3 else set()
        return good("x")(request, asked)

    grid: list[MemoryGrid] = []
    _, events, found = run(tmp_path, {1: counts, 2: good("y")}, last=6, keep=grid.append)
    waits = [later - earlier for earlier, later in itertools.pairwise(left)]
    assert [w > 4 for w in waits] == [True, False, False, False, False]  # join_timeout_s is 5
    assert found.asked[2] == 1 + 3  # before it left, and from the fourth round on
    assert len([e for e in events if e["event"] == "round_finished"]) == 6


def test_too_few_nodes_end_the_run_in_words(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="0 of 0 sites joined"):
        run(tmp_path, {}, minimum=1)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_robust_rules_withstand_a_site_that_sends_nonsense_and_the_mean_does_not(tmp_path: Path, rule: str) -> None:
    sites = {n: good(f"s{n}", 1.0 + n / 100) for n in range(1, 6)} | {6: good("bad", -1e3)}
    tensors, _, _ = run(tmp_path, sites, aggregation=rule)
    assert 1.0 < float(tensors["a"].min()) <= float(tensors["a"].max()) < 1.06
    tensors, _, _ = run(tmp_path / "mean", sites)
    assert float(tensors["a"].mean()) < -100


def test_a_robust_rule_without_enough_sites_refuses(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="needs 5 sites"):
        run(tmp_path, {n: good(f"s{n}") for n in range(3)}, aggregation="krum")


@pytest.mark.parametrize("name", ["average", "momentum", "adam"])
def test_the_servers_optimizer_goes_on_after_an_interruption_as_if_there_were_none(tmp_path: Path, name: str) -> None:
    settings = Federation(server_optimizer=name, server_learning_rate=0.5)  # type: ignore[arg-type]
    updates = [{"a": torch.randn(4)} for _ in range(4)]
    whole = {"a": torch.zeros(4)}
    optimizer = ServerOptimizer(settings, whole)
    for update in updates:
        optimizer.step(update)
    parts = {"a": torch.zeros(4)}
    first = ServerOptimizer(settings, parts)
    for update in updates[:2]:
        first.step(update)
    first.save(tmp_path / "moments")
    second = ServerOptimizer(settings, parts)
    second.load(tmp_path / "moments")
    for update in updates[2:]:
        second.step(update)
    assert torch.equal(whole["a"], parts["a"])
    assert (name == "average") == torch.allclose(whole["a"], 0.5 * sum(u["a"] for u in updates))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_honest_update_reaches_the_bound_and_a_hundredfold_one_does(optimizer: str) -> None:
    from privacy.noise import SecureRandom
    from privacy.sgd import PatientOptimizer, private_step

    training = Training(optimizer=optimizer, learning_rate=0.1, steps=5)  # type: ignore[arg-type]
    experiment = Experiment(name="t", training=training, privacy=Privacy(expected_patients=8, sampling_rate=0.5))
    parameter = torch.nn.Parameter(torch.zeros(300))
    plain: torch.optim.Optimizer = torch.optim.SGD([parameter], lr=0.1)
    if optimizer == "adam":
        plain = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99))
    private = PatientOptimizer(
        plain, noise_multiplier=2.0, max_grad_norm=1.5, sampling_rate=0.5, expected_patients=8, noise=SecureRandom()
    )
    for _ in range(5):
        private_step(lambda g: (parameter * g).sum(), [torch.full((300,), 100.0)] * 16, private)
    length, bound = float(parameter.detach().norm()), largest_update(experiment, 2.0, 300)
    assert length < bound < 100 * length
    assert largest_update(experiment, 0.0, 300) == math.inf


def test_a_node_cannot_answer_under_the_name_of_another_site(tmp_path: Path) -> None:
    tensors, events, _ = run(tmp_path, {1: good("x"), 2: good("z", 9.0)}, names=lambda: {1: "x", 2: "y"})
    assert torch.equal(tensors["a"], torch.ones(3))
    assert failures(events) == {"y": "a reply under the name of another site"}
