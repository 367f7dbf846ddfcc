"""The audit's promise: correct code keeps under the stated epsilon, and each planted fault is found."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from privacy import audit
from privacy.accounting import Event, deltas, epsilon, noise_multiplier_for
from privacy.canaries import Watch
from privacy.noise import SecureRandom
from privacy.sgd import PatientOptimizer, clipped_sum, private_step
from shared.errors import PrivacyError

pytestmark = pytest.mark.usefixtures("repeatable")

DELTA, STEPS, D, M = 1e-5, 4, 400, 100


def stated(rate: float, steps: int = STEPS, target: float = 8.0) -> Event:
    return Event(noise_multiplier_for(epsilon=target, delta=DELTA, sampling_rate=rate, steps=steps), rate, steps)


def half_noise(loss: Callable, patients: list, optimizer: PatientOptimizer, *, clipping: str) -> None:
    optimizer.noise_multiplier /= 2
    private_step(loss, patients, optimizer, clipping=clipping)
    optimizer.noise_multiplier *= 2


def with_bound(max_grad_norm: float | None) -> Callable[..., None]:
    """A step whose noise is right, and whose clipping is not."""

    def step(loss: Callable, patients: list, optimizer: PatientOptimizer, *, clipping: str) -> None:
        optimizer.zero_grad(set_to_none=True)
        found = clipped_sum(loss, patients, optimizer.params, max_grad_norm=max_grad_norm, clipping=clipping)
        for p, g in zip(optimizer.params, found.gradients, strict=True):
            p.grad = g
        optimizer.step()

    return step


def rehearse(step: Callable[..., object], event: Event, runs: int) -> audit.Bound:
    """Canaries through the real step, `runs` times `M` of them."""
    rng, inside, outside = np.random.default_rng(), [], []
    for _ in range(runs):
        w = torch.nn.Parameter(torch.zeros(D))
        coin = rng.random(M) < 0.5
        joined = [f"c{j}" for j in np.flatnonzero(coin)]
        watch: Watch[str] = Watch(lambda p: p, {f"c{j}": j for j in range(M)}, step=step, rng=rng)
        private = PatientOptimizer(
            torch.optim.SGD([w], lr=0.1), noise_multiplier=event.noise_multiplier, max_grad_norm=1.5,
            sampling_rate=event.sampling_rate, expected_patients=20,
        )  # fmt: skip
        people, secure = ["real", *joined], SecureRandom()
        for _ in range(event.steps):
            chosen = secure.poisson_sample(len(people), event.sampling_rate)
            watch(lambda _, w=w: (w - 3).square().sum(), [people[i] for i in chosen], private)
        score = audit.scores(np.stack(watch.observed), event)
        inside.append(score[coin])
        outside.append(score[~coin])
    return audit.lower_bound(np.concatenate(inside), np.concatenate(outside), event, DELTA)


@pytest.mark.parametrize("rate", [1.0, 0.25])
@pytest.mark.parametrize(
    ("fault", "refuted"),
    [
        pytest.param(private_step, False, id="correct"),
        pytest.param(half_noise, True, id="noise halved"),
        pytest.param(with_bound(None), True, id="no clipping"),
        pytest.param(with_bound(1.5 * 2.5), True, id="sensitivity 2.5 times"),
    ],
)
def test_planted_faults_are_found_at_a_stated_epsilon_of_8_and_correct_code_passes(
    fault: Callable[..., object], refuted: bool, rate: float
) -> None:
    found = rehearse(fault, stated(rate), runs=20)
    assert found.refuted == refuted, found
    assert found.stated <= 8
    assert refuted or found.epsilon > 2.5  # evidence, not silence


def simulated(event: Event, noise: float, canaries: int, rng: np.random.Generator) -> audit.Bound:
    """Canaries of a mechanism with this noise, in numbers alone."""

    def draw(contribution: float) -> np.ndarray:
        taken = rng.random((event.steps, canaries // 2)) < event.sampling_rate
        return audit.scores(noise * rng.normal(size=taken.shape) + contribution * taken, event)

    return audit.lower_bound(draw(1.0), draw(0.0), event, DELTA)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_bound_covers_the_truth_over_many_audits(rate: float) -> None:
    event, rng = stated(rate, steps=3), np.random.default_rng(1)
    audits = 200 if rate == 1 else 12
    wrong = sum(simulated(event, event.noise_multiplier, 400, rng).refuted for _ in range(audits))
    assert wrong <= 0.05 * audits + 3 * (0.05 * 0.95 * audits) ** 0.5


def test_a_wrong_scale_of_the_noise_is_rejected_and_more_noise_is_not() -> None:
    event, rng = stated(1.0), np.random.default_rng(2)
    assert all(simulated(event, event.noise_multiplier * 2 / 3, 8000, rng).refuted for _ in range(10))
    assert not any(simulated(event, event.noise_multiplier * 3 / 2, 8000, rng).refuted for _ in range(10))


def test_more_canaries_bring_the_bound_nearer_to_the_truth() -> None:
    event, rng = stated(1.0), np.random.default_rng(3)
    few, many = (
        np.mean([simulated(event, event.noise_multiplier, n, rng).epsilon for _ in range(10)]) for n in (200, 20000)
    )
    assert few < many
    assert 7 < many < 8


def test_sampled_and_full_batches_are_audited_by_the_same_rule() -> None:
    """At rate 1 the bound is the closed form; the way through the whole profile gives the same."""
    noise = audit._largest_noise(0.8, 0.1, Event(2.0, 1.0, 4))
    assert noise == pytest.approx(2 / (0.8416 + 1.2816), rel=1e-3)
    almost = audit._largest_noise(0.8, 0.1, Event(2.0, 0.9999, 4))
    assert almost == pytest.approx(noise, rel=0.01)


def test_what_cannot_be_told_apart_gives_a_bound_of_zero() -> None:
    rng = np.random.default_rng(4)
    found = audit.lower_bound(rng.normal(size=200), rng.normal(size=200) + 1, stated(1.0), DELTA)
    assert (found.epsilon, found.noise, found.refuted) == (0.0, np.inf, False)


@pytest.mark.parametrize(("inside", "outside", "confidence"), [(19, 100, 0.95), (100, 19, 0.95), (50, 50, 1.0)])
def test_too_few_canaries_or_an_impossible_confidence_are_refused(inside: int, outside: int, confidence: float) -> None:
    with pytest.raises(PrivacyError):
        audit.lower_bound(np.zeros(inside), np.zeros(outside), stated(1.0), DELTA, confidence=confidence)


def test_a_run_that_was_seen_in_part_is_refused() -> None:
    with pytest.raises(PrivacyError, match="observe the whole run"):
        audit.scores(np.zeros((STEPS - 1, 3)), stated(1.0))
    with pytest.raises(PrivacyError, match="nothing is stated"):
        audit.scores(np.zeros((STEPS, 3)), Event(0.0, 1.0, STEPS))


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_the_profile_gives_back_the_epsilon_of_record(rate: float) -> None:
    event = stated(rate)
    e = epsilon([event], DELTA)
    assert deltas([event], [e])[0] == pytest.approx(DELTA, rel=0.05)
    profile = deltas([event], [0.0, 1.0, 4.0, 8.0])
    assert profile == sorted(profile, reverse=True)
    assert deltas([], [0.0, 1.0]) == [0.0, 0.0]
    assert deltas([Event(0.0, 0.5, 1)], [5.0]) == [1.0]


RATE, PATIENTS, BATCHES = 0.25, 24, 12


def poisson(secure: SecureRandom) -> np.ndarray:
    taken = np.zeros((BATCHES, PATIENTS), bool)
    for row in taken:
        row[secure.poisson_sample(PATIENTS, RATE)] = True
    return taken


def shuffled(rng: np.random.Generator) -> np.ndarray:
    epochs = [rng.permutation(PATIENTS).reshape(4, 6) for _ in range(BATCHES // 4)]
    return np.stack([np.isin(np.arange(PATIENTS), batch) for epoch in epochs for batch in epoch])


def fixed_size(rng: np.random.Generator) -> np.ndarray:
    return np.stack([np.isin(np.arange(PATIENTS), rng.permutation(PATIENTS)[:6]) for _ in range(BATCHES)])


def in_pairs(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.random((BATCHES, PATIENTS // 2)) < RATE, 2, axis=1)


def wrong_rate(rng: np.random.Generator) -> np.ndarray:
    return np.asarray(rng.random((BATCHES, PATIENTS)) < 2 * RATE)


def the_same_again(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.random((BATCHES // 2, PATIENTS)) < RATE, 2, axis=0)


@pytest.mark.parametrize("sampler", [shuffled, fixed_size, in_pairs, wrong_rate, the_same_again])
def test_a_sampler_that_is_not_poisson_is_caught(sampler: Callable[[np.random.Generator], np.ndarray]) -> None:
    rng = np.random.default_rng(5)
    found = audit.sampling([sampler(rng) for _ in range(8)], RATE, rng=rng)
    assert found.refuted, found


def test_shuffling_is_caught_in_a_single_run_of_twelve_batches() -> None:
    rng = np.random.default_rng(6)
    assert all(audit.sampling([shuffled(rng)], RATE, rng=rng).refuted for _ in range(10))


def test_our_own_sampler_passes() -> None:
    rng, secure = np.random.default_rng(7), SecureRandom(bytes(32))
    p_values = [audit.sampling([poisson(secure)], RATE, simulated=999, rng=rng).p_value for _ in range(40)]
    assert sum(p < 0.05 for p in p_values) <= 6  # at most 5 % in the long run


def test_at_rate_one_everybody_takes_part_in_every_step() -> None:
    everyone = np.ones((3, 5), bool)
    assert not audit.sampling([everyone, everyone], 1.0).refuted
    everyone[1, 2] = False
    assert audit.sampling([everyone], 1.0).refuted
    with pytest.raises(PrivacyError):
        audit.sampling([], 0.5)
