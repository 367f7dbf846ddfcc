"""The clipped sum is exact: one patient moves it by that patient's contribution and by nothing else, whatever the others are."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.exact_sum import ExactSum, unit
from privacy.sgd import PatientOptimizer, clipped_sum, private_step
from shared.errors import PrivacyError

JUST_ABOVE_1 = 1 + 2e-6  # C at which a gradient of length 1 is not scaled: its value goes into the sum as it is


def total(gradients: Sequence[torch.Tensor], max_grad_norm: float = JUST_ABOVE_1) -> torch.Tensor:
    """The sum of patients with these gradients, (d,) float64, without rounding."""
    w = torch.nn.Parameter(torch.zeros(len(gradients[0])))
    found = clipped_sum(lambda g: (w * g).sum(), gradients, [w], max_grad_norm=max_grad_norm)
    return found.totals[0].double() * found.unit


def rounding_away(patients: int) -> list[torch.Tensor]:
    """One patient, then others for whom float32 has no room in their sum with the first, and has room without.

    Half of the others bring the sum to a power of two, half a unit of length below or above it. Beyond a power of two
    the grid of float32 is twice as coarse: what each of the rest takes off is rounded away there, and is rounded up
    below it.
    """
    half = patients // 2
    tiny = -0.49 * half * 2.0**-23
    return [torch.tensor([x]) for x in (1.0, *[1.0] * (half - 1), 0.5, *[tiny] * (patients - half - 1))]


@pytest.mark.parametrize("patients", [256, 2048])  # in float32: 1.001 C and 1.06 C; 5.0 C with 16,384
def test_attack_02_rounding_in_the_sum_of_many_does_not_make_one_patient_count_for_more(patients: int) -> None:
    people = rounding_away(patients)
    assert (total(people) - total(people[1:])).norm() <= JUST_ABOVE_1 * (1 + 1e-6)


def test_attack_02_a_bound_of_3e37_cannot_make_the_sum_infinite_from_the_twelfth_patient_on() -> None:
    """In float32 it was: an exact count of the patients, through any noise."""
    w = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(PrivacyError, match="max_grad_norm is 3e"):
        clipped_sum(lambda g: (w * g).sum(), [torch.full((1,), 1e38)] * 12, [w], max_grad_norm=3e37)
    with pytest.raises(PrivacyError, match="max_grad_norm is 3e"):
        plain = torch.optim.SGD([w], lr=1.0)
        PatientOptimizer(plain, noise_multiplier=1.0, max_grad_norm=3e37, sampling_rate=1.0, expected_patients=12)


def test_attack_02_the_sum_does_not_depend_on_the_order_of_the_patients() -> None:
    people = rounding_away(2048)
    assert torch.equal(total(people), total(people[::-1]))


def raising(error: Exception) -> Callable[[float], torch.Tensor]:
    def loss(patient: float) -> torch.Tensor:
        if math.isnan(patient):
            raise error
        return (WEIGHT * patient).sum()

    return loss


WEIGHT = torch.nn.Parameter(torch.ones(3))
FAULTS = [
    IndexError("label 7"),
    RuntimeError("size 3 by 4"),
    MemoryError(),
    ValueError(),
    ZeroDivisionError(),
    KeyError(7),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda e: type(e).__name__)
def test_attack_01_an_error_in_one_patients_loss_contributes_zero(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    without = clipped_sum(raising(error), [0.1, 5.0], [WEIGHT], max_grad_norm=1.0)
    found = clipped_sum(raising(error), [0.1, math.nan, 5.0], [WEIGHT], max_grad_norm=1.0)
    assert torch.equal(found.gradients[0], without.gradients[0])
    assert (found.rejected, without.rejected) == (1, 0)
    assert type(error).__name__ in caplog.text
    assert "label 7" not in caplog.text
    assert "size 3" not in caplog.text


def test_attack_01_a_step_in_which_every_loss_fails_releases_noise() -> None:
    w = torch.nn.Parameter(torch.zeros(100))
    private = PatientOptimizer(
        torch.optim.SGD([w], lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0, sampling_rate=1.0, expected_patients=1
    )
    private_step(raising(IndexError()), [math.nan] * 3, private)
    assert 0.5 < w.detach().std() < 1.5


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda w: torch.zeros(()), id="does not depend on the parameters"),
        pytest.param(lambda w: w * 2, id="is not a scalar"),
        pytest.param(lambda w: 3.0, id="is not a tensor"),
        pytest.param(lambda w: (w.double() * 1e300).sum(), id="has a gradient beyond float32"),
    ],
)
def test_attack_01_a_loss_that_has_no_gradient_contributes_zero(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    found = clipped_sum(lambda _: loss(WEIGHT), [1], [WEIGHT], max_grad_norm=1.0)
    assert found.gradients[0].tolist() == [0.0] * 3
    assert found.rejected == 1


def test_without_privacy_an_error_is_raised() -> None:
    with pytest.raises(IndexError):
        clipped_sum(raising(IndexError()), [math.nan], [WEIGHT], max_grad_norm=None)


def test_the_end_of_the_process_is_nobodys_contribution() -> None:
    def loss(_: int) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clipped_sum(loss, [1], [WEIGHT], max_grad_norm=1.0)


def test_an_error_while_going_through_the_patients_is_not_taken_for_the_end_of_them() -> None:
    def people() -> Iterator[float]:
        yield 1.0
        raise OSError

    with pytest.raises(OSError):
        clipped_sum(lambda x: (WEIGHT * x).sum(), people(), [WEIGHT], max_grad_norm=1.0)


# Values that are hard to add: C and its neighbours, halves of a unit, 1e30 C, denormals, and anything that float32 holds.
UNIT = 2.0**-24
HARD = [1.0, 1 - 2**-24, 1 + 2**-23, 0.5 * UNIT, 1.5 * UNIT, (2**23 - 0.5) * UNIT, 0.49, 1e30, 1e-30, 1e-45, 0.0]
LARGEST_FLOAT32 = 3.4028234663852886e38
bounds = st.one_of(
    st.sampled_from([1e-6, 1.0, 1e6]), st.floats(-6, 6).map(lambda x: 10.0**x).filter(lambda c: c <= 1e6)
)
clippings = st.sampled_from(["fixed", "automatic"])


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[float, list[torch.Tensor]]:
    """C, and a few gradients of the same few parameters."""
    c, d = draw(bounds), draw(st.integers(1, 5))
    hard = st.tuples(st.sampled_from(HARD), st.sampled_from([-1, 1])).map(lambda v: v[0] * v[1] * c)
    any_ = st.floats(width=32, allow_nan=False, allow_infinity=False)
    gradient = st.lists(st.one_of(hard, any_), min_size=d, max_size=d)
    rows = np.clip(np.array(draw(st.lists(gradient, min_size=1, max_size=6))), -LARGEST_FLOAT32, LARGEST_FLOAT32)
    return c, [torch.tensor(row, dtype=torch.float32) for row in rows]


def units(people: Sequence[torch.Tensor], c: float, clipping: str) -> list[int]:
    """The sum of these patients, in whole numbers without a limit."""
    total = ExactSum(people[:1], c, clipping)  # type: ignore[arg-type]
    assert all(total.add([g]) for g in people)
    return [int(x) for x in total.totals()[0]]


@settings(max_examples=50, deadline=None)
@given(cohorts(), clippings, st.data())
def test_removing_one_patient_moves_the_sum_by_that_patients_contribution_which_is_at_most_c(
    cohort: tuple[float, list[torch.Tensor]], clipping: str, data: st.DataObject
) -> None:
    c, people = cohort
    people = [people[i % len(people)] for i in range(data.draw(st.integers(1, 300)))]  # 127 fit into int32
    i = data.draw(st.integers(0, len(people) - 1))
    alone = units([people[i]], c, clipping)
    left = units(people[:i] + people[i + 1 :], c, clipping) if len(people) > 1 else [0] * len(alone)
    assert [a - b for a, b in zip(units(people, c, clipping), left, strict=True)] == alone
    assert sum(x * x for x in alone) <= (2**24) ** 2
    assert unit(c) * 2**24 == c


@settings(max_examples=50, deadline=None)
@given(cohorts(), clippings, st.randoms())
def test_no_order_of_the_patients_changes_the_sum(
    cohort: tuple[float, list[torch.Tensor]], clipping: str, random: Random
) -> None:
    c, people = cohort
    shuffled = list(people)
    random.shuffle(shuffled)
    assert units(people, c, clipping) == units(shuffled, c, clipping)


@settings(max_examples=6, deadline=None)
@given(cohorts(), clippings, st.integers(1000, 100_000))
def test_the_sum_of_a_hundred_thousand_patients_is_the_sum_of_what_each_of_them_contributes(
    cohort: tuple[float, list[torch.Tensor]], clipping: str, patients: int
) -> None:
    """So that leaving one out takes off what this one contributes, whoever it is."""
    c, people = cohort
    total, expected = ExactSum(people[:1], c, clipping), [0] * len(people[0])  # type: ignore[arg-type]
    contributions = [total._contribution([g]) for g in people]
    for i in range(patients):
        total._include(contributions[i % len(people)])  # type: ignore[arg-type]
    for i, contribution in enumerate(contributions):
        times = len(range(i, patients, len(people)))
        expected = [e + times * int(x) for e, x in zip(expected, contribution, strict=True)]  # type: ignore[arg-type]
    assert [int(x) for x in total.totals()[0]] == expected


def test_ten_million_patients_fit_and_stay_exact_when_the_noise_is_added() -> None:
    total = ExactSum([torch.zeros(1)], 1.0, "fixed")
    total._include(torch.tensor([2**24], dtype=torch.int32))
    total._total = total._total.to(torch.int64) * 10_000_000
    total._include(torch.tensor([-1], dtype=torch.int32))
    (found,) = total.totals()
    assert int(found) == int(found.double()) == 10_000_000 * 2**24 - 1


def test_up_to_127_patients_take_no_more_memory_than_float32_and_the_128th_does_not_overflow() -> None:
    total = ExactSum([torch.zeros(1)], 1.0, "fixed")
    for count in range(1, 200):
        total.add([torch.tensor([1e9])])
        (found,) = total.totals()
        assert found.dtype == (torch.int32 if count < 128 else torch.int64)
        assert float(found) * unit(1.0) == pytest.approx(count, rel=1e-5)


def test_two_parameters_with_one_gradient_are_scaled_once_each() -> None:
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    found = clipped_sum(lambda x: ((a + b) * x).sum(), [3.0], [a, b], max_grad_norm=1.0)
    assert torch.cat(found.gradients) == pytest.approx([0.5] * 4, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_of_another_type_keep_the_bound(dtype: torch.dtype) -> None:
    w = torch.nn.Parameter(torch.zeros(5000, dtype=dtype))
    found = clipped_sum(lambda x: (w * x).sum(), [100.0], [w], max_grad_norm=1.0)
    assert 1 - 1e-4 < found.gradients[0].double().norm() <= 1


def test_gradients_in_another_order_of_memory_land_where_they_belong() -> None:
    w = torch.nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
    x = torch.arange(96.0).view(2, 3, 4, 4)
    found = clipped_sum(lambda _: (w * x).sum(), [0], [w], max_grad_norm=1e4)
    assert torch.allclose(found.gradients[0], x, atol=1e-3)


def test_what_a_loss_leaves_in_the_gradients_by_itself_is_never_released() -> None:
    w = torch.nn.Parameter(torch.zeros(4))

    def loss(x: float) -> torch.Tensor:
        (w * x * 1e6).sum().backward()
        return (w * x).sum()

    private_step(loss, [1.0], step_of(w, noise_multiplier=1e-6))
    assert w.detach().norm() <= 1.001


def step_of(w: torch.nn.Parameter, lr: float = 1.0, **settings_: float) -> PatientOptimizer:
    values = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "sampling_rate": 1.0, "expected_patients": 1} | settings_
    return PatientOptimizer(torch.optim.SGD([w], lr=lr), **values)  # type: ignore[arg-type]


ENDS = {
    "max_grad_norm": (1e-6, 1e6),
    "noise_multiplier": (1e-9, 1e9),
    "sampling_rate": (1e-9, 1.0),
    "expected_patients": (1, 10**9),
}


@pytest.mark.parametrize("ends", list(itertools.product(*ENDS.values())))
def test_at_the_ends_of_all_ranges_what_is_released_is_finite(ends: tuple[float, ...]) -> None:
    w = torch.nn.Parameter(torch.zeros(50))
    private = step_of(w, **dict(zip(ENDS, ends, strict=True)))
    private_step(lambda x: (w * x).sum(), [1e38, -1e38, 1e-38] * 50, private)
    assert w.isfinite().all()
    assert w.abs().max() < 1e25
    assert w.abs().max() > 0


@pytest.mark.parametrize(
    "settings_",
    [
        {"max_grad_norm": 9e-7},
        {"max_grad_norm": 1.1e6},
        {"max_grad_norm": math.nan},
        {"max_grad_norm": -1.0},
        {"noise_multiplier": 9e-10},
        {"noise_multiplier": 1.1e9},
        {"noise_multiplier": math.inf},
        {"sampling_rate": 9e-10},
        {"sampling_rate": math.nan},
        {"expected_patients": 10**9 + 1},
    ],
)
def test_beyond_the_ranges_settings_are_refused(settings_: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        step_of(torch.nn.Parameter(torch.zeros(1)), **settings_)


def test_weights_that_became_infinite_end_no_step() -> None:
    w = torch.nn.Parameter(torch.zeros(10))
    private = step_of(w, lr=1e38, max_grad_norm=1e6)
    assert private_step(lambda x: (w * x).sum(), [1.0], private).rejected == 0
    assert not w.isfinite().all()
    for _ in range(3):
        assert private_step(lambda x: (w * w * x).sum(), [1.0] * 3, private).rejected == 3
