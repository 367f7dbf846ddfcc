"""Who is admitted hands in answers to what it was asked, in its own name, and no more bytes than an answer may have."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from flwr.app import Message, RecordDict
from flwr.app.message.message import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet import fleet_handlers

from server.superlink import inbox


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What came through to Flower's own handlers."""
    found: list[str] = []

    def push(request: Any, state: Any) -> PushMessagesResponse:
        found.append("message")
        return PushMessagesResponse(session_id="s", objects_to_push=["a"])

    def put(request: Any, state: Any) -> PushObjectResponse:
        found.append("object")
        return PushObjectResponse(stored=True)

    monkeypatch.setattr(fleet_handlers, "push_messages", push)
    monkeypatch.setattr(fleet_handlers, "push_object", put)
    inbox.guard(limit=100)
    yield found


def request(node: int = 7, tree: ObjectTree | None = None, **changes: Any) -> PushMessagesRequest:
    about = {"run_id": 5, "message_id": "m", "src_node_id": 7, "dst_node_id": 1, "reply_to_message_id": "asked"}
    about |= {"group_id": "", "created_at": 1.8e9, "ttl": 60.0, "message_type": "train"}
    message = message_to_proto(Message(content=RecordDict(), metadata=Metadata(**(about | changes))))
    return PushMessagesRequest(
        node=Node(node_id=node), messages_list=[message], message_object_trees=[tree or ObjectTree(object_id="m")]
    )


def test_an_answer_in_ones_own_name_passes(passed: list[str]) -> None:
    fleet_handlers.push_messages(request=request(), state=None)
    assert passed == ["message"]


def two(whole: PushMessagesRequest) -> PushMessagesRequest:
    whole.messages_list.append(whole.messages_list[0])
    return whole


def none(whole: PushMessagesRequest) -> PushMessagesRequest:
    del whole.messages_list[:]
    return whole


def treeless(whole: PushMessagesRequest) -> PushMessagesRequest:
    del whole.message_object_trees[:]
    return whole


FORGED: dict[str, Callable[[], PushMessagesRequest]] = {
    "another site's name": lambda: request(src_node_id=8),
    "the server's name": lambda: request(src_node_id=1),
    "a message that answers nothing": lambda: request(reply_to_message_id=""),
    "an order in the server's name, to the server": lambda: request(src_node_id=1, reply_to_message_id=""),
    "an order in the server's name, to another site": lambda: request(
        src_node_id=1, dst_node_id=8, reply_to_message_id=""
    ),
    "to another site": lambda: request(dst_node_id=8),
    "two at once": lambda: two(request()),
    "none": lambda: none(request()),
    "no parts": lambda: treeless(request()),
    "no time": lambda: request(ttl=math.nan),
    "no date": lambda: request(created_at=math.inf),
    "too many parts": lambda: request(
        tree=ObjectTree(object_id="m", children=[ObjectTree(object_id=str(n)) for n in range(inbox.PARTS)])
    ),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_attack_06_a_message_in_anothers_name_or_out_of_turn_is_not_stored(
    passed: list[str], forged: Callable[[], PushMessagesRequest]
) -> None:
    with pytest.raises(HTTPException) as refused:
        fleet_handlers.push_messages(request=forged(), state=None)
    assert refused.value.status_code == 403
    assert passed == []


@pytest.mark.filterwarnings(
    "ignore:No path_separator found:DeprecationWarning"
)  # alembic, which lays out Flower's database
@pytest.mark.parametrize("guarded", [False, True])
def test_attack_06_an_order_in_the_servers_name_reaches_neither_the_server_nor_another_hospital(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Flower's own handler and database, which take it: so the checks before them are needed."""
    for name in ("push_messages", "push_object"):  # put back afterwards
        monkeypatch.setattr(fleet_handlers, name, getattr(fleet_handlers, name))
    monkeypatch.setattr(fleet_handlers, "check_abort", lambda *_: None)  # the run goes on
    if guarded:
        inbox.guard()
    links = LinkStateFactory(str(tmp_path / "links.db"), NoOpFederationManager(), ObjectStoreFactory()).state()
    rogue, other = (links.create_node("us", "us", key, 30) for key in (b"one", b"two"))
    for node in (rogue, other):
        links.acknowledge_node_heartbeat(node, 1000.0)
    run = links.create_run(None, None, "0" * 64, {}, NOOP_FEDERATION_ID, None, "us", TaskType.SERVER_APP)
    given = 0
    for receiver in (1, other):
        name = hashlib.sha256(str(receiver).encode()).hexdigest()
        about = {"src_node_id": 1, "dst_node_id": receiver, "reply_to_message_id": "", "created_at": time.time()}
        order = request(rogue, ObjectTree(object_id=name), run_id=run, message_id=name, **about)
        with contextlib.suppress(HTTPException):
            fleet_handlers.push_messages(request=order, state=links)
        given += len(links.get_message_ins(node_id=receiver, limit=1))
    assert given == (0 if guarded else 2)


def test_attack_06_an_answer_of_endless_parts_is_not_stored(passed: list[str]) -> None:
    def put(size: int, session: str = "s") -> None:
        content = SimpleNamespace(object_content=bytes(size), session_id=session, node=Node(node_id=7))
        fleet_handlers.push_object(request=content, state=None)

    put(60)
    put(40)
    with pytest.raises(HTTPException) as refused:
        put(1)
    assert refused.value.status_code == 413
    put(100, session="another answer")
    with pytest.raises(HTTPException):
        put(1, session="")
    assert passed == ["object"] * 3
    assert PushObjectRequest().session_id == ""  # what a node that sends none looks like
