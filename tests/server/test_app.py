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
from shared import plugins
from shared.config.experiment import Experiment
from shared.errors import ConfigError, FederationError


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


def test_plug_ins_join_a_simulation_and_never_a_real_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setattr(app, "coordinate", lambda *_: None)
    (tmp_path / "mine.py").write_text("x = 1\n")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "mine.py"))
    real, simulated = tmp_path / "real" / "server", tmp_path / "simulated" / "server"
    real.mkdir(parents=True)
    (real / "nodes.json").write_text("{}")
    app.main(None, context(real))
    assert not plugins.loaded()
    named = context(real)
    named.run_config["experiment"] = '{"name": "t", "plugins": ["mine.py"]}'
    with pytest.raises(ConfigError, match=r"`plugins` names mine\.py; plug-ins are for `fedsynth simulate`"):
        app.main(None, named)
    app.main(None, context(simulated))
    assert [plugin.path.name for plugin in plugins.loaded()] == ["mine.py"]
