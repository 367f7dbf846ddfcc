"""Asking for work without haste and without waste."""

from __future__ import annotations

import pytest

from client.link import line


def test_work_is_asked_for_every_second_and_flowers_own_loop_turns_every_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(line.time, "sleep", slept.append)
    answers = iter([None, None, "work", *[None] * line.IDLE_TIMES])
    ask = line.patient(lambda: next(answers))
    assert ask() == "work"
    assert slept == [line.IDLE_S] * 2
    assert ask() is None
    assert len(slept) == 2 + line.IDLE_TIMES
