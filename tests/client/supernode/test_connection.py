"""Asking for work without haste and without waste."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException

from client.supernode import connection
from shared.errors import FederationError


def test_work_is_asked_for_every_second_and_flowers_own_loop_turns_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(connection.time, "sleep", slept.append)
    answers = iter([None, None, "work", *[None] * connection.IDLE_TIMES])
    ask = connection.patient(lambda: next(answers), lambda: None)
    assert ask() == "work"
    assert slept == [connection.IDLE_S] * 2
    assert ask() is None
    assert len(slept) == 2 + connection.IDLE_TIMES


def test_pain18_a_node_that_is_shut_out_while_it_waits_ends_with_the_reason_and_a_line_that_is_down_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower takes every 403 for a run that has ended, and would ask on without a word."""
    kit: Any = None

    def forbidden() -> None:
        raise RunNotRunningException

    ask = connection.patient(forbidden, lambda: connection.admitted(kit, kit))
    for found, raised in (
        (connection.NotAdmitted("revoked"), connection.NotAdmitted),
        (FederationError("the server cannot be reached"), RunNotRunningException),
        (None, RunNotRunningException),
    ):
        monkeypatch.setattr(connection, "probe", Mock(side_effect=[found] if found else None))
        with pytest.raises(raised):
            ask()


def test_a_refused_heartbeat_ends_the_node_with_the_reason_and_an_interrupt_of_a_good_line_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower sends itself SIGINT when a heartbeat is refused, and would end with code 0."""
    kit: Any = None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        for found, raised in ((connection.NotAdmitted("revoked"), connection.NotAdmitted), (None, KeyboardInterrupt)):
            monkeypatch.setattr(connection, "probe", Mock(side_effect=[found] if found else None))
            with pytest.raises(raised), connection.interrupted(lambda: connection.admitted(kit, kit)):
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def hangs_up(listener: socket.socket, how_often: int) -> None:
    for _ in range(how_often):
        with listener.accept()[0] as peer:
            peer.recv(65536)  # the greeting, and no answer


def test_pain02_a_line_that_is_cut_within_tls_is_tried_again_and_a_wrong_certificate_is_not() -> None:
    """Flower gives up on everything whose words hold "SSL", and the node and its update would be lost."""
    asked, waited = list[int](), list[float]()

    def ask() -> str:
        asked.append(1)
        if len(asked) == 3:
            return "through"
        with httpx.Client(timeout=10) as client:
            client.post(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        raise AssertionError("nobody answers there")

    invoker = connection.enduring(make_simple_http_retry_invoker)()
    invoker.wait_function = waited.append
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hangs_up, args=(listener, 2), daemon=True)
        thread.start()
        assert invoker.invoke(ask) == "through"
        thread.join(10)
    assert len(waited) == 2

    def refuse() -> None:
        asked.append(1)
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]") from ssl.SSLCertVerificationError("self-signed")

    asked.clear()
    with pytest.raises(httpx.ConnectError):
        invoker.invoke(refuse)
    assert len(asked) == 1
