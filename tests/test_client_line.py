"""Asking for work without haste and without waste."""

from __future__ import annotations

import signal
from typing import Any
from unittest.mock import Mock

import pytest
from flwr.supercore.run import RunNotRunningException

from client.link import line
from shared.errors import FederationError


def test_work_is_asked_for_every_second_and_flowers_own_loop_turns_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(line.time, "sleep", slept.append)
    answers = iter([None, None, "work", *[None] * line.IDLE_TIMES])
    ask = line.patient(lambda: next(answers), lambda: None)
    assert ask() == "work"
    assert slept == [line.IDLE_S] * 2
    assert ask() is None
    assert len(slept) == 2 + line.IDLE_TIMES


def test_a_node_that_is_shut_out_while_it_waits_ends_with_the_reason_and_a_line_that_is_down_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower takes every 403 for a run that has ended, and would ask on without a word."""
    kit: Any = None

    def forbidden() -> None:
        raise RunNotRunningException

    ask = line.patient(forbidden, lambda: line.admitted(kit, kit))
    for found, raised in (
        (line.NotAdmitted("revoked"), line.NotAdmitted),
        (FederationError("the server cannot be reached"), RunNotRunningException),
        (None, RunNotRunningException),
    ):
        monkeypatch.setattr(line, "probe", Mock(side_effect=[found] if found else None))
        with pytest.raises(raised):
            ask()


def test_a_refused_heartbeat_ends_the_node_with_the_reason_and_an_interrupt_of_a_good_line_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower sends itself SIGINT when a heartbeat is refused, and would end with code 0."""
    kit: Any = None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        for found, raised in ((line.NotAdmitted("revoked"), line.NotAdmitted), (None, KeyboardInterrupt)):
            monkeypatch.setattr(line, "probe", Mock(side_effect=[found] if found else None))
            with pytest.raises(raised), line.interrupted(lambda: line.admitted(kit, kit)):
                signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
