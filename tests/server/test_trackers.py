"""A run's figures in TensorBoard and MLflow: read back with their own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import trackers
from server.events import Events
from shared.errors import ConfigError

FIGURE = {"value": 78.8, "floor": 17.3, "low": 73.8, "high": 83.8}


def write(out: Path, *also: trackers.Tracker) -> None:
    """Two rounds of a run, as a server records them."""
    (out / "samples").mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples" / "round-002.npz", x_NHW=np.zeros((20, 16, 16), np.uint8), label_N=np.zeros(20))
    events = Events(out / "events.jsonl", *also)
    events.write("run_started", rounds=2)
    for number in (1, 2):
        events.write("site_replied", round=number, site="north", epsilon=1.5 * number, bytes=100)
        events.write("site_replied", round=number, site="south", epsilon=None, bytes=100)
        events.write("round_finished", round=number, contributed=["north", "south"])
    events.write("evaluated", round=2, metrics={"FD-efflite0": FIGURE})
    events.write("run_finished", round=2)


def test_tensorboard_reads_the_rounds_and_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv(trackers.MLFLOW_VARIABLE, raising=False)
    write(tmp_path, *trackers.trackers(tmp_path))
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}
    assert values["sites/north/epsilon"] == [(1, 1.5), (2, 3.0)]
    assert values["FD-efflite0/value"] == [(2, pytest.approx(78.8))]
    assert values["FD-efflite0/floor"] == [(2, pytest.approx(17.3))]
    assert values["sites/contributed"] == [(1, 2.0), (2, 2.0)]
    assert "sites/south/epsilon" not in values, "a site that trains without privacy has no epsilon to show"
    assert read.Images("samples")[0].step == 2


def test_mlflow_keeps_one_run_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.MLFLOW_VARIABLE, (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "dementia" / "server"
    write(out, *trackers.trackers(out))
    write(out, *trackers.trackers(out))
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("fedsynth").experiment_id])
    assert run.info.run_name == "dementia"
    assert run.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run.info.run_id, "sites/north/epsilon")] == [1.5, 3.0, 1.5, 3.0]
    assert run.data.metrics["FD-efflite0/value"] == 78.8


def test_mlflow_asked_for_and_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trackers.MLFLOW_VARIABLE, "http://localhost:1")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"install fedsynth\[mlflow\]"):
        trackers.trackers(tmp_path)


def test_a_viewer_that_fails_is_named_once_and_the_record_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def begin() -> trackers.Tracker:
        def tell(event: str, _: dict[str, Any]) -> None:
            told.append(event)
            raise OSError("a secret path")

        return tell

    write(tmp_path, trackers._patient("MLflow", begin))
    assert told == ["run_started"]
    assert [r.getMessage() for r in caplog.records] == ["MLflow is told nothing more of this run: OSError"]
    assert (tmp_path / "events.jsonl").read_text().count("\n") == 9
