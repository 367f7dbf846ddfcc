"""What holds the cap against a coordinator that chooses its next settings after looking at the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from privacy import accounting
from privacy.accounting import Event
from privacy.ledger import Ledger, Plan
from shared.errors import BudgetExceeded
from simulations.benchmarks.adaptive_coordinator import best_epsilon

DELTA = 1e-5


def admits(folder: Path, cap: float, events: tuple[Event, ...]) -> bool:
    """Whether a new ledger lets these runs through, one after the other."""
    book = Ledger(folder / "-".join(str(e.noise_multiplier) for e in events), cohort="north", cap=cap, delta=DELTA)
    try:
        for number, event in enumerate(events):
            book.draw(Plan(f"{number:064x}", f"run-{number}", ((event,),)), 1, run=f"run-{number}")
    except BudgetExceeded:
        return False
    return True


@pytest.mark.parametrize(
    ("cap", "first", "second"),
    [
        (8.0, 1.02, [(0.743, 1.0), (0.551, 0.2), (0.419, 0.03), (0.365, 0.01)]),
        (3.0, 2.364, [(1.722, 1.0), (0.973, 0.2), (0.63, 0.03), (0.516, 0.01)]),
    ],
)
def test_attack_05_a_coordinator_that_adapts_never_passes_the_cap(
    tmp_path: Path, cap: float, first: float, second: list[tuple[float, float]]
) -> None:
    """One noisy look, then the query that serves best after that look: each sequence by itself costs less than the cap."""
    look = Event(first, 1.0, 1)
    queries = [Event(noise, rate, 1) for noise, rate in second]
    assert all(accounting.epsilon([look, query], DELTA) <= cap for query in queries)
    assert admits(tmp_path, cap, (look,))
    admitted = [query for query in queries if admits(tmp_path, cap, (look, query))]
    assert best_epsilon((), lambda path: admitted if path else [look], DELTA, rounds=2) <= cap


def test_attack_05_to_reveal_somebody_with_a_small_chance_is_not_free(tmp_path: Path) -> None:
    assert not admits(tmp_path, 8.0, (Event(0.001, 1e-6, 1),))
