"""What the accountant promises: never less than was spent, and never more noise refused than needed."""

import json
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from privacy import accounting
from privacy.accounting import (
    Event,
    best_attack,
    epsilon,
    epsilon_prv,
    gdp_mu,
    noise_multiplier_for,
    nsr,
)
from shared.errors import PrivacyError

DELTA = 1e-5
noises = st.floats(0.9, 20)
rates = st.floats(0.01, 1)
events = st.builds(Event, noises, rates, st.integers(0, 100))
few = settings(max_examples=10, deadline=None)


def reference(schedule: list[Event], delta: float) -> float:
    """dp-accounting's PLD accountant as it comes, composing the schedule as it stands."""
    accountant = PLDAccountant()
    for event in schedule:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.steps)
    return accountant.get_epsilon(delta)


def gaussian_delta(mu: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu))


@pytest.mark.parametrize(("noise", "steps"), [(0.7, 1), (2.0, 12), (10.0, 100)])
def test_full_batches_cost_what_the_exact_formula_says(noise: float, steps: int) -> None:
    eps = epsilon([Event(noise, 1.0, steps)], DELTA)
    assert gaussian_delta(math.sqrt(steps) / noise, eps) == pytest.approx(DELTA, rel=1e-6)
    assert eps == pytest.approx(reference([Event(noise, 1.0, steps)], DELTA), abs=2e-3)


@pytest.mark.parametrize("schedule", [
    [Event(2.0, 1.0, 12)],
    [Event(2.06, 0.1, 1000)],
    [Event(0.74, 0.02, 1000)],
    [Event(3.0, 1.0, 10), Event(1.5, 0.05, 300), Event(1.2, 0.25, 12)],
])  # fmt: skip
def test_pld_prv_and_the_textbook_values_agree(schedule: list[Event]) -> None:
    eps = epsilon(schedule, DELTA)
    assert epsilon_prv(schedule, DELTA) == pytest.approx(eps, abs=0.02)
    assert reference(schedule, DELTA) == pytest.approx(eps, abs=0.01)


def test_random_schedules_are_never_below_dp_accounting_and_at_most_one_percent_above() -> None:
    rng = random.Random(0)
    for _ in range(8):
        schedule = [
            Event(math.exp(rng.uniform(0, 2)), math.exp(rng.uniform(-4, 0)), rng.randint(1, 400))
            for _ in range(rng.randint(1, 3))
        ]
        expected = reference(schedule, DELTA)
        assert expected - 0.01 <= epsilon(schedule, DELTA) <= expected * 1.01


@few
@given(st.lists(events, max_size=4), events)
def test_more_work_never_costs_less(before: list[Event], more: Event) -> None:
    assert epsilon([*before, more], DELTA) >= epsilon(before, DELTA) * (1 - 2e-3)  # 2e-3: grids of different width


@few
@given(noises, rates, st.integers(1, 200), st.floats(1.05, 3))
def test_more_noise_a_lower_rate_or_a_larger_delta_never_costs_more(n: float, q: float, t: int, factor: float) -> None:
    eps = epsilon([Event(n, q, t)], DELTA)
    slack = eps * (1 + 2e-3) + 1e-6
    assert epsilon([Event(n * factor, q, t)], DELTA) <= slack
    assert epsilon([Event(n, q / factor, t)], DELTA) <= slack
    assert epsilon([Event(n, q, t)], DELTA * factor) <= slack
    assert eps <= epsilon([Event(n, 1.0, t)], DELTA) * (1 + 2e-3) + 1e-6  # sampling only ever helps


@few
@given(st.lists(events, min_size=1, max_size=4), st.randoms())
def test_order_and_splitting_do_not_change_the_number(schedule: list[Event], rng: random.Random) -> None:
    pieces = [
        Event(e.noise_multiplier, e.sampling_rate, k) for e in schedule for k in (e.steps // 3, e.steps - e.steps // 3)
    ]
    rng.shuffle(pieces)
    assert epsilon(pieces, DELTA) == epsilon(schedule, DELTA)


def test_nothing_done_costs_nothing() -> None:
    for schedule in ([], [Event(1.0, 0.5, 0)], [Event(1.0, 0.0, 9)], [Event(0.0, 0.5, 0)], [Event(0.0, 0.0, 9)]):
        assert epsilon(schedule, DELTA) == 0
        assert epsilon_prv(schedule, DELTA) == 0


def test_a_single_step_without_noise_costs_everything() -> None:
    for rate in (0.01, 1.0):
        schedule = [Event(5.0, 0.1, 10), Event(0.0, rate, 1)]
        assert epsilon(schedule, DELTA) == math.inf
        assert epsilon_prv(schedule, DELTA) == math.inf


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        ([Event(0.02, 0.5, 1)], 1400, 1470),  # noise that hides nobody counts at rate 1
        ([Event(1000.0, 0.5, 10)], 0.002, 0.004),
        ([Event(1.0, 1e-4, 100_000)], 0.13, 0.15),
        ([Event(0.1, 0.1, 10)], 633, 634),
        ([Event(0.31, 0.1, 10)], 17, 35),
    ],
)
def test_extreme_schedules_stay_tight_and_fast(schedule: list[Event], low: float, high: float) -> None:
    start = time.process_time()
    assert low <= epsilon(schedule, DELTA) <= high
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("target", "rate", "steps", "spent"),
    [
        (8.0, 1.0, 12, []),
        (8.0, 0.1, 1000, []),
        (1.0, 0.02, 300, []),
        (8.0, 0.25, 40, [Event(5.0, 1.0, 12), Event(4.0, 0.25, 30)]),
        (100.0, 0.5, 12, []),
        (0.2, 0.002, 200, []),
    ],
)
def test_the_noise_for_a_target_keeps_within_it_and_is_the_smallest(
    target: float, rate: float, steps: int, spent: list[Event]
) -> None:
    start = time.process_time()
    noise = noise_multiplier_for(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps, spent=spent)
    assert time.process_time() - start < 8
    assert float(f"{noise:.4g}") == noise
    assert epsilon([*spent, Event(noise, rate, steps)], DELTA) <= target
    less = accounting._digits(noise, -1)
    assert epsilon([*spent, Event(less, rate, steps)], DELTA) > target


@settings(max_examples=5, deadline=None)
@given(st.floats(0.3, 30), st.floats(0.02, 1), st.integers(1, 100))
def test_calibration_never_exceeds_its_target(target: float, rate: float, steps: int) -> None:
    noise = noise_multiplier_for(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps)
    assert epsilon([Event(noise, rate, steps)], DELTA) <= target


def test_a_target_that_anything_meets_gets_the_smallest_noise_that_is_looked_at() -> None:
    assert noise_multiplier_for(epsilon=1e6, delta=DELTA, sampling_rate=1.0, steps=1) == accounting.SMALLEST_NOISE


def test_a_target_already_spent_is_refused() -> None:
    spent = [Event(2.0, 1.0, 12)]
    with pytest.raises(PrivacyError, match="already spent"):
        noise_multiplier_for(epsilon=8.0, delta=DELTA, sampling_rate=0.5, steps=4, spent=spent)
    with pytest.raises(PrivacyError, match="fewer steps"):
        noise_multiplier_for(
            epsilon=epsilon(spent, DELTA) * (1 + 1e-9), delta=DELTA, sampling_rate=1.0, steps=10**6, spent=spent
        )


def test_the_last_digit_moves_across_powers_of_ten() -> None:
    assert accounting._digits(1.2340000001, 0) == 1.235
    assert accounting._digits(1.234, 0) == 1.234
    assert accounting._digits(9.999, +1) == 10.0
    assert accounting._digits(0.012341, 0) == 0.01235
    assert accounting._digits(5, 0) == 5.0


def test_noise_to_signal_is_the_norm_of_the_noise_over_the_largest_signal() -> None:
    assert nsr(parameters=10_000, noise_multiplier=2.0, sampling_rate=0.5, patients=100) == pytest.approx(4.0)
    with pytest.raises(PrivacyError):
        nsr(parameters=1, noise_multiplier=1.0, sampling_rate=0.0, patients=1)


@pytest.mark.parametrize(("eps", "auc", "tpr"), [(1, 0.575, 0.020), (4, 0.743, 0.081), (8, 0.881, 0.255)])
def test_the_best_attack_matches_published_bounds(eps: float, auc: float, tpr: float) -> None:
    attack = best_attack(eps, DELTA)
    assert attack.auc == pytest.approx(auc, abs=1e-3)
    assert attack.tpr_at_1pct == pytest.approx(tpr, abs=1e-3)


def test_the_attack_bound_is_exact_for_full_batches_and_has_the_right_ends() -> None:
    attack = best_attack([Event(2.0, 1.0, 4)], DELTA)  # mu = 1
    assert gdp_mu(epsilon([Event(2.0, 1.0, 4)], DELTA), DELTA) == pytest.approx(1.0, rel=1e-6)
    assert attack.auc == pytest.approx(norm.cdf(1 / math.sqrt(2)), rel=1e-6)
    assert attack.tpr_at_1pct == pytest.approx(norm.cdf(norm.ppf(0.01) + 1), rel=1e-6)
    assert best_attack(math.inf, DELTA) == accounting.Attack(1.0, 1.0)
    assert best_attack(0.0, 1e-12).tpr_at_1pct == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("event", [Event(0.74, 0.02, 1000), Event(2.06, 0.1, 1000), Event(1.0, 0.5, 4)])
def test_with_sampling_the_attack_bound_is_above_what_the_whole_privacy_profile_allows(event: Event) -> None:
    """TPR(a) <= exp(eps) a + delta(eps) for every eps (Kairouz et al. 2015), so the least of these bounds every attack."""
    loss = accounting._loss(event.noise_multiplier, event.sampling_rate, event.steps, 1e-3)
    eps = np.linspace(0, 12, 400)
    deltas = np.array(loss.get_delta_for_epsilon(list(eps)))
    assert np.min(np.exp(eps) * 0.01 + deltas) <= best_attack([event], DELTA).tpr_at_1pct * (1 + 1e-3)


def test_an_event_survives_json_bit_for_bit() -> None:
    event = Event(1 / 3, 0.1 + 0.2, 7)
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


@pytest.mark.parametrize("values", [
    (-1.0, 0.5, 1), (math.nan, 0.5, 1), (math.inf, 0.5, 1), (1.0, 1.5, 1), (1.0, -0.1, 1), (1.0, math.nan, 1),
    (1.0, 0.5, -1), (1.0, 0.5, 1.0), (1.0, 0.5, True), ("1", 0.5, 1), (True, 0.5, 1),
])  # fmt: skip
def test_an_impossible_event_is_refused(values: tuple) -> None:
    with pytest.raises(PrivacyError):
        Event(*values)


def test_bad_arguments_are_refused() -> None:
    for delta in (0.0, 1.0, math.nan, -1e-5):
        with pytest.raises(PrivacyError, match="delta"):
            epsilon([], delta)
    with pytest.raises(PrivacyError):
        Event.from_dict({"noise_multiplier": 1.0, "sampling_rate": 0.5})
    for target in (0.0, math.inf, math.nan):
        with pytest.raises(PrivacyError):
            noise_multiplier_for(epsilon=target, delta=DELTA, sampling_rate=0.5, steps=1)
    with pytest.raises(PrivacyError):
        gdp_mu(-1.0, DELTA)


@pytest.mark.filterwarnings("ignore:GDP accounting is experimental:UserWarning")  # which is what this shows
def test_the_central_limit_accountant_that_under_reports_is_not_used() -> None:
    from opacus.accountants import GaussianAccountant

    optimistic = GaussianAccountant()
    optimistic.history = [(0.74, 0.02, 1000)]
    assert optimistic.get_epsilon(DELTA) < epsilon([Event(0.74, 0.02, 1000)], DELTA) - 1
    assert "GaussianAccountant" not in Path(accounting.__file__).read_text()
