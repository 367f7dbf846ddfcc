"""The coordinator's journal holds who was admitted, what was run and what came of it, in one place."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.supernode import node
from server import finalize
from server import journal as ours
from server.events import Events, read
from server.release.gate import Decision
from server.release.quality import Check
from server.superlink import jobs, provision
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.crypto import bundle
from shared.errors import LedgerError
from shared.journal import journal, verifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    federation = provision.FederationFile(name="brains", address="127.0.0.1:9")
    folder = tmp_path / "brains"
    list(provision.provision(federation, folder))
    site = Site(name="north", data=tmp_path, face_removal="none")
    provision.approve(federation, folder, node.request(site, tmp_path))
    return folder


def kinds(folder: Path) -> list[str]:
    return [entry["kind"] for entry in journal.read(folder)]


def test_who_was_admitted_and_shut_out_is_on_record_with_the_key(folder: Path) -> None:
    provision.revoke(folder, "north")
    assert kinds(folder) == ["provisioned", "provisioned", "site_approved", "site_revoked"]
    _, _, approved, revoked = journal.read(folder)
    member = provision.members(folder)[0]
    assert approved["key"] == revoked["key"] == member.fingerprint
    assert verifier.verify_journal(folder).state == "whole"


def test_nobody_is_admitted_and_nothing_is_run_while_the_journal_is_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / journal.FILE
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))
    with pytest.raises(LedgerError, match="damaged"):
        provision.revoke(folder, "north")
    assert provision.members(folder)[0].admitted
    events = Events(folder / "runs" / "a" / "server" / "events.jsonl", partial(ours.from_event, folder / "runs" / "a"))
    with pytest.raises(LedgerError, match="damaged"):
        events.write("round_started", round=1, asked=1)


def test_a_run_is_on_record_with_its_code_its_settings_and_its_rounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.control_handlers, "start_run", lambda *_, **__: SimpleNamespace(run_id=7))
    running = [SimpleNamespace(run_id=7, status=SimpleNamespace(status="running"))]
    links: Any = SimpleNamespace(get_run_info=lambda run_ids=None: running, stop_run=lambda _: None)
    experiment = Experiment(name="demo")
    run = folder / "runs" / "demo"
    jobs.want(run, experiment.model_dump_json())
    board = jobs.Board(folder / "runs", links)
    board.step({})
    record = Events(run / "server" / "events.jsonl", partial(ours.from_event, run))
    record.write("run_started", rounds=1, sites=2, noise_multiplier=float("inf"), nsr=1.0, device="cpu")
    record.write("round_started", round=1, asked=2)
    record.write("site_replied", round=1, site="north", epsilon=1.0, bytes=10)
    record.write("site_failed", round=1, site="south", reason="NaN in the update")
    record.write("round_finished", round=1, contributed=["north"])
    (run / "wanted.json").unlink()
    board.step({})
    entries = journal.read(folder)[3:]
    assert [e["kind"] for e in entries] == [
        "run_launched", "run_started", "round_started", "site_failed", "round_finished", "run_stopped",
    ]  # fmt: skip
    assert {e["run"] for e in entries} == {"demo"}
    launched, started, _, failed, finished, _ = entries
    assert launched["bundle"] == bundle.sha256(bundle.build())
    assert launched["configuration"] == journal.configuration(experiment)
    assert "device" not in started and started["noise_multiplier"] is None
    assert (failed["site"], failed["reason"]) == ("south", "NaN in the update")
    assert finished["contributed"] == ["north"]
    assert len(read(run / "server" / "events.jsonl")) == 5


def test_a_run_on_one_machine_keeps_its_own(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "demo"
    ours.write(run, "release_passed")
    assert ours.folder_of(run) == run / "server"
    assert verifier.find(run) == run / "server" / journal.FILE
    assert json.loads((run / "server" / journal.FILE).read_text().splitlines()[1])["run"] == "demo"


def test_a_decision_about_a_release_is_on_record_before_anything_is_published(tmp_path: Path) -> None:
    good, bad = Check("likeness", True, "1", "2"), Check("sharpness", False, "0.1", "0.25 or more")
    unprivate = Check("privacy", False, "epsilon is 9", "8 or less")
    for checks, forced in (
        ((good,), None),
        ((good, bad), None),
        ((good, bad), "public data"),
        ((unprivate,), "I insist"),
    ):
        finalize._decided(tmp_path, Decision(checks, "", forced))
    entries = journal.read(tmp_path / "server")
    assert [(e["kind"], e.get("failed"), e.get("reason", "")[:11]) for e in entries] == [
        ("release_passed", None, ""),
        ("release_refused", ["sharpness"], entries[1]["reason"][:11]),
        ("release_forced", ["sharpness"], "public data"),
        ("release_refused", ["privacy"], entries[3]["reason"][:11]),
    ]
    assert "sharpness" in entries[1]["reason"]
