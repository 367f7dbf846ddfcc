"""What arrives at a hospital's node and what leaves it: the app's own process is not asked."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import app, dataset
from client.deidentification import pseudonym
from client.supernode import approval, journal, node
from client.supernode.boundary import Boundary
from privacy import accounting, ledger
from privacy.accounting import Event
from shared import messages
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.crypto import bundle
from shared.errors import PolicyError
from shared.models import weights
from shared.models.pixel_diffusion import PixelDiffusionSettings

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "model": PixelDiffusionSettings(
            image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8
        ).model_dump(),
        "training": {"rounds": 2, "steps": 2},
        "cohort": {"patients_per_site": 3},
    }
)
OURS = bundle.build()
SECRET = "JANE SMITH 1947"  # what an app must not get out, wherever it hides it


def parts(message: Message) -> dict[str, bytes]:
    message.metadata.__dict__["_message_id"] = message.object_id
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


class Line:
    """The coordinator's side of the connection: one request waits, and what is sent is kept."""

    def __init__(self, content: RecordDict, code: bytes, kind: str = "train") -> None:
        metadata = Metadata(7, "", 0, 5, "", "", 0.0, 3600.0, kind)
        full = Message(content=content, metadata=metadata)
        self.objects, self.tree = parts(full), get_object_tree(full)
        self.message = remove_content_from_message(full)
        self.code, self.waiting = code, True
        self.sent: dict[str, bytes] = {}
        self.head = ""
        self.app = ("fedsynth/fedsynth", "0.1.0")
        self.times: list[float] = []
        self.pulled: list[str] = []
        self.late = 0  # how often a part is asked for before it is there; negative: it is gone

    def connection(self) -> tuple[Any, ...]:
        run = SimpleNamespace(
            run_id=7, fab_hash=bundle.sha256(self.code), primary_task_type="flwr-serverapp", fab_id=self.app[0],
            fab_version=self.app[1],
        )  # fmt: skip
        fab = SimpleNamespace(content=self.code, hash_str=run.fab_hash)
        return (
            5,
            self.receive,
            self.send,
            lambda _: run,
            lambda *_: fab,
            self.pull,
            lambda _run, _session, name, data: self.sent.update({name: data}),
            lambda *_: None,
        )

    def receive(self) -> tuple[Message, Any] | None:
        waiting, self.waiting = self.waiting, False
        return (self.message, self.tree) if waiting else None

    def pull(self, _run: int, name: str) -> bytes:
        self.pulled.append(name)
        if self.pulled.count(name) <= self.late:
            raise ObjectUnavailableError(name)
        if self.late < 0:
            raise ObjectPullError(name, "the object could not be found")
        return self.objects[name]

    def send(self, message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
        self.head = tree.object_id
        self.times.append(seconds)
        return {t.object_id for t in walk(tree)}, "session"

    def arrived(self) -> messages.TrainReply | messages.Refusal:
        opened = inflate_object_from_contents(self.head, dict(self.sent), keep_object_contents=True)
        assert isinstance(opened, Message)
        return messages.unpack_reply(opened.content, {k: tuple(t.shape) for k, t in trainable().items()})


def walk(tree: Any) -> list[Any]:
    return [tree, *(below for child in tree.children for below in walk(child))]


def trainable() -> dict[str, torch.Tensor]:
    model = weights.load_base("none", EXPERIMENT.model, EXPERIMENT.classes)
    return {k: v.detach() for k, v in attach(model, EXPERIMENT.training.trainable).items()}


def request(experiment: Experiment = EXPERIMENT, noise: float = 3.0, **extra: torch.Tensor) -> RecordDict:
    return messages.pack_request(messages.TrainRequest(experiment, 1, noise, trainable() | extra))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    rng = np.random.default_rng(0)
    for i in range(3):
        dataset.save(dataset.Patient(f"p{i}", i % 2, rng.integers(0, 255, (5, 16, 16), np.uint8)), tmp_path / "cohort")
    made = Site(name="north", data=tmp_path, format="images", face_removal="none")
    (tmp_path / "site.yaml").write_text(json.dumps(made.model_dump(mode="json")))
    dataset.register(made, tmp_path, image_size=16, classes=("a", "b"))
    approval.approve(made, tmp_path, OURS)
    return made


def exchange(
    site: Site,
    line: Line,
    reply: Callable[[Message], Message] | None = None,
) -> tuple[messages.TrainReply | messages.Refusal, bool]:
    """One request through the boundary and the app's reply back; also whether the app was started at all."""
    store: dict[str, bytes] = {}
    boundary = Boundary(site, site.data, store)
    _, receive, send, _, get_fab, pull, push, _ = boundary.wrap(line.connection())
    got = receive()
    if got is None:
        return line.arrived(), False
    assert get_fab(bundle.sha256(line.code), 7).content == line.code
    opened = inflate_object_from_contents(line.tree.object_id, {n: pull(7, n) for n in line.objects})
    assert isinstance(opened, Message)
    opened.metadata.__dict__["_message_id"] = line.message.metadata.message_id
    answer = (reply or honest(site))(opened)
    store.update(parts(answer))
    bare = remove_content_from_message(answer)
    wanted, _ = send(bare, get_object_tree(answer), 12.5)
    assert wanted == set()
    with pytest.raises(PolicyError):
        push(7, "session", "x", b"anything")
    return line.arrived(), True


def honest(site: Site) -> Callable[[Message], Message]:
    context: Any = SimpleNamespace(
        node_config={"site": str(site.data / "site.yaml"), "ledger": "node"}, run_config={}, run_id=7
    )
    return lambda message: Message(app.answer(message.content, context), reply_to=message)


def kinds(site: Site) -> list[str]:
    return [event["kind"] for event in journal.read(site.data) if event["kind"] not in ("approved", "withdrawn")]


def test_a_request_that_the_server_is_still_storing_is_waited_for_and_not_refused(site: Site) -> None:
    """A refusal would take the request away from under the server's hands, and end its run."""
    line = Line(request(), OURS)
    line.late = 2
    reply, started = exchange(site, line)
    assert started
    assert isinstance(reply, messages.TrainReply)
    assert "refused" not in kinds(site)


def test_a_request_that_was_taken_back_is_dropped_without_an_answer(site: Site) -> None:
    line = Line(request(), OURS)
    line.late = -1
    _, receive, *_ = Boundary(site, site.data, {}).wrap(line.connection())
    assert receive() is None
    assert line.head == ""
    assert kinds(site) == ["dropped"]


def test_a_request_that_never_arrives_whole_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.supernode.transfer.PATIENCE_S", 0.2)
    line = Line(request(), OURS)
    line.late = 10**9
    reply, started = exchange(site, line)
    assert not started
    assert isinstance(reply, messages.Refusal)
    assert reply.word == "failed"


def test_an_honest_round_passes_and_is_written_down(site: Site) -> None:
    line = Line(request(), OURS)
    reply, _ = exchange(site, line)
    assert isinstance(reply, messages.TrainReply)
    assert (reply.site, reply.steps) == ("north", 2)
    assert any(u.abs().sum() > 0 for u in reply.update.values())
    assert kinds(site) == ["asked", "sent"]


def test_the_apps_running_time_does_not_leave(site: Site) -> None:
    line = Line(request(), OURS)
    exchange(site, line)
    assert line.times == [0.0]


@pytest.mark.parametrize("change", ["one byte", "another file", "cut short"])
def test_pain11_a_bundle_that_differs_anywhere_never_starts_and_is_kept_to_look_at(site: Site, change: str) -> None:
    other = {
        "one byte": OURS.replace(b"noise_multiplier > 0", b"noise_multiplier > 9", 1),
        "another file": OURS + b"\0",
        "cut short": OURS[:-1],
    }[change]
    assert other != OURS
    line = Line(request(), other)
    reply, started = exchange(site, line)
    assert not started
    assert reply == messages.Refusal("north", "code")
    assert line.pulled == []  # not even the request was opened
    assert kinds(site) == ["refused"]
    assert [p.read_bytes() for p in (site.data / "node" / "refused").iterdir()] == [other]


def test_a_run_that_names_an_approved_hash_for_other_bytes_is_refused(site: Site) -> None:
    line = Line(request(), OURS)
    connection = list(line.connection())
    connection[4] = lambda *_: SimpleNamespace(content=OURS + b"\0", hash_str=bundle.sha256(OURS))
    assert Boundary(site, site.data, {}).wrap(tuple(connection))[1]() is None
    reply = line.arrived()
    assert reply == messages.Refusal("north", "code")


@pytest.mark.parametrize(
    "named",
    [("fedsynth/fedsynth/../../x", "0.1.0"), ("fedsynth/fedsynth", "../../../x"), ("elsewhere/fedsynth", "0.1.0")],
)
def test_attack_03_what_a_run_calls_its_app_never_becomes_a_path(site: Site, named: tuple[str, str]) -> None:
    line = Line(request(), OURS)
    line.app = named
    reply, started = exchange(site, line)
    assert not started and reply == messages.Refusal("north", "code")


def test_a_withdrawn_approval_holds_from_the_next_message_on(site: Site) -> None:
    assert exchange(site, Line(request(), OURS))[1]
    approval.withdraw(site.data, bundle.sha256(OURS))
    assert not exchange(site, Line(request(), OURS))[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: request(noise=0.0), "privacy.epsilon"),
        (lambda: request(changed(privacy={"epsilon": None})), "privacy.epsilon"),
        (lambda: request(changed(privacy={"epsilon": 9.0})), "privacy.epsilon"),
        (lambda: request(changed(privacy={"delta": 1e-3})), "privacy.delta"),
        (lambda: request(changed(training={"rounds": 101})), "training.rounds"),
        (lambda: request(changed(training={"rounds": 100, "steps": 101})), "training.steps"),
        (lambda: request(extra=torch.zeros(3)), "cannot be read"),
        (lambda: with_key("noise_seed", 1), "cannot be read"),
        (lambda: RecordDict({"config": ConfigRecord({"code": "print(1)"})}), "cannot be read"),
    ],
)
def test_a_request_beyond_the_policy_is_refused_before_the_app_starts(
    site: Site, content: Callable[[], RecordDict], words: str
) -> None:
    reply, started = exchange(site, Line(content(), OURS))
    assert not started
    assert isinstance(reply, messages.Refusal)
    assert words in reply.reason


def test_a_site_may_permit_less(site: Site) -> None:
    policy = site.policy.model_copy(update={"bases": ("phantoms-64",)})
    strict = site.model_copy(update={"policy": policy})
    reply, started = exchange(strict, Line(request(), OURS))
    assert not started and isinstance(reply, messages.Refusal) and reply.setting == "base"
    small = site.model_copy(update={"policy": site.policy.model_copy(update={"parts": ("full",)})})
    assert not exchange(small, Line(request(), OURS))[1]


def test_anything_but_training_and_judging_is_refused(site: Site) -> None:
    reply, started = exchange(site, Line(request(), OURS, kind="evaluate"))
    assert not started and reply == messages.Refusal("north", "policy")
    reply, started = exchange(site, Line(request(), OURS, kind="query"))
    assert not started and reply == messages.Refusal("north", "unreadable")


def proposal() -> RecordDict:
    x_NHW = np.random.default_rng(5).integers(0, 255, (4, 16, 16), np.uint8)
    return messages.pack_proposal(
        messages.Proposal(EXPERIMENT, trainable(), x_NHW, x_NHW, np.array([0, 0, 1, 1]), np.zeros(4, int))
    )


def judged(site: Site, reply: Callable[[Message], Message] | None = None) -> tuple[RecordDict, bool]:
    """What reaches the coordinator after a proposal, and whether the app was started."""
    line = Line(proposal(), OURS, kind="query")
    opened: list[RecordDict] = []

    def arrived() -> messages.Refusal:
        message = inflate_object_from_contents(line.head, dict(line.sent), keep_object_contents=True)
        assert isinstance(message, Message)
        opened.append(message.content)
        return messages.Refusal("", "failed")

    line.arrived = arrived  # type: ignore[method-assign]
    started = exchange(site, line, reply)[1]
    return opened[0], started


def test_one_bit_about_a_release_leaves_and_nothing_that_an_app_puts_beside_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.membership_inference.FEWEST", 2)  # this site has three patients
    context: Any = SimpleNamespace(
        node_config={"site": str(site.data / "site.yaml"), "ledger": "node"}, run_config={}, run_id=7
    )
    content, started = judged(site, lambda message: Message(app.judge(message.content, context), reply_to=message))
    assert started
    assert messages.unpack_verdict(content) == messages.Vote("north", True)
    assert kinds(site) == ["asked", "sent"]
    for smuggled in (
        RecordDict({"config": ConfigRecord({"site": SECRET, "passed": True})}),
        RecordDict({"config": ConfigRecord({"site": "north", "passed": True, "note": SECRET})}),
        RecordDict({"config": ConfigRecord({"site": "north", "passed": SECRET})}),
        RecordDict({"config": ConfigRecord({"site": "north", "passed": True}), SECRET: ConfigRecord()}),
        RecordDict({"config": ConfigRecord({"site": "north", "refused": SECRET})}),
    ):
        content, _ = judged(site, lambda message, smuggled=smuggled: Message(smuggled, reply_to=message))
        assert set(content.keys()) == {"config"}
        assert SECRET not in str(dict(content["config"]))


def test_a_site_that_judges_no_release_does_not_open_one(site: Site) -> None:
    content, started = judged(site.model_copy(update={"release_checks": 0}))
    assert not started
    assert messages.unpack_verdict(content) == messages.Refusal("north", "answers")


def changed(**sections: dict[str, Any]) -> Experiment:
    tree = EXPERIMENT.model_dump()
    for name, values in sections.items():
        tree[name] |= values
    return Experiment.model_validate(tree)


def with_key(name: str, value: object) -> RecordDict:
    content = request()
    tree = json.loads(str(content["config"]["experiment"]))  # type: ignore[index]
    tree["privacy"][name] = value
    content["config"]["experiment"] = json.dumps(tree)  # type: ignore[index]
    return content


def spoiled(site: Site, spoil: Callable[[RecordDict], RecordDict]) -> Callable[[Message], Message]:
    """An app that trains honestly and then changes its reply."""

    def reply(message: Message) -> Message:
        content = honest(site)(message).content
        return Message(spoil(content), reply_to=message)

    return reply


def add_tensor(content: RecordDict) -> RecordDict:
    arrays = dict(content["arrays"].items()) | {"hidden": Array(np.zeros(10, np.float32))}
    return RecordDict({**dict(content.items()), "arrays": ArrayRecord(arrays)})


def add_metric(content: RecordDict) -> RecordDict:
    return RecordDict(
        {**dict(content.items()), "metrics": MetricRecord({**dict(content["metrics"].items()), "patients": 3})}
    )


def add_config(content: RecordDict) -> RecordDict:
    return RecordDict(
        {**dict(content.items()), "config": ConfigRecord({**dict(content["config"].items()), "note": SECRET})}
    )


def add_record(content: RecordDict) -> RecordDict:
    return RecordDict({**dict(content.items()), "more": ConfigRecord({"note": SECRET})})


def other_name(content: RecordDict) -> RecordDict:
    return RecordDict(
        {**dict(content.items()), "config": ConfigRecord({**dict(content["config"].items()), "site": SECRET})}
    )


def other_request(content: RecordDict) -> RecordDict:
    config = {**dict(content["config"].items()), "request": SECRET}
    return RecordDict({**dict(content.items()), "config": ConfigRecord(config)})


def larger_array(content: RecordDict) -> RecordDict:
    """States the shape that is expected and holds another."""
    arrays = dict(content["arrays"].items())
    name, first = next(iter(arrays.items()))
    real = Array(np.zeros(5000, np.float32))
    arrays[name] = Array(dtype=first.dtype, shape=first.shape, stype=first.stype, data=real.data)
    return RecordDict({**dict(content.items()), "arrays": ArrayRecord(arrays)})


def not_finite(content: RecordDict) -> RecordDict:
    arrays = {n: Array(np.full(a.shape, np.nan, np.float32)) for n, a in content["arrays"].items()}
    return RecordDict({**dict(content.items()), "arrays": ArrayRecord(arrays)})


@pytest.mark.parametrize(
    "spoil",
    [add_tensor, add_metric, add_config, add_record, other_name, other_request, larger_array, not_finite],
)
def test_a_reply_with_anything_beside_the_list_is_kept_back(
    site: Site, spoil: Callable[[RecordDict], RecordDict]
) -> None:
    line = Line(request(), OURS)
    reply, started = exchange(site, line, spoiled(site, spoil))
    assert started
    assert reply == messages.Refusal("north", "failed")
    assert SECRET.encode() not in b"".join(line.sent.values())
    assert kinds(site) == ["asked", "kept back", "sent"]


@pytest.mark.parametrize("behind", [b"", SECRET.encode()])
def test_bytes_hidden_in_an_array_do_not_survive(site: Site, behind: bytes) -> None:
    """The .npy header may carry any padding: the boundary writes every array anew. What is longer than it says is kept back."""

    def pad(content: RecordDict) -> RecordDict:
        arrays = dict(content["arrays"].items())
        for name, array in arrays.items():
            data = array.data
            header = data[10 : 10 + int.from_bytes(data[8:10], "little")]
            padded = header.rstrip(b"\n ") + b" " * 64 + b"\n"
            hidden = data[:8] + len(padded).to_bytes(2, "little") + padded + data[10 + len(header) :] + behind
            arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=hidden)
        return RecordDict({**dict(content.items()), "arrays": ArrayRecord(arrays)})

    line = Line(request(), OURS)
    reply, _ = exchange(site, line, spoiled(site, pad))
    assert isinstance(reply, messages.Refusal if behind else messages.TrainReply)
    sent = b"".join(line.sent.values())
    assert b" " * 64 not in sent
    assert SECRET.encode() not in sent


def test_an_apps_error_text_stays_here(site: Site) -> None:
    line = Line(request(), OURS)
    reply, _ = exchange(site, line, lambda message: Message(Error(code=5, reason=SECRET), reply_to=message))
    assert reply == messages.Refusal("north", "failed")
    assert SECRET.encode() not in b"".join(line.sent.values())
    assert kinds(site) == ["asked", "failed", "sent"]


def test_an_apps_refusal_leaves_in_one_sentence_whatever_it_says(site: Site) -> None:
    for refused, about in (("budget", ""), (SECRET, ""), ("failed", SECRET)):

        def refuse(message: Message, refused: str = refused, about: str = about) -> Message:
            config = ConfigRecord({"site": SECRET, "refused": refused, "about": about})
            return Message(RecordDict({"config": config}), reply_to=message)

        line = Line(request(), OURS)
        reply, _ = exchange(site, line, refuse)
        assert reply == messages.Refusal("north", "failed")
        assert SECRET.encode() not in b"".join(line.sent.values())


def test_the_round_is_on_the_ledger_before_the_app_starts_whatever_the_app_does(site: Site) -> None:
    """Also for an app that knows of no ledger, and with what the ledger holds and not with what the app says."""
    on_record: list[int] = []

    def app_looks(message: Message) -> Message:
        on_record.append(len(ledger.checked_records(site.data / "ledger.jsonl")))
        return careless(message)

    reply, _ = exchange(site, Line(request(), OURS), app_looks)
    assert isinstance(reply, messages.TrainReply)
    assert on_record[0] > 1
    assert reply.epsilon == pytest.approx(accounting.epsilon([Event(3.0, 1.0, 4)], 1e-5))
    assert reply.ledger == (len(records := ledger.checked_records(site.data / "ledger.jsonl")), records[-1]["hash"])


def test_what_was_asked_before_is_answered_without_the_app_and_costs_nothing(site: Site) -> None:
    first, started = exchange(site, Line(request(), OURS))
    assert started and isinstance(first, messages.TrainReply)
    before = (site.data / "ledger.jsonl").read_bytes()
    again, started = exchange(site, Line(request(), OURS))
    assert not started and isinstance(again, messages.TrainReply)
    assert all(torch.equal(t, again.update[name]) for name, t in first.update.items())
    assert (site.data / "ledger.jsonl").read_bytes() == before


def test_a_cohort_that_was_made_anew_meanwhile_keeps_the_reply_back(site: Site) -> None:
    def ingested(message: Message) -> Message:
        dataset.save(dataset.Patient("p9", 0, np.zeros((5, 16, 16), np.uint8)), site.data / "cohort")
        (site.data / "cohort" / dataset.COHORT_FILE).write_text(dataset.cohort_id(site.data))
        dataset.register(site, site.data, image_size=16, classes=("a", "b"))
        return careless(message)

    assert exchange(site, Line(request(), OURS), ingested)[0] == messages.Refusal("north", "failed")


def test_answers_leave_at_whole_multiples_of_the_sites_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []
    monkeypatch.setattr("client.supernode.boundary.time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))
    punctual = site.model_copy(update={"policy": site.policy.model_copy(update={"answer_every_s": 60.0})})

    def slow(message: Message) -> Message:
        now[0] += 65.0
        return careless(message)

    exchange(punctual, Line(request(), OURS), slow)
    exchange(punctual, Line(request(noise=0.0), OURS))
    assert slept == [55.0, 0.0]


def test_attack_07_a_ledger_that_lost_its_end_is_found_out_by_the_nodes_journal(site: Site) -> None:
    path = site.data / "ledger.jsonl"
    exchange(site, Line(request(), OURS))
    for spoil in ("cut", "gone"):
        kept = {p: p.read_bytes() for p in site.data.glob("ledger*") if p.is_file()}
        for p in kept:
            p.unlink()
        if spoil == "cut":  # with a mark that agrees: whoever may write the folder can put an older pair back
            path.write_bytes(b"\n".join(kept[path].split(b"\n")[:1]) + b"\n")
        shifted = {name: t + 0.01 for name, t in trainable().items()}
        other = messages.pack_request(messages.TrainRequest(EXPERIMENT, 1, 3.0, shifted))
        reply, started = exchange(site, Line(other, OURS), careless)
        assert not started and reply == messages.Refusal("north", "ledger")
        for p in site.data.glob("ledger*"):
            if p.is_file():
                p.unlink()
        for p, data in kept.items():
            p.write_bytes(data)


def test_a_reply_that_nobody_asked_for_is_dropped(site: Site) -> None:
    line = Line(request(), OURS)
    _, receive, send, *_ = Boundary(site, site.data, {}).wrap(line.connection())
    got = receive()
    assert got is not None
    asked = Message(content=request(), metadata=Metadata(7, "x", 0, 5, "", "", 0.0, 9e9, "train"))
    stray = Message(request(), reply_to=asked)
    with pytest.raises(PolicyError, match="nobody asked for"):
        send(stray, get_object_tree(stray), 0.0)
    assert line.sent == {} and line.head == ""


def test_an_announced_reply_that_never_comes_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.supernode.transfer.PATIENCE_S", 0.2)
    line = Line(request(), OURS)
    _, receive, send, *_ = Boundary(site, site.data, dict.fromkeys(["x"], b"")).wrap(line.connection())
    got = receive()
    assert got is not None
    opened = inflate_object_from_contents(line.tree.object_id, dict(line.objects))
    assert isinstance(opened, Message)
    opened.metadata.__dict__["_message_id"] = line.message.metadata.message_id
    answer = Message(messages.pack_refusal(messages.Refusal("north", "failed")), reply_to=opened)
    parts(answer)
    send(remove_content_from_message(answer), get_object_tree(answer), 0.0)
    assert isinstance(line.arrived(), messages.Refusal)


def test_a_request_larger_than_the_policy_is_refused(site: Site) -> None:
    line = Line(request(), OURS)
    boundary = Boundary(site, site.data, {})
    boundary.limit = 100
    assert boundary.wrap(line.connection())[1]() is None
    reply = line.arrived()
    assert reply == messages.Refusal("north", "policy")


def test_a_damaged_journal_stops_everything(site: Site) -> None:
    exchange(site, Line(request(), OURS))
    path = node.folder(site.data) / journal.FILE
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    with pytest.raises(Exception, match="damaged"):
        exchange(site, Line(request(), OURS))


def careless(message: Message) -> Message:
    """An app that asks no ledger, and whose update is otherwise as it should be."""
    update = {name: torch.zeros_like(t) for name, t in trainable().items()}
    reply = messages.TrainReply("north", update, math.inf, 2, request=messages.request_id(message.content))
    return Message(messages.pack_reply(reply), reply_to=message)


def test_attack_08_one_reservation_lets_one_update_out(site: Site) -> None:
    """The same round with other weights: the record of the first must not open the door for the second."""
    assert isinstance(exchange(site, Line(request(), OURS))[0], messages.TrainReply)
    before = len(ledger.checked_records(site.data / "ledger.jsonl"))
    shifted = {name: t + 0.01 for name, t in trainable().items()}
    other = messages.pack_request(messages.TrainRequest(EXPERIMENT, 1, 3.0, shifted))
    reply, _ = exchange(site, Line(other, OURS), careless)
    assert isinstance(reply, messages.Refusal) or len(ledger.checked_records(site.data / "ledger.jsonl")) > before


def test_attack_08_a_reservation_at_another_rate_opens_nothing(site: Site) -> None:
    rare = changed(privacy={"sampling_rate": 0.01})
    assert isinstance(exchange(site, Line(request(rare), OURS))[0], messages.TrainReply)
    spent = ledger.checked_records(site.data / "ledger.jsonl")[-1]
    reply, _ = exchange(site, Line(request(), OURS), careless)
    now = ledger.checked_records(site.data / "ledger.jsonl")[-1]
    assert isinstance(reply, messages.Refusal) or now["epsilon"] > 5 * spent["epsilon"]


def test_attack_10_what_a_refusal_says_is_one_of_a_few_sentences(site: Site) -> None:
    """Whatever is wrong, on the way in or on the way out: no path, no number and no name of an error leaves."""
    said = set()
    for content in (
        request(changed(privacy={"epsilon": 9.0})),
        request(noise=0.0),
        request(EXPERIMENT.model_copy(update={"base": str(site.data / "x.safetensors")})),
        with_key("noise_seed", 1),
        RecordDict({"config": ConfigRecord({"code": SECRET})}),
    ):
        reply, _ = exchange(site, Line(content, OURS))
        assert isinstance(reply, messages.Refusal)
        said.add(reply.reason)
    assert not any(word in text for text in said for word in (str(site.data), SECRET, "Error", "9", "0x"))


MADE = st.builds(
    lambda noise, rate, classes, figures, steps, kind: {
        "noise": noise, "rate": rate, "classes": classes, "figures": figures, "steps": steps, "kind": kind,
    },
    noise=st.sampled_from([0.0, 0.2, 0.5, 3.0, 50.0]),
    rate=st.sampled_from([1.0, 0.3, 1e-6]),
    classes=st.sampled_from([{"a": "any", "b": "any"}, {"b": "any", "a": "any"}, {"a": "any"}]),
    figures=st.sampled_from([{}, {"patient_count": 30.0}, {"mean_loss": 40.0, "loss_bound": 5.0}]),
    steps=st.integers(1, 2),
    kind=st.sampled_from(["train", "train", "query"]),
)  # fmt: skip
PEOPLE = st.lists(
    st.tuples(
        st.sampled_from([-7, -1, 0, 1, 2, 10**6]), st.sampled_from(["good", "nan", "small", "none", "torn", "huge"])
    ),
    max_size=4,
)


def person(folder: Path, number: int, label: int, kind: str) -> None:
    """A patient of any sort in a cohort's folder."""
    size = 8 if kind == "small" else 16
    x = np.full((700 if kind == "huge" else 3, size, size), 17 * number % 255, np.uint8)
    dataset.save(dataset.Patient(f"p{number}", label, x), folder)
    path = folder / f"p{number}.npz"
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:-30])
    elif kind == "none":
        np.savez_compressed(path, x=np.zeros((0, 16, 16), np.uint8), label=np.int64(label))
    elif kind == "nan":
        np.savez_compressed(path, x=np.full((3, 16, 16), np.nan, np.float32), label=np.int64(label))


def leaves(made: dict[str, Any], people: list[tuple[int, str]]) -> tuple[Any, ...]:
    """Kind, size and wording of all that leaves a site with these patients, and how it is answered a second time."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / dataset.KEY_FILE).write_bytes(bytes(range(32)))
        (place / dataset.KEY_FILE).chmod(0o600)
        for number, (label, kind) in enumerate(people):
            person(place / "cohort", number, label, kind)
        share = ("patient-count", "mean-loss")
        site = Site(name="north", data=place, format="images", face_removal="none", share=share)
        (place / "site.yaml").write_text(json.dumps(site.model_dump(mode="json")))
        dataset.register(site, place, image_size=16, classes=("a", "b"))
        approval.approve(site, place, OURS)
        experiment = changed(
            privacy={"sampling_rate": made["rate"], "statistics": made["figures"]},
            training={"steps": made["steps"]},
        ).model_copy(update={"classes": made["classes"]})
        model = weights.load_base("none", experiment.model, experiment.classes)
        tensors = {k: v.detach() for k, v in attach(model, "appearance").items()}
        x_NHW = np.random.default_rng(5).integers(0, 255, (4, 16, 16), np.uint8)
        if made["kind"] == "query":
            content = messages.pack_proposal(
                messages.Proposal(experiment, tensors, x_NHW, x_NHW, np.array([0, 0, 1, 1]), np.zeros(4, int))
            )
        else:
            content = messages.pack_request(messages.TrainRequest(experiment, 1, made["noise"], tensors))
        context: Any = SimpleNamespace(
            node_config={"site": str(place / "site.yaml"), "ledger": "node"}, run_config={}, run_id=7
        )
        found: list[Any] = []
        for _ in range(2):
            line = Line(content, OURS, kind=made["kind"])
            line.arrived = lambda: messages.Refusal("", "failed")  # type: ignore[method-assign]
            does = app.judge if made["kind"] == "query" else app.answer
            exchange(site, line, lambda m, does=does: Message(does(m.content, context), reply_to=m))
            opened = inflate_object_from_contents(line.head, dict(line.sent), keep_object_contents=True)
            assert isinstance(opened, Message)
            config, metrics = dict(opened.content["config"]), dict(opened.content.get("metrics", {}))
            assert isinstance(config, dict)
            words = {key: value for key, value in config.items() if key not in ("ledger", "passed")}
            shown = {key: value for key, value in metrics.items() if key not in share}
            found += [sorted(config), words, sorted(metrics), shown, sum(map(len, line.sent.values())), line.times]
        return tuple(found)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(MADE, PEOPLE, st.data())
def test_adding_one_patient_never_changes_the_kind_the_size_or_the_wording_of_what_leaves(
    made: dict[str, Any], people: list[tuple[int, str]], data: st.DataObject
) -> None:
    one = data.draw(PEOPLE.filter(len).map(lambda some: some[0]))
    assert leaves(made, people) == leaves(made, [*people, one])
