"""A run that goes on, watched from outside: its record and its sites' ledgers, read as they grow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from client.supernode import prefork
from privacy import ledger
from shared.config.experiment import Experiment
from shared.errors import FederationError
from simulations.testbed.loopback import Loopback, until

PATIENCE_S = 480.0  # on a machine that is busy with other things


class RunProbe:
    """A run that goes on: its record, read as it grows. `deadline_s` of its rounds bounds what is waited for."""

    def __init__(self, net: Loopback, experiment: Experiment) -> None:
        self.net, self.name, self.experiment = net, experiment.name, experiment

    def events(self, kind: str, number: int | None = None) -> list[dict[str, Any]]:
        """Of one kind, and of one round."""
        return [e for e in self.net.events(self.name) if e["event"] == kind and number in (None, e.get("round"))]

    def begin(self) -> int:
        """Wait until a round begins that has not begun yet; returns its number."""
        before = len(self.events("round_started"))
        until(lambda: len(self.events("round_started")) > before, PATIENCE_S, "a round begins")
        return int(self.events("round_started")[-1]["round"])

    def end(self, number: int) -> list[str]:
        """Wait for the end of a round; returns who contributed."""
        until(
            lambda: self.events("round_finished", number) or self.events("run_failed"),
            PATIENCE_S,
            f"round {number} ends",
        )
        done = self.events("round_finished", number)
        expect(bool(done), f"the run ended: {self.events('run_failed')}")
        return list(done[0]["contributed"])

    def reason(self, number: int, site: str) -> str:
        """Why a site did not contribute in a round."""
        said = [e["reason"] for e in self.events("site_failed", number) if e["site"] == site]
        if not said and self.events("round_started", number)[-1]["asked"] < len(self.net.sites):
            return "it was not connected when the round began"
        expect(bool(said), f"round {number}: nothing is said of {site}")
        return str(said[-1])

    def back(self, site: str, after: int) -> int:
        """Wait until the site contributes in a round later than `after`; returns its number."""

        def found() -> list[int]:
            return [
                e["round"] for e in self.events("round_finished") if e["round"] > after and site in e["contributed"]
            ]

        return int(until(found, PATIENCE_S, f"{site} contributes again")[0])

    def charged(self, site: str, number: int) -> int:
        """How often the site's ledger was charged for a round."""
        path = ledger_of(self.net, site)
        drawn = ledger.draws(ledger.checked_records(path)) if path.exists() else []
        return sum((d.name, d.number) == (self.name, number) for d in drawn)

    def charging(self, site: str) -> None:
        """Wait until a round of the site is paid for and its app trains: the node pays before it starts the app."""
        path = ledger_of(self.net, site)

        def size() -> int:
            return path.stat().st_size if path.exists() else 0

        before, deadline = size(), time.monotonic() + PATIENCE_S
        while size() == before:
            if time.monotonic() > deadline:
                raise FederationError(f"{site} was not charged within {PATIENCE_S:g} s")
            time.sleep(0.005)
        until(lambda: self.net.pids(site, prefork.APP), PATIENCE_S, f"{site}'s app trains")


def ledger_of(net: Loopback, site: str) -> Path:
    records = yaml.safe_load(net.file(site).read_text())["records"]
    return (Path(records) if records else net.work(site)) / "ledger.jsonl"


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise FederationError(otherwise)
