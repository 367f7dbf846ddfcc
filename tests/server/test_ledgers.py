"""A hospital's ledger can only grow: a shorter one, or another, is not taken until its privacy office has decided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from typer.testing import CliRunner

from privacy.accounting import Event, epsilon
from server import ledgers
from server.aggregation.server_optimizer import ServerOptimizer
from server.cli import app as server_app
from server.events import Events, read
from server.ledgers import Ledgers, Shown
from server.strategy import Strategy
from server.superlink import provision
from shared import messages
from shared.config.experiment import Experiment, Federation, Training
from shared.errors import FederationError, LedgerError, MessageError
from shared.journal import journal
from simulations.testbed.fake_grid import Clock, MemoryGrid, Site, inside_a_run

EXPERIMENT = Experiment(
    name="t",
    training=Training(rounds=9, steps=3),
    federation=Federation(deadline_s=3.0, join_timeout_s=1.0, attempts=1),
)
SPENT = epsilon([Event(2.0, 1.0, 3)], EXPERIMENT.privacy.delta)
A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A federation's, with its file beside it."""
    (tmp_path / "brains.yaml").write_text("name: brains\naddress: localhost:9443\n")
    list(provision.provision(provision.FederationFile(name="brains", address="localhost:9443"), tmp_path / "brains"))
    with inside_a_run():
        yield tmp_path / "brains"


def federate(run: Path, shown: dict[str, list[Shown]]) -> list[dict[str, str]]:
    """As many rounds as each site has ledgers to show; of each round, who was rejected and why."""
    rounds = len(next(iter(shown.values())))

    def site(name: str) -> Site:
        def answer(request: RecordDict, asked: int) -> RecordDict:
            reply = messages.TrainReply(
                name,
                {"a": torch.ones(2)},
                SPENT,
                3,
                request=messages.request_id(request),
                ledger=shown[name][asked - 1],
            )
            return messages.pack_reply(reply)

        return answer

    clock, events, tensors = Clock(), Events(run / "server" / "events.jsonl"), {"a": torch.zeros(2)}
    before = len(read(events.path))
    strategy = Strategy(
        EXPERIMENT, tensors, noise_multiplier=2.0, sites=len(shown), minimum_sites=1, largest=1e3, events=events,
        optimizer=ServerOptimizer(EXPERIMENT.federation, tensors), after_round=lambda *_: None, ledgers=Ledgers(run),
        clock=clock, sleep=clock.sleep,
    )  # fmt: skip
    strategy.run(MemoryGrid({n: site(name) for n, name in enumerate(shown, 1)}, clock), 1, rounds)
    said = [e for e in read(events.path)[before:] if e["event"] == "site_failed"]
    return [{e["site"]: e["reason"] for e in said if e["round"] == number} for number in range(1, rounds + 1)]


STEADY: list[Shown] = [(1, A), (2, B), (3, C), (4, A)]


def test_attack_07_a_ledger_that_was_rolled_back_is_not_taken_however_often_it_is_shown(folder: Path) -> None:
    """North puts back a copy of its ledger from before the second round, and goes on with it."""
    rolled = federate(folder / "runs" / "first", {"north": [(2, A), (3, B), (2, A), (3, C)], "south": STEADY})
    assert [sorted(r) for r in rolled] == [[], [], ["north"], ["north"]]
    assert "is shorter than the one that it showed before (3 records" in rolled[2]["north"]
    assert "its privacy office must decide" in rolled[2]["north"]
    assert "is not the one" in rolled[3]["north"], "as long as before, with another end"


def test_attack_07_the_next_run_remembers_and_a_ledger_that_is_not_shown_any_more_is_not_taken(folder: Path) -> None:
    assert federate(folder / "runs" / "first", {"north": [(5, A)]}) == [{}]
    with pytest.raises(FederationError, match="0 of 1 sites contributed"):
        federate(folder / "runs" / "second", {"north": [(0, "")]})
    with pytest.raises(FederationError):
        federate(folder / "runs" / "second", {"north": [(1, B)]})
    assert federate(folder / "runs" / "second", {"north": [(5, A)]}) == [{}]
    assert federate(folder / "runs" / "third", {"north": [(6, B)]}) == [{}]


def test_a_ledger_is_accepted_by_a_person_with_a_reason_and_the_journal_has_it(folder: Path) -> None:
    file = str(folder.parent / "brains.yaml")
    federate(folder / "runs" / "first", {"north": [(5, A)], "south": [(1, A)]})
    federate(folder / "runs" / "first", {"north": [(2, B)], "south": [(2, A)]})
    status = CliRunner().invoke(server_app, ["status", file], catch_exceptions=False)
    assert "alarm: the ledger of north was refused (2 records after 5)" in status.output + status.stderr
    for words in (["north"], ["north", "--why", " "], ["south", "--why", "x"], ["nobody", "--why", "x"]):
        assert CliRunner().invoke(server_app, ["accept-ledger", file, *words]).exit_code != 0
    done = CliRunner().invoke(
        server_app, ["accept-ledger", file, "north", "--why", "DPO, 12 Oct: the disk was lost"], catch_exceptions=False
    )
    assert done.output == f"accepted the ledger of north: 2 records, {B[:12]}\n"
    entry = journal.read(folder)[-1]
    assert entry["kind"] == "ledger_accepted"
    said = {name: entry[name] for name in ("site", "records", "end", "before", "reason")}
    assert said == {"site": "north", "records": 2, "end": B, "before": 5, "reason": "DPO, 12 Oct: the disk was lost"}
    assert federate(folder / "runs" / "first", {"north": [(3, C)], "south": [(3, A)]}) == [{}]
    with pytest.raises(FederationError, match="no ledger of `north` was refused"):
        ledgers.accept(folder, "north", "again")


def test_replies_of_two_runs_may_be_opened_in_another_order_than_they_were_made(folder: Path) -> None:
    one, two = Ledgers(folder / "runs" / "one"), Ledgers(folder / "runs" / "two")
    one.keep("north", (4, A))
    since = one.standing()
    two.check("north", (6, C), since)
    two.keep("north", (6, C))
    one.check("north", (5, B), since)  # made before the other, opened after it
    one.keep("north", (5, B))
    assert one.standing() == {"north": (6, C)}
    with pytest.raises(MessageError, match="is shorter"):
        one.check("north", (5, B), one.standing())


@pytest.mark.parametrize(
    "harm", [lambda p: p.unlink(), lambda p: p.write_text("{"), lambda p: p.write_text('{"sites": 3}')]
)
def test_a_record_of_ledgers_that_is_gone_or_damaged_is_not_a_new_one(folder: Path, harm) -> None:  # type: ignore[no-untyped-def]
    federate(folder / "runs" / "first", {"north": [(5, A)]})
    harm(folder / ledgers.FILE)
    with pytest.raises(LedgerError, match=r"ledgers\.json"):
        federate(folder / "runs" / "second", {"north": [(1, B)]})
    (folder / ledgers.FILE).write_text("{}")  # as the message says
    assert federate(folder / "runs" / "second", {"north": [(1, B)]}) == [{}]


def test_a_simulation_keeps_its_own_and_nothing_of_sites_that_show_none(tmp_path: Path) -> None:
    with inside_a_run():
        assert federate(tmp_path / "run", {"north": [(0, ""), (0, "")]}) == [{}, {}]
        assert not (tmp_path / "run" / "server" / ledgers.FILE).exists()
        assert federate(tmp_path / "run", {"north": [(1, A)]}) == [{}]
    assert (tmp_path / "run" / "server" / ledgers.FILE).exists()
