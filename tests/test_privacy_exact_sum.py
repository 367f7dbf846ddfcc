"""The clipped sum is exact: one patient moves it by that patient's contribution and by nothing else, whatever the others are."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch

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


@pytest.mark.parametrize("patients", [256, 2048, 16_384])
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
