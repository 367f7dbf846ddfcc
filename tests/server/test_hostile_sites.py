"""Any bytes from any site: the round ends, the site is named, and the model moves by what the honest sites sent.

Replies come as they do over a network: parts by their names, put together by Flower, which may fail at any of them.
"""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress

from privacy.accounting import Event, epsilon
from server.aggregation.server_optimizer import ServerOptimizer
from server.events import Events, read
from server.ledgers import Ledgers
from server.strategy import Strategy
from server.superlink.follow import Follow
from shared import messages, wire
from shared.config.experiment import Experiment, Federation, Statistics, Training
from simulations.testbed.fake_grid import Clock, MemoryGrid, Site, inside_a_run

NOISE = 2.0
EXPERIMENT = Experiment(
    name="t",
    training=Training(rounds=1, steps=3),
    federation=Federation(deadline_s=3.0, join_timeout_s=1.0, attempts=1),
)
SPENT = epsilon([Event(NOISE, 1.0, 3)], EXPERIMENT.privacy.delta)
NAMES = {1: "north", 2: "south", 3: "east", 4: "bad", 5: "worse"}
Change = Callable[[RecordDict], None]


@pytest.fixture(autouse=True)
def _inside_a_run() -> Iterator[None]:
    with inside_a_run():
        yield


def honest(site: str, value: float) -> Site:
    def answer(request: RecordDict, _: int) -> RecordDict:
        update = {"a": torch.full((3,), value), "b": torch.full((2, 2), value)}
        return messages.pack_reply(messages.TrainReply(site, update, SPENT, 3, request=messages.request_id(request)))

    return answer


def hostile(change: Change, site: str = "bad") -> Site:
    def answer(request: RecordDict, asked: int) -> RecordDict:
        content = honest(site, -7.0)(request, asked)
        assert isinstance(content, RecordDict)
        change(content)
        return content

    return answer


class Wire(MemoryGrid):
    """Answers as bytes: `mangle` may change any part of a node's message before Flower puts it together."""

    mangle: dict[int, Callable[[str, dict[str, bytes]], str]] = {}  # noqa: RUF012 - of the test that sets it
    intruder: Message | None = None

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        found = []
        for message in super().pull_messages(names):
            node = message.metadata.src_node_id
            parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
            root = self.mangle[node](message.object_id, parts) if node in self.mangle else message.object_id
            whole = inflate_object_from_contents(root, parts)
            assert isinstance(whole, Message)
            found.append(whole)
        return [*([self.intruder] if self.intruder else []), *found]


def federate(
    out: Path, bad: dict[int, Site], *, grid: type[Wire] = Wire, experiment: Experiment = EXPERIMENT, minimum: int = 3
) -> tuple[torch.Tensor, dict[str, str], list[dict[str, object]]]:
    """One round of three honest sites, 1, 2 and 6, and bad ones: the model (3 everywhere), who failed why, all events."""
    clock = Clock()
    sites = {1: honest("north", 1.0), 2: honest("south", 2.0), 3: honest("east", 6.0)} | bad
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    events = Events(out / "events.jsonl")
    strategy = Strategy(
        experiment, tensors, noise_multiplier=NOISE, sites=len(sites), minimum_sites=minimum, largest=1e3, events=events,
        optimizer=ServerOptimizer(experiment.federation, tensors), after_round=lambda *_: None,
        ledgers=Ledgers(out), names=lambda: {n: NAMES[n] for n in sites}, clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    strategy.run(grid(sites, clock), 1, 1)
    said = read(events.path)
    failed = {str(e["site"]): str(e["reason"]) for e in said if e["event"] == "site_failed"}
    return torch.cat([t.flatten() for t in tensors.values()]), failed, said


def assert_rejected(out: Path, bad: Site, grid: type[Wire] = Wire) -> str:
    """The round ends with the mean of the honest sites alone, and the bad one is named, in bounded plain words."""
    model, failed, _ = federate(out, {4: bad}, grid=grid)
    assert torch.equal(model, torch.full((7,), 3.0))
    assert list(failed) == ["bad"]
    assert len(failed["bad"]) <= 400
    assert failed["bad"].isascii()
    assert failed["bad"].isprintable()
    return failed["bad"]


def npy(array: np.ndarray, cut: int = 0) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()[: len(file.getvalue()) - cut]


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(7, np.float32))
    return file.getvalue()


BYTES = {
    "nothing": b"",
    "no array": b"junk",
    "a cut array": npy(np.zeros(7, np.float32), cut=3),
    "a cut header": npy(np.zeros(7, np.float32))[:20],
    "a header that is no Python": b"\x93NUMPY\x01\x00\x04\x00((((",
    "an archive": zipped(),
    "a pickle": b"\x80\x04N.",
    "other numbers": npy(np.zeros(7, np.int32)),
    "another order": npy(np.zeros(7, ">f4")),
    "a huge shape": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999,), }".ljust(0x75)
    + b"\n",
    "a negative shape": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (-7,), }".ljust(0x75)
    + b"\n",
}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_attack_06_bytes_that_are_no_tensors_are_a_named_rejection(tmp_path: Path, data: bytes) -> None:
    def change(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: Array("float32", (7,), "numpy.ndarray", data)})

    assert_rejected(tmp_path, hostile(change))


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (7,), "somebody's own", npy(np.zeros(7, np.float32))),
        Array("object", (7,), "numpy.ndarray", b""),
        Array("float32", (-1,), "numpy.ndarray", b""),
        Array("float32", (10**30,), "numpy.ndarray", b""),
        Array("float32", (), "numpy.ndarray", npy(np.zeros((), np.float32))),
        Array("\u202efloat32\n" * 1000, (7,), "numpy.ndarray", b""),
    ],
)
def test_attack_06_a_false_declaration_is_a_named_rejection(tmp_path: Path, array: Array) -> None:
    def change(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: array})

    assert_rejected(tmp_path, hostile(change))


def test_attack_06_no_site_says_its_own_weight(tmp_path: Path) -> None:
    """One says that it counts 8,000 times, with an update that is as long as the others'."""

    def heavy(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: torch.full((7,), -2.0)})
        content["metrics"] = MetricRecord({"epsilon": SPENT, "weight": 8000.0, "steps": 3})

    model, _, _ = federate(tmp_path, {4: hostile(heavy)})
    assert float(model.min()) > 1.0
    assert float(model.max()) < 6.0


def test_attack_06_two_weights_at_the_end_of_the_floats_do_not_end_the_round(tmp_path: Path) -> None:
    def endless(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({wire.VECTOR: torch.zeros(7)})
        content["metrics"] = MetricRecord({"epsilon": SPENT, "weight": 1e308, "steps": 3})

    model, _, _ = federate(tmp_path, {4: hostile(endless), 5: hostile(endless, "worse")})
    assert torch.equal(model, torch.full((7,), 3.0))


@pytest.mark.parametrize(
    "figure",
    [
        {"epsilon": 0.0},
        {"epsilon": SPENT / 2},
        {"epsilon": float("inf")},
        {"epsilon": 1e300},
        {"epsilon": -1.0},
        {"epsilon": [1.0, 2.0]},
        {"epsilon": 4},
        {"steps": -5},
        {"steps": 0},
        {"steps": 2},
        {"steps": 10**18},
        {"steps": 3.0},
        {"steps": [3]},
    ],
)
def test_attack_06_every_number_of_a_reply_has_its_range(tmp_path: Path, figure: dict[str, float]) -> None:
    def change(content: RecordDict) -> None:
        content["metrics"] = MetricRecord({**dict(content["metrics"].items()), **figure})

    assert_rejected(tmp_path, hostile(change))


@pytest.mark.parametrize(
    "figures",
    [
        {"patient-count": 1e9, "mean-loss": 0.5},
        {"patient-count": -1e9, "mean-loss": 0.5},
        {"patient-count": 3.5, "mean-loss": 0.5},
        {"patient-count": 24.0, "mean-loss": -0.1},
        {"patient-count": 24.0, "mean-loss": 1.1},
    ],
)
def test_attack_06_every_figure_beside_an_update_has_its_range(tmp_path: Path, figures: dict[str, float]) -> None:
    asked = Statistics(patient_count=5.0, mean_loss=5.0)
    privacy = EXPERIMENT.privacy.model_copy(update={"statistics": asked})
    experiment = EXPERIMENT.model_copy(update={"privacy": privacy})
    spent = epsilon([Event(NOISE, 1.0, 3), Event(5.0, 1.0, 2)], privacy.delta)

    def tells(site: str, value: float, told: dict[str, float]) -> Site:
        def answer(request: RecordDict, times: int) -> RecordDict:
            content = honest(site, value)(request, times)
            assert isinstance(content, RecordDict)
            content["metrics"] = MetricRecord({**dict(content["metrics"].items()), "epsilon": spent, **told})
            return content

        return answer

    good = {"patient-count": -3.0, "mean-loss": 0.0}
    sites = {n: tells(NAMES[n], v, good) for n, v in ((1, 1.0), (2, 2.0), (3, 6.0))}
    model, failed, _ = federate(tmp_path, sites | {4: tells("bad", -7.0, figures)}, experiment=experiment)
    assert torch.equal(model, torch.full((7,), 3.0))
    assert list(failed) == ["bad"]


NESTED = "[" * 100_000
PARTS: dict[str, Callable[[bytes], bytes]] = {
    "no head": lambda _: b"junk",
    "nothing": lambda _: b"",
    "not utf-8": lambda _: b"\xff\xfe \x00",
    "another kind": lambda part: part.replace(b"RecordDict", b"Message", 1),
    "an unknown kind": lambda part: part.replace(b"RecordDict", b"Exploit", 1),
    "no JSON": lambda part: part.partition(b"\x00")[0] + b"\x00{",
    "nested JSON": lambda part: part.partition(b"\x00")[0] + b"\x00" + NESTED.encode(),
    "a list": lambda part: part.partition(b"\x00")[0] + b"\x00[]",
    "a wrong body": lambda part: part.partition(b"\x00")[0] + b'\x00{"config": 7}',
}


@pytest.mark.parametrize("change", PARTS.values(), ids=PARTS)
def test_attack_06_parts_that_flower_cannot_put_together_are_a_named_rejection(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    def mangle(root: str, parts: dict[str, bytes]) -> str:
        for name, part in parts.items():
            if part.startswith(b"RecordDict"):
                parts[name] = change(part)
        return root

    grid = type("Mangled", (Wire,), {"mangle": {4: mangle}})
    assert_rejected(tmp_path, hostile(lambda _: None), grid)


def test_attack_06_a_part_that_is_named_a_thousand_times_is_not_held_a_thousand_times(tmp_path: Path) -> None:
    """A megabyte that an array names 400 times over: 400 MB from 1 MB on the wire, and there is no end to it."""

    def mangle(root: str, parts: dict[str, bytes]) -> str:
        chunk = ArrayChunk(memoryview(bytes(1024 * 1024)))
        parts[chunk.object_id] = chunk.deflate()
        for name, part in list(parts.items()):
            if part.startswith(b"Array "):
                body = {"dtype": "float32", "shape": [7], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 400}
                text = json.dumps(body).encode()
                parts[name] = b"Array " + chunk.object_id.encode() + b" %d\x00" % len(text) + text
        return root

    grid = type("Mangled", (Wire,), {"mangle": {4: mangle}})
    tracemalloc.start()
    try:
        assert_rejected(tmp_path, hostile(lambda _: None), grid)
        assert tracemalloc.get_traced_memory()[1] < 100 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_attack_06_a_message_that_answers_no_question_is_taken_for_nobodys_answer(tmp_path: Path) -> None:
    """A node may hand the server a message that replies to nothing; it comes along with the first answer that is fetched."""
    forged = messages.pack_reply(
        messages.TrainReply("north", {"a": torch.full((3,), -7.0), "b": torch.zeros(2, 2)}, SPENT, 3, request="?")
    )
    grid = type("Intruded", (Wire,), {"intruder": Message(forged, dst_node_id=1, message_type="train")})
    model, failed, _ = federate(tmp_path, {}, grid=grid)
    assert torch.equal(model, torch.full((7,), 3.0))
    assert failed == {}


REFUSALS = ["\x1b[2J\x07", "line\nanother", "\u202eevil\u2028", "[/red] [link=x]", "x" * 10_000, "<script>"]


@pytest.mark.parametrize("reason", REFUSALS)
def test_attack_06_a_refusals_words_are_bounded_and_plain_wherever_they_are_shown(tmp_path: Path, reason: str) -> None:
    def refuse(content: RecordDict) -> None:
        for name in list(content):
            del content[name]
        content["config"] = ConfigRecord({"site": "bad", "refused": reason, "about": reason})

    assert_rejected(tmp_path, hostile(refuse))
    shown = io.StringIO()
    console = Console(file=shown, width=500)
    with Progress(console=console, disable=True) as bar:
        follow = Follow(console, bar, EXPERIMENT)
        for event in read(tmp_path / "events.jsonl"):
            follow(event)
        follow({"event": "site_did_not_judge", "site": "bad", "reason": reason[:300]})
    assert "bad" in shown.getvalue()


@pytest.mark.parametrize("name", ["", "Bad", "../bad", "bad\n", "\u0131", "x" * 1000, "bad\u202e"])
def test_attack_06_only_a_sites_name_is_a_name(tmp_path: Path, name: str) -> None:
    """Also where nodes are not authenticated: a name is a label of figures, a key of files."""
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    clock, events = Clock(), Events(tmp_path / "events.jsonl")
    sites = {1: honest("north", 1.0), 2: honest(name, 5.0)}
    strategy = Strategy(
        EXPERIMENT, tensors, noise_multiplier=NOISE, sites=2, minimum_sites=1, largest=1e3, events=events,
        optimizer=ServerOptimizer(EXPERIMENT.federation, tensors), after_round=lambda *_: None,
        ledgers=Ledgers(tmp_path), clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    strategy.run(Wire(sites, clock), 1, 1)
    assert torch.equal(tensors["a"], torch.ones(3))
    assert [e["site"] for e in read(events.path) if e["event"] == "site_failed"] == ["node 2"]


def test_an_honest_round_is_the_mean_of_all(tmp_path: Path) -> None:
    """The harness itself: what the attacks must not change."""
    model, failed, _ = federate(tmp_path, {4: honest("bad", 3.0)})
    assert torch.equal(model, torch.full((7,), 3.0))
    assert failed == {}


# Any bytes from any site

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.lists(st.integers(-5, 5), max_size=3),
    st.sampled_from([SPENT, 3, 1e308, -1e308, 5e-324, 0.0, -0.0]),
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.sampled_from(["north", "bad", "worse", "../../etc", "\x1b[2J", "\u202e", "[/]", "", "0:", "1:" + "f" * 64]),
)
VALUES = st.one_of(TEXTS, st.binary(max_size=40), st.booleans(), NUMBERS, st.lists(st.text(max_size=3), max_size=2))
DTYPES = st.one_of(
    st.sampled_from(["float32", "<f4", "float64", "object", "O", "V0", "S1000000000", "float32\x00", "int8", ""]), TEXTS
)
DIMENSIONS = st.one_of(st.just(7), st.integers(-(10**20), 10**20))
KEYS = st.one_of(
    st.sampled_from([wire.VECTOR, "site", "request", "ledger", "refused", "epsilon", "steps", "weight"]), TEXTS
)
DATA = st.one_of(
    st.sampled_from(sorted(BYTES.values())),
    st.binary(max_size=300),
    st.builds(lambda x, n: npy(np.full(7, x, np.float32))[:n], st.floats(width=32), st.integers(0, 160)),
    st.builds(
        lambda text: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text,
        st.text(max_size=120).map(str.encode),
    ),
)
ARRAYS = st.builds(
    lambda dtype, shape, stype, data: Array(dtype, tuple(shape), stype, data),
    DTYPES, st.lists(DIMENSIONS, max_size=3), st.sampled_from(["numpy.ndarray", "pickle", ""]), DATA,
)  # fmt: skip
RECORDS = st.one_of(
    st.dictionaries(KEYS, ARRAYS, max_size=2).map(ArrayRecord),
    st.dictionaries(KEYS, VALUES, max_size=4).map(ConfigRecord),
    st.dictionaries(KEYS, NUMBERS, max_size=4).map(MetricRecord),
)


@st.composite
def anything(draw: st.DrawFn) -> Change:
    """A change of an honest reply: records put in the place of others, taken away, or changed in one value."""
    whole = draw(
        st.dictionaries(st.one_of(st.sampled_from(["arrays", "metrics", "config"]), TEXTS), RECORDS, max_size=3)
    )
    gone = draw(st.sets(st.sampled_from(["arrays", "metrics", "config"]), max_size=3))
    config, metrics = draw(st.dictionaries(KEYS, VALUES, max_size=2)), draw(st.dictionaries(KEYS, NUMBERS, max_size=2))
    array = draw(st.one_of(st.none(), ARRAYS))

    def change(content: RecordDict) -> None:
        content["config"] = ConfigRecord({**dict(content["config"].items()), **config})
        content["metrics"] = MetricRecord({**dict(content["metrics"].items()), **metrics})
        if array is not None:
            content["arrays"] = ArrayRecord({wire.VECTOR: array})
        for name in gone:
            del content[name]
        for name, record in whole.items():
            content.pop(name, None)
            content[name] = record

    return change


@st.composite
def mangles(draw: st.DrawFn) -> Callable[[str, dict[str, bytes]], str]:
    """A change of the parts of a message: bytes cut, put in or exchanged, parts lost, another part for the whole."""
    which, lose, root_too = draw(st.integers(0, 20)), draw(st.booleans()), draw(st.booleans())
    start, stop, put = draw(st.integers(0, 400)), draw(st.integers(0, 400)), draw(st.binary(max_size=60))
    repeat = draw(st.sampled_from([0, 1, 50, 10_000]))

    def mangle(root: str, parts: dict[str, bytes]) -> str:
        names = sorted(parts)
        name = names[which % len(names)]
        part = parts[name]
        if lose:
            del parts[name]
        elif repeat:
            parts[name] = part.replace(b"[0]", b"[" + b",".join([b"0"] * repeat) + b"]")
        else:
            parts[name] = part[:start] + put + part[min(start, stop) :]
        return name if root_too else root

    return mangle


@settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    first=anything(),
    second=st.one_of(anything(), st.none()),
    mangle=st.one_of(st.none(), mangles()),
    name=st.sampled_from(["bad", "north", "worse"]),
    rule=st.sampled_from(["mean", "median"]),
)
def test_whatever_a_site_sends_the_round_ends_with_the_honest_sites_mean(
    tmp_path_factory: pytest.TempPathFactory, first: Change, second: Change | None,
    mangle: Callable[[str, dict[str, bytes]], str] | None, name: str, rule: str,
) -> None:  # fmt: skip
    """A site that, by chance, sends what an honest one may send, is one: then the mean is that of four."""
    bad = {4: hostile(first, name)} | ({5: hostile(second, "worse")} if second else {})
    grid = type("Mangled", (Wire,), {"mangle": {4: mangle} if mangle else {}})
    out = tmp_path_factory.mktemp("round")
    federation = EXPERIMENT.federation.model_copy(update={"aggregation": rule, "assumed_bad_sites": 0})
    experiment = EXPERIMENT.model_copy(update={"federation": federation})
    tracemalloc.start()
    try:
        model, failed, events = federate(out, bad, grid=grid, experiment=experiment)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()
    updates = {"north": 1.0, "south": 2.0, "east": 6.0}
    taken = next(e for e in events if e["event"] == "round_finished")["contributed"]
    assert set(updates) <= set(taken)
    assert {NAMES[node] for node in bad} == set(failed) | (set(taken) - set(updates))
    if set(taken) == set(updates):
        expected = {"mean": 3.0, "median": 2.0}[rule]
        assert torch.equal(model, torch.full((7,), expected))
    else:  # nothing but what the ranges permit came in
        assert torch.isfinite(model).all()
        assert float(model.abs().max()) <= 1e3
    for reason in failed.values():
        assert reason.isascii() and reason.isprintable() and len(reason) <= 400
