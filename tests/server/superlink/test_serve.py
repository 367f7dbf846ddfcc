"""Which request may pass the outer door."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from server.superlink import jobs
from server.superlink.serve import BODY_LIMIT, Doors
from shared.errors import FederationError

KEY = b"-----BEGIN PUBLIC KEY-----"
HEADERS = {b"flwr-public-key": b64encode(KEY), b"content-length": b"10"}


def ask(
    path: str, headers: dict[bytes, bytes] | list[tuple[bytes, bytes]], *, inner: bool = False, **more: Any
) -> int | str:
    """The status of the door's own answer, or "passed"."""
    sent: list[dict[str, Any]] = []

    async def beyond(*_: Any) -> None:
        sent.append({"status": "passed"})

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    doors = Doors(beyond)
    doors.admitted = {KEY}
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    scope = {"type": "http", "method": "POST", "path": path, "headers": pairs} | more
    asyncio.run((doors.inner() if inner else doors.outer())(scope, None, send))  # type: ignore[arg-type]
    status: int | str = sent[0]["status"]
    return status


def test_an_admitted_node_passes() -> None:
    assert ask("/v1/fleet/pull-messages", HEADERS) == "passed"


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet", "/", "/docs", "//v1/fleet/pull-messages"]
)
def test_no_other_path_passes(path: str) -> None:
    assert ask(path, HEADERS) == 404


@pytest.mark.parametrize("more", [{"method": "GET"}, {"type": "websocket"}])
def test_no_other_method_or_protocol_passes(more: dict[str, str]) -> None:
    assert ask("/v1/fleet/pull-messages", HEADERS, **more) == 404


@pytest.mark.parametrize(
    "headers",
    [
        {b"content-length": b"10"},
        HEADERS | {b"flwr-public-key": b64encode(b"another")},
        HEADERS | {b"flwr-public-key": b"no base64!"},
        HEADERS | {b"flwr-public-key": b""},
        [*HEADERS.items(), (b"flwr-public-key", b64encode(b"another"))],
    ],
)
def test_no_other_key_passes(headers: Any) -> None:
    assert ask("/v1/fleet/pull-messages", headers) == 403


@pytest.mark.parametrize("length", [b"", b"-1", str(BODY_LIMIT + 1).encode(), None])
def test_a_body_of_unknown_or_great_length_does_not_pass(length: bytes | None) -> None:
    headers = HEADERS | {b"content-length": length} if length is not None else {b"flwr-public-key": b64encode(KEY)}
    assert ask("/v1/fleet/push-object", headers) == 413


def test_the_inner_door_is_for_tasks_alone() -> None:
    assert ask("/v1/runtime/acquire-task", {}, inner=True) == "passed"
    assert ask("/v1/control/start-run", {}, inner=True) == 404
    assert ask("/v1/fleet/pull-messages", HEADERS, inner=True) == 404


def test_a_knock_is_answered_at_the_door() -> None:
    assert ask("/v1/fleet/", HEADERS) == 204
    assert ask("/v1/fleet/", HEADERS | {b"flwr-public-key": b64encode(b"another")}) == 403


def test_one_server_a_folder(tmp_path: Path) -> None:
    assert not jobs.serving(tmp_path)
    (tmp_path / "state").mkdir()
    lock = jobs.Lock(tmp_path / "state" / "serving")
    assert jobs.serving(tmp_path)
    with pytest.raises(FederationError, match="another server"):
        jobs.Lock(tmp_path / "state" / "serving")
    lock.release()
    assert not jobs.serving(tmp_path)
