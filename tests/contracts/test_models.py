"""What every kind of model keeps, whoever wrote it: a new file in the room is tested from the moment it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from client import policy
from client.dataset import Patient
from client.train import train
from shared import plugins, wire
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.config.model import ADAPTERS, MODELS, ModelSettings, settings_of
from shared.config.site import Site
from shared.errors import ConfigError, PolicyError
from shared.models import weights
from shared.models.base import Draws, GenerativeModel, Sampling, shapes

EXAMPLES = Path(__file__).parents[2] / "examples"
LABELS, CLASSES = ("healthy", "atrophy"), {"a": "healthy", "b": "any", "c": "atrophy"}
SHIPPED = [(name, 1) for name in MODELS.names()]
TOYS = [
    ("my-model", 1),
    ("my-model", 2),
    ("pixel-diffusion", 2),
    ("pixel-diffusion", 3),
]  # one of a DCGAN's size, two channels


@pytest.fixture(autouse=True)
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples, a model and an adapter, are plug-ins for the length of a test."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    for name in ("my_model.py", "my_adapter.py"):
        plugins.load(EXAMPLES / name)


def settings(kind: str, channels: int) -> ModelSettings:
    return settings_of({"kind": kind, "image_size": 16, "image_channels": channels})


def built(kind: str, channels: int) -> GenerativeModel:
    torch.manual_seed(0)
    return weights.build(settings(kind, channels), LABELS, CLASSES)


def adapters(model: GenerativeModel) -> list[str]:
    """Those that the model has the parts for."""
    found = []
    for name in ADAPTERS.names():
        try:
            attach(model, name)
        except ConfigError:
            continue
        found.append(name)
    return found


def person(channels: int, slices: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (slices, channels, 16, 16), dtype=np.uint8))


def loss(model: GenerativeModel, x_SCHW: torch.Tensor, label: int = 0) -> torch.Tensor:
    draws = Draws(slices=[0, len(x_SCHW) - 1], repeats=2, condition_dropout=0.1)
    return model.loss(model.prepare(x_SCHW, label), draws, torch.Generator().manual_seed(1))


each_model = pytest.mark.parametrize(("kind", "channels"), sorted({*SHIPPED, *TOYS}))


@each_model
def test_a_patients_loss_and_gradient_ignore_all_others(kind: str, channels: int) -> None:
    model = built(kind, channels)
    for adapter in adapters(model):
        trained = attach(model, adapter)

        def gradient(trained: dict[str, Any] = trained) -> list[torch.Tensor | None]:
            return list(torch.autograd.grad(loss(model, person(channels)), list(trained.values()), allow_unused=True))

        alone = gradient()
        assert any(g is not None and float(g.abs().sum()) > 0 for g in alone), adapter
        loss(model, person(channels, seed=5)).backward()
        for before, after in zip(alone, gradient(), strict=True):
            assert (before is None) == (after is None) and (before is None or torch.equal(before, after)), adapter


@each_model
def test_nothing_keeps_statistics_of_patients(kind: str, channels: int) -> None:
    model = built(kind, channels).train()
    assert not any(isinstance(m, torch.nn.modules.batchnorm._NormBase) for m in model.modules())
    attach(model, "full")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loss(model, person(channels)).backward()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@each_model
@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("label", [-1, 2, 7])
def test_the_loss_is_a_number_whoever_the_patient_is(kind: str, channels: int, value: int, label: int) -> None:
    model = built(kind, channels)
    attach(model, "full")
    assert torch.isfinite(loss(model, torch.full((1, channels, 16, 16), value, dtype=torch.uint8), label))


@each_model
def test_names_and_shapes_follow_from_the_settings_alone(kind: str, channels: int) -> None:
    model = built(kind, channels)
    with torch.device("meta"):
        planned = weights.build(settings(kind, channels), LABELS, CLASSES)
    for adapter in adapters(model):
        travels = attach(model, adapter)
        assert travels and shapes(travels) == shapes(attach(planned, adapter))
        in_parts = {name for part in model.parts().values() for name in part}
        assert set(travels) <= in_parts
        assert {name for name, p in model.named_parameters() if p.requires_grad} == set(travels)
    assert model.training_bytes(8, 4) > model.training_bytes(1, 4) > 0


@each_model
def test_everything_that_a_model_sends_passes_the_wire(kind: str, channels: int) -> None:
    model = built(kind, channels)
    for adapter in adapters(model):
        travels = {name: p.detach() for name, p in attach(model, adapter).items()}
        back = wire.tensors(wire.vector(travels), shapes(travels), "the update")
        assert all(torch.equal(back[name], travels[name].float()) for name in travels)


@each_model
def test_drawn_images_are_in_range_and_follow_from_the_seed(kind: str, channels: int) -> None:
    model = built(kind, channels).eval()
    labels, sampling = torch.tensor([0, 1, 2, -1] * 3), Sampling(steps=2, batch=5)
    drawn = [model.sample(labels, torch.Generator().manual_seed(seed), sampling) for seed in (1, 1, 2)]
    assert drawn[0].shape == (12, channels, 16, 16) and drawn[0].isfinite().all() and drawn[0].abs().max() <= 1
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert model.sample(labels[:0], torch.Generator(), sampling).shape == (0, channels, 16, 16)


@each_model
def test_saved_and_loaded_again_it_is_the_same_model(kind: str, channels: int, tmp_path: Path) -> None:
    model, other = built(kind, channels), weights.build(settings(kind, channels), LABELS, CLASSES)
    other.load_state_dict(
        weights.read(tmp_path / "m.safetensors", weights.write(tmp_path / "m.safetensors", model.state_dict()))
    )
    sampling = Sampling(steps=2)
    a, b = (m.eval().sample(torch.tensor([0]), torch.Generator().manual_seed(1), sampling) for m in (model, other))
    assert torch.equal(a, b)


@each_model
def test_a_base_serves_an_experiment_with_other_classes(kind: str, channels: int) -> None:
    base = weights.build(settings(kind, channels), LABELS)
    x = torch.stack([person(channels, seed=seed) for seed in range(12)])
    base.fit_public(x, torch.arange(12) % 2)
    model = built(kind, channels)
    model.load_base(base.state_dict())
    attach(model, "full")
    assert torch.isfinite(loss(model, person(channels), 2))


@pytest.mark.parametrize("kind", sorted({name for name, channels in {*SHIPPED, *TOYS} if channels == 1}))
def test_the_local_loop_trains_it_under_privacy_and_leaves_the_rest_alone(kind: str) -> None:
    model = built(kind, 1)
    for adapter in adapters(model):
        tree = {"name": "t", "classes": CLASSES, "base": "none", "model": settings(kind, 1).model_dump()}
        training = {"trainable": adapter, "steps": 2, "slices": 2, "draws": 1, "learning_rate": 1e-3}
        experiment = Experiment.model_validate(tree | {"training": training, "cohort": {"patients_per_site": 2}})
        people = [Patient(str(i), i, person(1, seed=i)[:, 0].numpy()) for i in range(2)]
        before = {name: t.clone() for name, t in model.state_dict().items()}
        update = train(model, people, experiment, noise_multiplier=1.0, expected_patients=2)
        assert all(float(u.abs().sum()) > 0 and u.isfinite().all() for u in update.values())
        parts = {name for part in model.parts().values() for name in part}
        still = {name for name in before if name not in update and name in parts}
        assert all(torch.equal(before[name], model.state_dict()[name]) for name in still)


@pytest.mark.parametrize("kind", MODELS.names())
def test_unknown_keys_and_kinds_are_refused_by_name(kind: str) -> None:
    unknown = f"names `nothing`, which there is not; there are .*{kind}"
    for tree, said in (({"kind": kind, "depth": 3}, "unknown key `depth`"), ({"kind": "nothing"}, unknown)):
        with pytest.raises(ValidationError, match=said):
            Experiment.model_validate({"name": "t", "model": tree})


@each_model
def test_every_number_of_the_settings_is_bounded(kind: str, channels: int) -> None:
    """A message with a number without bounds would keep a hospital's door busy for as long as its sender likes."""
    made = settings(kind, channels)
    for name, value in made.model_dump().items():
        for huge in ([10**9], [10**9, 10**9], [1] * 10**4) if isinstance(value, tuple | list) else (10**9,):
            if not isinstance(value, str):
                with pytest.raises(ValueError, match=name):
                    settings_of({"kind": kind, "image_channels": channels, name: huge})


@pytest.mark.parametrize("kind", MODELS.names())
def test_a_hospital_permits_kinds_and_parts_by_name(kind: str) -> None:
    experiment = Experiment.model_validate({"name": "t", "model": {"kind": kind}, "training": {"trainable": "full"}})
    site = Site.model_validate({"name": "north", "data": "x", "policy": {"models": [kind], "parts": ["full"]}})
    policy.check(site, experiment, 1.0)
    with pytest.raises(PolicyError, match="permits training of appearance"):
        policy.check(
            site.model_copy(update={"policy": site.policy.model_copy(update={"parts": ("appearance",)})}),
            experiment,
            1.0,
        )
    with pytest.raises(PolicyError, match="permits the models my-model"):
        policy.check(
            site.model_copy(update={"policy": site.policy.model_copy(update={"models": ("my-model",)})}),
            experiment,
            1.0,
        )
    with pytest.raises(ValidationError, match=f"`models` names `nothing`; there are .*{kind}"):
        Site.model_validate({"name": "north", "data": "x", "policy": {"models": ["nothing"]}})
