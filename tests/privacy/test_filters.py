"""What holds the cap against a coordinator that chooses its next settings after looking at the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privacy import accounting, filters
from privacy.accounting import Event
from privacy.ledger import Ledger, ReservedPlan
from shared.errors import BudgetExceeded, PrivacyError
from simulations.benchmarks.adaptive_coordinator import best_epsilon

DELTA = 1e-5


def admits(folder: Path, cap: float, events: tuple[Event, ...]) -> bool:
    """Whether a new ledger lets these runs through, one after the other."""
    book = Ledger(folder / "-".join(str(e.noise_multiplier) for e in events), cohort="north", cap=cap, delta=DELTA)
    try:
        for number, event in enumerate(events):
            book.draw(ReservedPlan(f"{number:064x}", f"run-{number}", ((event,),)), 1, run=f"run-{number}")
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
    assert best_epsilon(lambda path: queries if path else [look], DELTA, rounds=2) > cap  # the attack is real
    admitted = [query for query in queries if admits(tmp_path, cap, (look, query))]
    assert best_epsilon(lambda path: admitted if path else [look], DELTA, rounds=2) <= cap


def test_attack_05_to_reveal_somebody_with_a_small_chance_is_not_free(tmp_path: Path) -> None:
    assert not admits(tmp_path, 8.0, (Event(0.001, 1e-6, 1),))


single = st.builds(Event, st.floats(0.5, 6.0), st.sampled_from([1.0, 0.5, 0.2, 0.05, 0.01]), st.just(1))


@settings(max_examples=6, deadline=None)
@given(st.lists(single, min_size=3, max_size=5), st.sampled_from([1e-5, 1e-3]))
def test_the_filter_is_never_below_what_two_adaptive_rounds_reach(queries: list[Event], delta: float) -> None:
    look, *then = queries
    cap = max(filters.epsilon([[look], [query]], delta) for query in then)
    assert best_epsilon(lambda path: then if path else [look], delta, rounds=2) <= cap + 1e-3


@settings(max_examples=3, deadline=None)
@given(single, st.lists(single, min_size=2, max_size=2), st.lists(single, min_size=2, max_size=2))
def test_the_filter_is_never_below_what_three_adaptive_rounds_reach(
    look: Event, second: list[Event], third: list[Event]
) -> None:
    cap = max(filters.epsilon([[look], [b], [c]], DELTA) for b in second for c in third)
    assert best_epsilon(lambda path: [[look], second, third][len(path)], DELTA, rounds=3) <= cap + 1e-3


@settings(max_examples=6, deadline=None)
@given(
    st.builds(Event, st.floats(0.5, 6.0), st.floats(0.01, 0.9), st.integers(1, 100)),
    st.sampled_from([1e-6, 1e-8]),
)
def test_a_sampled_plan_lies_under_its_gaussian_and_hardly_below(event: Event, d: float) -> None:
    mu = filters._dominating((event,), d)
    assume(np.isfinite(mu))  # where no Gaussian is wide enough, the plan is refused
    epsilons = [float(e) for e in np.linspace(0.0, mu**2 / 2 + 6 * mu, 400)]  # as far as its delta is above d
    found = np.array(accounting.deltas([event], epsilons))

    def allowed(scale: float) -> np.ndarray:
        return d + (1 - d) * accounting.gaussian_deltas(np.full(400, scale * mu), np.array(epsilons))

    assert (found <= allowed(1.0)).all()
    assert mu < 0.2 or not (found <= allowed(0.9)).all()


def test_one_plan_counts_by_its_pld_and_none_counts_nothing() -> None:
    run = [Event(1.0, 0.1, 20), Event(8.0, 1.0, 1)]
    assert filters.epsilon([run], DELTA) == accounting.epsilon(run, DELTA)
    assert filters.epsilon([[], run, [Event(0.0, 0.0, 5), Event(0.0, 1.0, 0)]], DELTA) == accounting.epsilon(run, DELTA)
    assert filters.epsilon([], DELTA) == filters.epsilon([[], []], DELTA) == 0


def test_at_rate_1_the_filter_costs_a_hundredth_of_delta_and_nothing_else() -> None:
    runs = [[Event(4.0, 1.0, 4)], [Event(6.0, 1.0, 3), Event(9.0, 1.0, 1)], [Event(5.0, 1.0, 9)]]
    exact = accounting.epsilon([event for run in runs for event in run], DELTA * (1 - filters.ALLOWANCE))
    assert filters.epsilon(runs, DELTA) == pytest.approx(exact, rel=1e-9)
    assert exact - accounting.epsilon([event for run in runs for event in run], DELTA) < 0.005


@pytest.mark.parametrize(
    "faint", [Event(0.0, 1e-6, 1), Event(1e-200, 1e-6, 1), Event(0.001, 1e-6, 1), Event(0.29, 1e-9, 1)]
)
def test_noise_that_hides_nobody_is_dear_at_every_rate_and_at_every_place(faint: Event) -> None:
    step = [Event(20.0, 1.0, 1)]
    for plans in ([[faint]], [step, [faint]], [[faint], step], [[*step, faint]]):
        assert filters.epsilon(plans, DELTA) > 19


def test_many_small_plans_cost_little_more_than_one() -> None:
    assert sum(filters._share(number) for number in range(1, 2**16)) <= 1
    small = [Event(10.0, 0.1, 12)]
    together = accounting.epsilon(small * 50, DELTA)
    assert together < filters.epsilon([small] * 50, DELTA) < 1.1 * together


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError):
        filters.epsilon([], delta)


@pytest.mark.parametrize("noise", [1e-320, 1e-160, 1e-7, 1e160, 1e308])
@pytest.mark.parametrize("rate", [1.0, 0.5, 1e-300])
@pytest.mark.parametrize("steps", [1, 2**53 - 1])
def test_numbers_at_the_end_of_their_range_are_a_cost_and_never_a_mistake(
    noise: float, rate: float, steps: int
) -> None:
    if noise > 1 and rate < 1 and steps > 1:
        return  # minutes of composition, bounded by the site's policy
    event = [Event(noise, rate, steps)]
    for plans in ([event], [[Event(20.0, 1.0, 1)], event], [event, [Event(20.0, 1.0, 1)]]):
        assert filters.epsilon(plans, DELTA) >= 0
        assert (filters.epsilon(plans, DELTA) > 1e6) == (noise < 1)
