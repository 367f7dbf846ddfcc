"""The house keeps its shape."""

from __future__ import annotations

import importlib.metadata
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
