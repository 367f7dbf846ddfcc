"""Figures that leave a hospital: the right sensitivity, the right noise at the right scale, and no error that tells anything."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy import noisy_statistics
from privacy.accounting import Event, epsilon
from privacy.noise import SecureRandom
from shared.config.experiment import Statistics
from shared.errors import PrivacyError

ALPHA = 1e-4
TINY = 1e-9  # so little noise that the exact sums can be read


def accepted(values: np.ndarray, mean: float, scale: float) -> bool:
    """Chi-square of the variance and Kolmogorov-Smirnov of the law, both at `ALPHA`."""
    z = (values - mean) / scale
    statistic = float(np.sum(z**2))
    chi2 = 2 * min(stats.chi2.cdf(statistic, len(z)), stats.chi2.sf(statistic, len(z)))
    return chi2 > ALPHA and stats.kstest(z, "norm").pvalue > ALPHA


def rejects_the_wrong_scale(values: np.ndarray, mean: float, scale: float) -> bool:
    return (
        accepted(values, mean, scale)
        and not accepted(values, mean, scale * 2 / 3)
        and not accepted(values, mean, scale * 3 / 2)
    )


def test_a_count_has_the_noise_that_it_is_charged_for_and_not_two_thirds_or_three_halves_of_it() -> None:
    noise = SecureRandom(bytes(32))
    values = np.array([noisy_statistics.patient_count(70, 200.0, noise) for _ in range(4000)])
    assert rejects_the_wrong_scale(values, 70, 200.0)
    assert values.min() < 0  # not cut: an average over sites stays right
    assert np.array_equal(values, np.rint(values))


def test_both_sums_of_a_loss_have_the_noise_of_their_joint_sensitivity_and_are_independent() -> None:
    noise, losses = SecureRandom(bytes(32)), [0.5, 1.0, 3.0, -1.0]
    pairs = np.array([noisy_statistics.noisy_sums(losses, 4.0, bound=2.0, noise=noise) for _ in range(4000)])
    assert rejects_the_wrong_scale(pairs[:, 0], 0.25 + 0.5 + 1 + 0, 4.0 * math.sqrt(2))
    assert rejects_the_wrong_scale(pairs[:, 1], 4, 4.0 * math.sqrt(2))
    assert abs(np.corrcoef(pairs.T)[0, 1]) * math.sqrt(len(pairs)) < 4.5


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(1e-3, 1e3),
)
def test_one_patient_more_or_less_moves_the_sums_by_no_more_than_the_square_root_of_two(
    losses: list[float], more: float, bound: float
) -> None:
    a = noisy_statistics.noisy_sums(losses, TINY, bound=bound, noise=SecureRandom(bytes(32)))
    b = noisy_statistics.noisy_sums([*losses, more], TINY, bound=bound, noise=SecureRandom(bytes(32)))
    assert math.dist(a, b) <= noisy_statistics.JOINT + 1e-7


def test_the_largest_loss_reaches_the_sensitivity() -> None:
    a = noisy_statistics.noisy_sums([], TINY, bound=2.0, noise=SecureRandom(bytes(32)))
    b = noisy_statistics.noisy_sums([2.0], TINY, bound=2.0, noise=SecureRandom(bytes(32)))
    assert math.dist(a, b) == pytest.approx(noisy_statistics.JOINT, abs=1e-7)


def test_the_sums_lie_on_a_grid_that_follows_from_public_numbers() -> None:
    grid = 2.0 ** (math.floor(math.log2(3.0 * math.sqrt(2))) - noisy_statistics.GRID_BITS)
    for losses in ([], [0.1], [1 / 3] * 50):
        for value in noisy_statistics.noisy_sums(losses, 3.0, bound=1.0):
            assert value / grid == round(value / grid)


def test_the_mean_is_close_when_there_are_many_patients_and_never_leaves_its_range() -> None:
    assert noisy_statistics.mean_loss([0.3, 0.5] * 5000, 1.0, bound=1.0) == pytest.approx(0.4, abs=0.01)
    for losses in ([], [5.0], [math.nan, math.inf], [-1.0] * 3):
        for _ in range(50):
            assert 0 <= noisy_statistics.mean_loss(losses, 10.0, bound=2.0) <= 2
    assert noisy_statistics.mean_loss([math.nan] * 10_000, 1.0, bound=2.0) == pytest.approx(2.0, abs=0.01)


def test_noise_is_new_every_time() -> None:
    assert len({noisy_statistics.patient_count(10, 1e6) for _ in range(20)}) == 20
    assert len({noisy_statistics.noisy_sums([0.5], 1.0, bound=1.0) for _ in range(20)}) == 20


def test_the_price_of_a_run_is_one_count_and_a_loss_every_round() -> None:
    settings = Statistics(patient_count=20.0, mean_loss=40.0)
    assert noisy_statistics.asked(settings, 1) == {"patient-count": 20.0, "mean-loss": 40.0}
    assert noisy_statistics.asked(settings, 2) == {"mean-loss": 40.0}
    assert noisy_statistics.asked(Statistics(), 1) == {}
    assert noisy_statistics.events(settings, 3) == [Event(20.0, 1.0, 1), *[Event(40.0, 1.0, 1)] * 3]
    assert 0.1 < epsilon([Event(20.0, 1.0, 1)], 1e-5) < 0.25  # a count that is right to 20 patients


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_there_is_no_figure_without_noise(noise: float) -> None:
    with pytest.raises(PrivacyError):
        noisy_statistics.patient_count(10, noise)
    with pytest.raises(PrivacyError):
        noisy_statistics.mean_loss([1.0], noise, bound=1.0)
    with pytest.raises(PrivacyError):
        noisy_statistics.mean_loss([1.0], 1.0, bound=abs(noise) if noise in (0.0, math.inf) else noise)


@pytest.mark.parametrize("noise", [1e-310, 1e-10, 1e10, 1e308])
def test_attack_02_no_multiplier_makes_a_sum_overflow_for_some_losses_and_not_for_others(noise: float) -> None:
    """With 1e-310 the grid was so fine that one loss of the bound was an OverflowError, and none was a figure."""
    for losses in ([], [2.0]):
        with pytest.raises(PrivacyError, match="lies between"):
            noisy_statistics.noisy_sums(losses, noise, bound=2.0)


@given(st.permutations([1.0, 1e-17, 0.3, 2**-60, 0.7, 1 - 2**-53]))
def test_the_order_of_the_losses_changes_no_sum(losses: list[float]) -> None:
    a, b = (
        noisy_statistics.noisy_sums(x, TINY, bound=1.0, noise=SecureRandom(bytes(32))) for x in (losses, sorted(losses))
    )
    assert a == b
