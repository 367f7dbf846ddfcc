"""What arrives at a hospital's node and what leaves it: the app's own process is not asked."""

from __future__ import annotations

import json
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

from client import app, dataset
from client.link import approval, journal, node
from client.link.boundary import Boundary
from client.rebuild import pseudonym
from shared import bundle, messages, weights
from shared.config import Experiment, Network, Site
from shared.errors import PolicyError

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "network": Network(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8).model_dump(),
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
        self.times: list[float] = []
        self.pulled: list[str] = []
        self.late = 0  # how often a part is asked for before it is there; negative: it is gone

    def connection(self) -> tuple[Any, ...]:
        run = SimpleNamespace(run_id=7, fab_hash=bundle.sha256(self.code), primary_task_type="flwr-serverapp")
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
    model = weights.load_base("none", EXPERIMENT.network, EXPERIMENT.classes)
    return {k: v.detach() for k, v in model.trainable(EXPERIMENT.training.trainable).items()}


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
    context: Any = SimpleNamespace(node_config={"site": str(site.data / "site.yaml")}, run_config={}, run_id=7)
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
    monkeypatch.setattr("client.link.parcel.PATIENCE_S", 0.2)
    line = Line(request(), OURS)
    line.late = 10**9
    reply, started = exchange(site, line)
    assert not started
    assert isinstance(reply, messages.Refusal)
    assert "did not send all of it" in reply.reason


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
    assert isinstance(reply, messages.Refusal) and "has not approved the app bundle" in reply.reason
    assert line.pulled == []  # not even the request was opened
    assert kinds(site) == ["refused"]
    assert [p.read_bytes() for p in (site.data / "node" / "refused").iterdir()] == [other]


def test_a_run_that_names_an_approved_hash_for_other_bytes_is_refused(site: Site) -> None:
    line = Line(request(), OURS)
    connection = list(line.connection())
    connection[4] = lambda *_: SimpleNamespace(content=OURS + b"\0", hash_str=bundle.sha256(OURS))
    assert Boundary(site, site.data, {}).wrap(tuple(connection))[1]() is None
    reply = line.arrived()
    assert isinstance(reply, messages.Refusal) and "not the one that the run names" in reply.reason


def test_a_withdrawn_approval_holds_from_the_next_message_on(site: Site) -> None:
    assert exchange(site, Line(request(), OURS))[1]
    approval.withdraw(site.data, bundle.sha256(OURS))
    assert not exchange(site, Line(request(), OURS))[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: request(noise=0.0), "does not train without privacy"),
        (lambda: request(changed(privacy={"epsilon": None})), "does not train without privacy"),
        (lambda: request(changed(privacy={"epsilon": 9.0})), "permits epsilon 8"),
        (lambda: request(changed(privacy={"delta": 1e-3})), "permits delta"),
        (lambda: request(changed(training={"rounds": 101})), "permits 100 rounds"),
        (lambda: request(changed(training={"rounds": 100, "steps": 101})), "permits 10000 steps"),
        (lambda: request(extra=torch.zeros(3)), "expected float32"),
        (lambda: with_key("noise_seed", 1), "unknown key `privacy.noise_seed`"),
        (lambda: RecordDict({"config": ConfigRecord({"code": "print(1)"})}), "lacks"),
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
    assert not started and isinstance(reply, messages.Refusal) and "permits the bases" in reply.reason
    small = site.model_copy(update={"policy": site.policy.model_copy(update={"trainable": ("full",)})})
    assert not exchange(small, Line(request(), OURS))[1]


def test_anything_but_training_and_judging_is_refused(site: Site) -> None:
    reply, started = exchange(site, Line(request(), OURS, kind="evaluate"))
    assert not started and isinstance(reply, messages.Refusal) and "only trains" in reply.reason
    reply, started = exchange(site, Line(request(), OURS, kind="query"))
    assert not started and isinstance(reply, messages.Refusal) and "lacks `images`" in reply.reason


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
        return messages.Refusal("", "")

    line.arrived = arrived  # type: ignore[method-assign]
    started = exchange(site, line, reply)[1]
    return opened[0], started


def test_one_bit_about_a_release_leaves_and_nothing_that_an_app_puts_beside_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.attacks.FEWEST", 2)  # this site has three patients
    context: Any = SimpleNamespace(node_config={"site": str(site.data / "site.yaml")}, run_config={}, run_id=7)
    content, started = judged(site, lambda message: Message(app.judge(message.content, context), reply_to=message))
    assert started
    assert messages.unpack_verdict(content) == messages.Verdict("north", True)
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
    assert "does not judge releases" in str(content["config"]["refused"])  # type: ignore[index]


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


def other_weight(content: RecordDict) -> RecordDict:
    metrics = {**dict(content["metrics"].items()), "weight": 1.9470101}
    return RecordDict({**dict(content.items()), "metrics": MetricRecord(metrics)})


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
    [add_tensor, add_metric, add_config, add_record, other_name, other_request, other_weight, larger_array, not_finite],
)
def test_a_reply_with_anything_beside_the_list_is_kept_back(
    site: Site, spoil: Callable[[RecordDict], RecordDict]
) -> None:
    line = Line(request(), OURS)
    reply, started = exchange(site, line, spoiled(site, spoil))
    assert started
    assert isinstance(reply, messages.Refusal) and "kept the app's reply back" in reply.reason
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
    assert reply == messages.Refusal("north", "the site's app failed; its own log says why")
    assert SECRET.encode() not in b"".join(line.sent.values())
    assert kinds(site) == ["asked", "failed", "sent"]


def test_a_refusal_leaves_with_the_name_of_its_error_alone(site: Site) -> None:
    line = Line(request(), OURS)

    def refuse(message: Message) -> Message:
        return Message(
            messages.pack_refusal(messages.Refusal("elsewhere", f"BudgetExceeded: {SECRET}")), reply_to=message
        )

    reply, _ = exchange(site, line, refuse)
    assert reply == messages.Refusal("north", "BudgetExceeded: the site's own log says why")
    assert SECRET.encode() not in b"".join(line.sent.values())


def test_an_update_without_a_reservation_on_the_ledger_is_kept_back(site: Site) -> None:
    """An app that skips the ledger, and with it the budget."""

    def skip(message: Message) -> Message:
        update = {name: torch.zeros_like(t) for name, t in trainable().items()}
        reply = messages.TrainReply("north", update, 1.0, 2, request=messages.request_id(message.content))
        return Message(messages.pack_reply(reply), reply_to=message)

    reply, _ = exchange(site, Line(request(), OURS), skip)
    assert isinstance(reply, messages.Refusal)
    assert "not on the ledger" in journal.read(site.data)[2]["reason"]


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
    monkeypatch.setattr("client.link.parcel.PATIENCE_S", 0.2)
    line = Line(request(), OURS)
    _, receive, send, *_ = Boundary(site, site.data, dict.fromkeys(["x"], b"")).wrap(line.connection())
    got = receive()
    assert got is not None
    opened = inflate_object_from_contents(line.tree.object_id, dict(line.objects))
    assert isinstance(opened, Message)
    opened.metadata.__dict__["_message_id"] = line.message.metadata.message_id
    answer = Message(messages.pack_refusal(messages.Refusal("north", "x")), reply_to=opened)
    parts(answer)
    send(remove_content_from_message(answer), get_object_tree(answer), 0.0)
    assert isinstance(line.arrived(), messages.Refusal)


def test_a_request_larger_than_the_policy_is_refused(site: Site) -> None:
    line = Line(request(), OURS)
    boundary = Boundary(site, site.data, {})
    boundary.limit = 100
    assert boundary.wrap(line.connection())[1]() is None
    reply = line.arrived()
    assert isinstance(reply, messages.Refusal) and "larger than north permits" in reply.reason


def test_a_damaged_journal_stops_everything(site: Site) -> None:
    exchange(site, Line(request(), OURS))
    path = node.folder(site.data) / journal.FILE
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    with pytest.raises(Exception, match="damaged"):
        exchange(site, Line(request(), OURS))
