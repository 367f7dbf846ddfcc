"""The house keeps its shape."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

ROOMS = {"shared", "privacy", "client", "server", "simulations"}


def test_no_installed_distribution_takes_the_name_of_a_room() -> None:
    taken = {
        (name, dist)
        for name, dists in importlib.metadata.packages_distributions().items()
        for dist in dists
        if name in ROOMS and dist != "fedsynth"
    }
    assert not taken


def test_every_file_stays_small_enough_to_read() -> None:
    root = Path(__file__).parent.parent
    long = {
        str(path.relative_to(root)): lines
        for room in ROOMS
        for path in (root / room).rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long


def test_no_drawer_is_named_utils() -> None:
    root = Path(__file__).parent.parent
    assert not [p for room in ROOMS for p in (root / room).rglob("*.py") if p.stem in {"utils", "helpers", "common"}]


def test_every_file_that_is_called_slow_is_there() -> None:
    tests = Path(__file__).parent
    source = (tests / "conftest.py").read_text(encoding="utf-8")
    named = re.findall(r'"([\w/]+/test_\w+\.py)"', source.partition("SLOW = {")[2].partition("}")[0])
    assert len(named) == len(set(named)) > 10
    assert [name for name in named if not (tests / name).is_file()] == []
