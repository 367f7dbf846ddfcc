"""Accountant and sampler against independent judges, on schedules that nobody chose."""

from __future__ import annotations

import random

import numpy as np
import torch
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import Event, epsilon, epsilon_prv
from privacy.noise import SecureRandom

DELTA = 1e-5
events = st.builds(Event, st.floats(0.9, 20), st.floats(0.01, 1), st.integers(1, 300))
schedules = st.lists(events, min_size=1, max_size=3)
few = settings(max_examples=6, deadline=None)


def reference(schedule: list[Event]) -> float:
    """dp-accounting's PLD accountant as it comes, composing the schedule as it stands."""
    accountant = PLDAccountant()
    for event in schedule:
        gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.steps)
    return accountant.get_epsilon(DELTA)


@few
@given(schedules)
def test_never_below_dp_accounting_by_a_hundredth_and_at_most_one_percent_above(schedule: list[Event]) -> None:
    expected = reference(schedule)
    assert expected - 0.01 <= epsilon(schedule, DELTA) <= expected * 1.01 + 1e-3


@few
@given(schedules)
def test_the_prv_accountant_of_opacus_agrees(schedule: list[Event]) -> None:
    """Its own error bound is 0.01 in epsilon, which `epsilon_prv` adds on top."""
    assert abs(epsilon_prv(schedule, DELTA) - epsilon(schedule, DELTA)) <= 0.02


@few
@given(schedules, st.integers(1, 100), st.integers(0, 2))
def test_more_steps_of_any_event_never_cost_less(schedule: list[Event], more: int, which: int) -> None:
    event = schedule[which % len(schedule)]
    longer = [*schedule, Event(event.noise_multiplier, event.sampling_rate, more)]
    assert epsilon(longer, DELTA) >= epsilon(schedule, DELTA) * (1 - 2e-3)  # 2e-3: grids of different width


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.floats(0.02, 0.98))
def test_every_patient_is_in_at_the_rate_and_independently_of_the_others_and_of_the_step_before(
    population: int, rate: float
) -> None:
    stream, steps = SecureRandom(), 2_000
    included = np.zeros((steps, population))
    for step in range(steps):
        included[step, stream.poisson_sample(population, rate)] = 1
    level = 1e-7  # 15 examples a run
    assert stats.binomtest(int(included.sum()), steps * population, rate).pvalue > level
    assert min(stats.binomtest(int(n), steps, rate).pvalue for n in included.sum(0)) > level / population
    sizes = included.sum(1)
    spread = float(((sizes - population * rate) ** 2).sum() / (population * rate * (1 - rate)))
    # A shuffled or fixed-size batch has no such spread. Kurtosis widens the law of the variance: use the normal limit
    kurtosis = 3 + (1 - 6 * rate * (1 - rate)) / (population * rate * (1 - rate))
    assert abs(spread - steps) / np.sqrt(steps * (kurtosis - 1)) < 6.5
    centred = included - rate
    assert abs((centred[1:] * centred[:-1]).sum()) / (rate * (1 - rate) * np.sqrt((steps - 1) * population)) < 6.5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_no_seed_of_anything_repeats_a_sample(seed: int) -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        stream = SecureRandom()
        assert not stream.deterministic
        drawn.append((tuple(stream.poisson_sample(256, 0.5)), tuple(stream.subset(64, 64))))
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
