"""Runs are folders; the server does what they say, also after it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from server.events import Events, read
from server.superlink import jobs
from server.superlink import run as desk
from shared.config.experiment import Experiment
from shared.errors import DataError, FederationError


class Links:
    """Flower's list of runs, as much of it as the board reads."""

    def __init__(self) -> None:
        self.runs: dict[int, str] = {}
        self.stopped: list[int] = []

    def get_run_info(self, run_ids: list[int] | None = None) -> list[Any]:
        chosen = self.runs if run_ids is None else {i: self.runs[i] for i in run_ids if i in self.runs}
        return [SimpleNamespace(run_id=i, status=SimpleNamespace(status=s)) for i, s in chosen.items()]

    def stop_run(self, run_id: int) -> None:
        self.runs[run_id] = "finished"
        self.stopped.append(run_id)


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Links:
    found = Links()

    def start_run(request: Any, *_: Any, **__: Any) -> Any:
        number = len(found.runs) + 1
        found.runs[number] = "running"
        return SimpleNamespace(run_id=number)

    monkeypatch.setattr(jobs.control_handlers, "start_run", start_run)
    return found


def test_a_wanted_run_is_started_once_and_told_who_is_who(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    for _ in range(3):
        board.step({7: "north"})
    assert list(links.runs) == [1]
    assert json.loads((tmp_path / "a" / "server" / "nodes.json").read_text()) == {"7": "north"}
    assert (tmp_path / "a" / "job.json").exists()


def test_a_finished_run_leaves_the_board(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    board.step({})
    Events(tmp_path / "a" / "server" / "events.jsonl").write("run_finished", round=1)
    links.runs[1] = "finished"
    board.step({})
    board.step({})
    assert not (tmp_path / "a" / "wanted.json").exists()
    assert list(links.runs) == [1]


def test_after_a_kill_of_the_server_the_run_goes_on(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    board.step({})
    again = jobs.Board(tmp_path, links)  # a new process: Flower's record still says "running"
    assert links.stopped == [1]
    again.step({})
    assert links.runs[2] == "running"
    assert json.loads((tmp_path / "a" / "job.json").read_text())["run"] == 2


def test_a_run_that_keeps_ending_without_a_word_is_given_up_aloud(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    for _ in range(jobs.RESTARTS + 3):
        board.step({})
        links.runs = dict.fromkeys(links.runs, "finished")
    assert len(links.runs) == jobs.RESTARTS + 1
    assert read(tmp_path / "a" / "server" / "events.jsonl")[-1]["event"] == "run_failed"
    assert not (tmp_path / "a" / "wanted.json").exists()


def test_a_run_that_finishes_rounds_between_its_ends_is_not_given_up(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    for number in range(3 * jobs.RESTARTS):
        board.step({})
        Events(tmp_path / "a" / "server" / "events.jsonl").write("round_finished", round=number, contributed=["x"])
        links.runs = dict.fromkeys(links.runs, "finished")
    assert len(links.runs) == 3 * jobs.RESTARTS
    assert (tmp_path / "a" / "wanted.json").exists()


def test_a_run_that_nobody_wants_any_more_is_stopped(tmp_path: Path, links: Links) -> None:
    board = jobs.Board(tmp_path, links)
    jobs.want(tmp_path / "a", "{}")
    board.step({})
    (tmp_path / "a" / "wanted.json").unlink()
    board.step({})
    assert links.stopped == [1]


def test_following_says_what_happened_and_an_earlier_failure_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "t"
    events = Events(out / "server" / "events.jsonl")
    monkeypatch.setattr(jobs, "serving", lambda _: True)
    experiment, console = Experiment(name="t"), Console(quiet=True)
    jobs.want(out, "{}")
    events.write("run_failed", reason="before")
    events.write("run_finished", round=1)
    desk._follow(tmp_path, out, experiment, console)
    events.write("run_failed", reason="again")
    (out / "wanted.json").unlink()
    with pytest.raises(FederationError, match="was stopped"):
        desk._follow(tmp_path, out, experiment, console)
    jobs.want(out, "{}")
    monkeypatch.setattr(jobs, "serving", lambda _: False)
    with pytest.raises(FederationError, match="start it again, and the run goes on"):
        desk._follow(tmp_path, out, experiment, console)


def test_held_out_patients_come_in_an_order_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    patients = [(label, rng.integers(0, 255, (2, 16, 16), np.uint8)) for label in (1, 0, 1)]
    for order in ("abc", "cab"):
        folder = tmp_path / order / "cohort"
        folder.mkdir(parents=True)
        for name, (label, x) in zip(order, patients, strict=True):
            np.savez(folder / f"{name}.npz", x=x, label=np.int64(label))
    first, second = (desk.gather(tmp_path / order) for order in ("abc", "cab"))
    assert np.array_equal(first.x_NHW, second.x_NHW)
    assert first.label_N.tolist() == [0, 0, 1, 1, 1, 1]
    assert first.patient_N.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="no held-out images"):
        desk.gather(tmp_path)
