"""The server's app: one process a run, and a full disk in words."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server import app
from server.events import read
from shared.config.experiment import Experiment
from shared.errors import FederationError


def context(out: Path) -> Any:
    return SimpleNamespace(run_config={"out": str(out), "experiment": Experiment(name="t").model_dump_json()})


def test_a_full_disk_ends_the_run_in_one_sentence_and_another_error_is_not_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(app, "coordinate", full)
    with pytest.raises(FederationError, match="disk is full; make room"):
        app.main(None, context(tmp_path / "run" / "server"))
    (event,) = read(tmp_path / "run" / "server" / "events.jsonl")
    assert event["event"] == "run_failed"
    assert "disk is full" in event["reason"]

    def missing(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "x")

    monkeypatch.setattr(app, "coordinate", missing)
    with pytest.raises(FileNotFoundError):
        app.main(None, context(tmp_path / "run" / "server"))


def test_a_second_process_does_not_touch_a_run_that_another_one_works_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "PATIENCE_S", 0.1)
    done: list[object] = []
    monkeypatch.setattr(app, "coordinate", lambda *_: done.append(1))
    out = tmp_path / "run" / "server"
    out.mkdir(parents=True)
    with (out / "working").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FederationError, match="another process works on this run"):
            app.main(None, context(out))
    assert not done
    app.main(None, context(out))
    assert done == [1]
