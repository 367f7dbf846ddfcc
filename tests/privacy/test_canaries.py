"""Canaries are seen through the real private step: what is written down is their own contribution and the noise, no more."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from privacy.canaries import LOUD, Directions, Watch, most
from privacy.sgd import PatientOptimizer, private_step
from shared.errors import PrivacyError

RNG = np.random.default_rng(0)


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.randn(13))]


def test_directions_are_orthonormal_and_every_one_crosses_the_tensors() -> None:
    people = parameters()
    directions = Directions([p.numel() for p in people], 8, RNG)
    vectors = []
    for j in range(8):
        found = torch.autograd.grad(directions.loss(j, people, 3.0), people)
        assert all(g.abs().sum() > 0 for g in found)
        vectors.append(torch.cat([g.reshape(-1) for g in found]))
        assert directions.project(found) == pytest.approx(3.0 * np.eye(8)[j], abs=1e-5)
    gram = torch.stack(vectors) @ torch.stack(vectors).T
    assert torch.allclose(gram, 9.0 * torch.eye(8), atol=1e-4)


def test_no_more_canaries_than_the_parameters_can_tell_apart() -> None:
    assert most(68) == 17
    with pytest.raises(PrivacyError, match="1 to 17"):
        Directions([51, 17], 18, RNG)
    with pytest.raises(PrivacyError):
        Directions([51, 17], 0, RNG)


def watch(step: Callable[..., object] = private_step) -> "Watch[str]":
    return Watch(lambda p: p, {f"c{j}": j for j in range(8)}, step=step, rng=RNG)


def optimizer(people: list[torch.nn.Parameter], noise: float = 1e-6) -> PatientOptimizer:
    plain = torch.optim.SGD(people, lr=0.1)
    return PatientOptimizer(plain, noise_multiplier=noise, max_grad_norm=0.5, sampling_rate=0.5, expected_patients=9)


@pytest.mark.parametrize("clipping", ["fixed", "automatic"])
def test_everybody_elses_gradient_is_taken_off_and_a_loud_canary_counts_one(clipping: str) -> None:
    people, seen = parameters(), watch()

    def loss(patient: str) -> torch.Tensor:
        sizes = {"quiet": 1e-3, "loud": 50.0, "broken": math.nan, "middle": 0.1}
        return sum(((p * sizes[patient]).square().sum() for p in people), torch.zeros(()))

    private = optimizer(people)
    seen(loss, ["quiet", "c3", "loud", "broken", "c5", "middle"], private, clipping=clipping)
    assert seen.observed[0] == pytest.approx(np.eye(8)[3] + np.eye(8)[5], abs=1e-4)
    seen(loss, [], private, clipping=clipping)
    assert seen.observed[1] == pytest.approx(np.zeros(8), abs=1e-4)
    assert seen.taken == [{"quiet", "c3", "loud", "broken", "c5", "middle"}, set()]


def test_the_noise_of_the_step_is_seen_at_its_scale() -> None:
    people, seen = parameters(), watch()
    private = optimizer(people, noise=2.0)
    for _ in range(400):
        seen(lambda _: torch.zeros((), requires_grad=True), [], private)
    assert np.std(np.array(seen.observed)) == pytest.approx(2.0, rel=0.05)


def test_watching_changes_nothing_of_the_step() -> None:
    people = parameters()
    start = [p.detach().clone() for p in people]

    def loss(_: str) -> torch.Tensor:
        return sum((p.square().sum() for p in people), torch.zeros(()))

    watch()(loss, ["a", "b"], optimizer(people))
    watched = [p.detach().clone() for p in people]
    for p, s in zip(people, start, strict=True):
        p.data.copy_(s)
    private_step(loss, ["a", "b"], optimizer(people))
    assert all(torch.allclose(p, w, atol=1e-5) for p, w in zip(people, watched, strict=True))


def test_without_clipping_there_is_nothing_to_audit() -> None:
    people = parameters()
    plain = PatientOptimizer(
        torch.optim.SGD(people, lr=0.1), noise_multiplier=0, max_grad_norm=None, sampling_rate=1, expected_patients=1
    )
    with pytest.raises(PrivacyError, match="nothing to audit"):
        watch()(lambda _: torch.zeros(()), [], plain)
    assert LOUD > 100
