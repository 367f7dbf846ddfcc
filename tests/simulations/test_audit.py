"""`fedsynth privacy audit`, whole, on a small network: what it prints, what it writes, and when it says no."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click.testing
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from client import audit_run
from privacy.sgd import PatientOptimizer, private_step
from shared import cli
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.errors import ConfigError, DataError, PrivacyError
from shared.models.pixel_diffusion import PixelDiffusionSettings
from simulations import audit
from simulations.audit_cli import app

pytestmark = pytest.mark.usefixtures("repeatable")

NETWORK = PixelDiffusionSettings(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    tree = {
        "name": "small",
        "base": "none",
        "classes": {"a": "any", "b": "any", "c": "any"},
        "model": NETWORK.model_dump(mode="json"),
        "training": {"rounds": 1, "steps": 2},
        "privacy": {"sampling_rate": 0.5},
        "cohort": {"patients_per_site": 8, "slices_per_patient": 4},
        "release": {"sampler_steps": 2},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_an_audit_prints_json_writes_three_pictures_and_finds_nothing_wrong(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    done = CliRunner().invoke(app, [str(config), "--canaries", "500", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    assert tree == json.loads((out / "audit.json").read_text())
    assert tree["problems"] == []
    assert 0.5 < tree["canaries"]["epsilon"] <= tree["canaries"]["stated"] <= 8
    assert tree["canaries"]["confidence"] == 0.95
    assert set(tree["membership"]) == {"loss", "calibrated loss", "update alignment"}
    assert tree["membership"]["loss"]["members"] == tree["membership"]["loss"]["nonmembers"] == 8
    assert tree["copies"]["images"] == tree["nearness"]["images"] == 96
    for name in ("canaries", "membership", "copies"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.size[0] > 500


def half_noise(loss: Any, people: Any, optimizer: PatientOptimizer, *, clipping: Any) -> None:
    optimizer.noise_multiplier /= 2
    private_step(loss, people, optimizer, clipping=clipping)


def test_a_fault_is_told_and_sets_the_exit_code(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = audit_run.canaries
    monkeypatch.setattr(audit_run, "canaries", lambda *a, **k: original(*a, **k | {"step": half_noise}))
    done = CliRunner().invoke(app, [str(config), "--canaries", "500", "--out", str(tmp_path / "audit")])
    assert isinstance(done.exception, PrivacyError)
    assert "contradicts the stated privacy: canaries show epsilon" in str(done.exception)
    assert "epsilon at least" in done.stdout
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["problems"]


def test_a_run_with_other_settings_or_none_is_refused(config: Path, tmp_path: Path) -> None:
    experiment = read(config, Experiment)

    def run(experiment: Experiment) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audit_run, "canaries", lambda *_, **__: pytest.fail("refuse before the work"))
            audit.run(experiment, tmp_path / "x", canaries=100, finished=tmp_path, progress=lambda _: nullcontext())

    with pytest.raises(DataError, match="holds no finished simulation"):
        run(experiment)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "experiment.json").write_text(experiment.model_copy(update={"seed": 3}).model_dump_json())
    with pytest.raises(ConfigError, match="other settings"):
        run(experiment)
    with pytest.raises(ConfigError, match="nothing is stated"):
        run(experiment.model_copy(update={"privacy": experiment.privacy.model_copy(update={"epsilon": None})}))


def test_what_is_far_above_the_best_attack_is_a_problem_and_what_is_within_its_interval_is_not() -> None:
    from privacy.accounting import Attack, Event
    from privacy.audit import Bound, Sampling
    from privacy.copies import Copies, Nearness
    from privacy.membership_inference import Membership

    bound = Bound(1.0, 8.0, 1e-5, 0.95, 9.0, 0.0, 50, 50, 30, 20, 0.4, 0.5)
    found = audit.Audit(
        "t", "r", Event(2.0, 1.0, 3), bound, Sampling(0.5, "inclusions", 3), Attack(0.7, 0.05),
        {"loss": Membership(9, 9, 0.75, 0.65, 0.85, 0.2, 0.1, 0.3, 0.1)},
        Nearness(9, 9, 0.5, 0.4, 0.6, 0.1, 0.0, 0.0), Copies(9, 0, ()),
    )  # fmt: skip
    assert found.problems() == []
    sure = dataclasses.replace(found.membership["loss"], auc_low=0.71)
    assert len(dataclasses.replace(found, membership={"loss": sure}).problems()) == 1
    biased = dataclasses.replace(found, sampling=Sampling(0.0004, "batch sizes", 3))
    assert "not Poisson-sampled: batch sizes" in biased.problems()[0]


def test_a_command_of_a_higher_room_joins_the_group_of_a_lower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "fedsynth.commands"
    entries = [
        EntryPoint("privacy.audit", "simulations.audit_cli:app", group),
        EntryPoint("privacy", "privacy.cli:app", group),
        EntryPoint("privacy.gone", "no_such_room.cli:app", group),  # as simulations in the wheel
    ]
    monkeypatch.setattr(cli, "entries", lambda: entries)
    fedsynth = click.testing.CliRunner()
    shown = fedsynth.invoke(cli.build(), ["privacy", "--help"]).stdout
    assert "audit" in shown
    assert "plan" in shown
    assert "Example: fedsynth privacy audit" in fedsynth.invoke(cli.build(), ["privacy", "audit", "--help"]).stdout
    assert fedsynth.invoke(cli.build(), ["simulate", "--help"]).exit_code == 2, "its room is not there"
