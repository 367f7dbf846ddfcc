"""The audit goes through the real loop: what `client.train` does wrong, the rehearsal shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from client import audit_run
from client.dataset import Patient
from privacy import audit
from privacy.membership_inference import auc
from privacy.noise import SecureRandom
from privacy.sgd import PatientOptimizer, clipped_sum, private_step
from shared.config.experiment import Experiment
from shared.errors import ConfigError
from shared.models import weights
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings

pytestmark = pytest.mark.usefixtures("repeatable")

NETWORK = PixelDiffusionSettings(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8)


def experiment(**training: Any) -> Experiment:
    privacy = {key: training.pop(key) for key in ("epsilon", "sampling_rate", "max_grad_norm") if key in training}
    return Experiment.model_validate(
        {
            "name": "t",
            "base": "none",
            "classes": {"a": "any", "b": "any", "c": "any"},
            "model": NETWORK.model_dump(),
            "training": {"rounds": 2, "steps": 2} | training,
            "privacy": privacy,
            "cohort": {"patients_per_site": 8},
        }
    )


def model(of: Experiment) -> PixelDiffusion:
    return weights.load_base("none", of.model, of.classes)


def patients(count: int, seed: int = 0) -> list[Patient]:
    rng = np.random.default_rng(seed)
    return [Patient(f"p{i}", i % 3, rng.integers(0, 255, (4, 16, 16), dtype=np.uint8)) for i in range(count)]


def half_noise(loss: Any, people: Any, optimizer: PatientOptimizer, *, clipping: Any) -> None:
    optimizer.noise_multiplier /= 2
    private_step(loss, people, optimizer, clipping=clipping)


def no_clipping(loss: Any, people: Any, optimizer: PatientOptimizer, *, clipping: Any) -> None:
    optimizer.zero_grad(set_to_none=True)
    found = clipped_sum(loss, people, optimizer.params, max_grad_norm=None)
    for p, gradient in zip(optimizer.params, found.gradients, strict=True):
        p.grad = gradient
    optimizer.step()


@pytest.mark.parametrize(("step", "refuted"), [(private_step, False), (half_noise, True), (no_clipping, True)])
def test_the_real_loop_passes_and_half_of_its_noise_or_no_clipping_does_not(step: Any, refuted: bool) -> None:
    settings = experiment(steps=1)
    network = model(settings)
    before = {name: p.clone() for name, p in network.state_dict().items()}
    seen = audit_run.canaries(network, patients(2), settings, 1000, step=step)
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())
    assert len(seen.inside) + len(seen.outside) == 1000
    found = audit.lower_bound(seen.inside, seen.outside, audit_run.stated(settings), 1e-5)
    assert found.refuted == refuted
    assert found.epsilon > 3


def test_canaries_are_sampled_by_the_loop_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(sampling_rate=0.4)
    seen = audit_run.canaries(model(settings), patients(4), settings, 300)
    assert not audit.sampling(seen.taken, 0.4).refuted
    monkeypatch.setattr(
        SecureRandom, "poisson_sample", lambda self, population, rate: self.subset(population, round(rate * population))
    )
    seen = audit_run.canaries(model(settings), patients(4), settings, 300)
    found = audit.sampling(seen.taken, 0.4)
    assert found.refuted
    assert found.worst == "batch sizes"


def test_full_training_is_audited_too() -> None:
    settings = experiment(trainable="full", slices=2, draws=1, rounds=1, steps=1, optimizer="adam", learning_rate=1e-3)
    seen = audit_run.canaries(model(settings), patients(2), settings, 200)
    found = audit.lower_bound(seen.inside, seen.outside, audit_run.stated(settings), 1e-5)
    assert 1 < found.epsilon <= found.stated


def different(count: int, seed: int) -> list[Patient]:
    """Patients who differ in where their brain lies and in its tones."""
    rng, people = np.random.default_rng(seed), []
    for i in range(count):
        top, left, bottom, right = *rng.integers(0, 5, 2), *rng.integers(9, 16, 2)
        x = np.zeros((4, 16, 16), np.uint8)
        tones = rng.uniform(40, 140) + rng.uniform(0, 110) * rng.random((bottom - top, right - left)) ** rng.uniform(
            0.3, 3
        )
        x[:, top:bottom, left:right] = tones
        people.append(Patient(f"p{i}", 0, x))
    return people


def test_evidence_against_members_is_strong_almost_without_noise_and_chance_under_much() -> None:
    settings = experiment(rounds=1, steps=1, max_grad_norm=30.0)
    found: dict[float, list[float]] = {1e-6: [], 200.0: []}
    for noise, kept in found.items():
        for seed in range(6):
            network, people = model(settings), different(16, seed)
            states = audit_run.trajectory(network, people[:8], settings, noise_multiplier=noise)
            assert len(states) == 2
            scores = audit_run.evidence(network, states, people, settings)
            kept.append(auc(scores["update alignment"][:8], scores["update alignment"][8:]))
    assert np.mean(found[1e-6]) > 0.65
    assert abs(np.mean(found[200.0]) - 0.5) < 0.25


def test_a_network_that_remembers_gives_its_members_away_however_different_patients_look() -> None:
    settings = experiment(
        trainable="full",
        epsilon=None,
        sampling_rate=0.5,
        slices=4,
        draws=4,
        rounds=1,
        steps=150,
        optimizer="adam",
        learning_rate=1e-2,
    )
    network, people = model(settings), different(20, 0)
    states = audit_run.trajectory(network, people[:5], settings, noise_multiplier=0.0)
    for state, remembers in ((states[-1], True), (states[0], False)):
        scores = audit_run.evidence(network, [states[0], state], people, settings)
        assert (auc(scores["loss"][:5], scores["loss"][5:]) > 0.7) == remembers


def test_the_same_patient_gets_the_same_evidence_every_time() -> None:
    settings = experiment(trainable="full", slices=2, draws=2, rounds=1, steps=1, learning_rate=1e-3)
    network, people = model(settings), patients(3)
    states = audit_run.trajectory(network, people, settings, noise_multiplier=1.0)
    first = audit_run.evidence(network, states, people, settings)
    again = audit_run.evidence(network, states, people[::-1], settings)
    for name, score in first.items():
        assert score == pytest.approx(again[name][::-1], rel=1e-5, abs=1e-12)


def test_an_experiment_that_states_no_epsilon_cannot_be_audited() -> None:
    with pytest.raises(ConfigError, match="nothing is stated"):
        audit_run.stated(experiment(epsilon=None))
