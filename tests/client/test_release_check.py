"""A hospital says pass or fail to a proposed release, a stated number of times, and nothing else leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage

from client import answers, app, dataset, private_statistics, release_check
from client.dataset import Patient
from client.deidentification import pseudonym
from shared import messages
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.config.site import Site
from shared.errors import PrivacyError
from shared.models import weights
from shared.models.diffusion import Process
from shared.models.pixel_diffusion import PixelDiffusionSettings

EXPERIMENT = Experiment.model_validate(
    {
        "name": "t",
        "base": "none",
        "classes": {"a": "any", "b": "any"},
        "model": PixelDiffusionSettings(
            image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8
        ).model_dump(),
        "training": {"rounds": 2, "steps": 2, "slices": 2, "draws": 1},
        "cohort": {"patients_per_site": 8},
    }
)


def brains(patients: int, seed: int, size: int = 16) -> np.ndarray:
    """(patients, 3, H, H) uint8; the slices of one patient resemble each other."""
    rng = np.random.default_rng(seed)
    own = [ndimage.gaussian_filter(rng.normal(size=(size, size)), 1.5) for _ in range(patients)]
    more = ndimage.gaussian_filter(rng.normal(size=(patients, 3, size, size)), (0, 0, 1, 1))
    x = np.stack(own)[:, None] / 0.15 + 0.5 * more / 0.25
    return np.asarray(np.clip(110 + 40 * x, 30, 255), np.uint8)


TRAIN, HELD, FRESH = brains(8, 1), brains(8, 2), brains(10, 3).reshape(-1, 16, 16)


def check(proposed: np.ndarray, gained: tuple[float, float] = (0.0, 0.0), **gate: Any) -> dict[str, Any]:
    tree = EXPERIMENT.model_dump()
    tree["release"]["gate"] |= gate
    groups = [[Patient(str(i), 0, x) for i, x in enumerate(xs)] for xs in (TRAIN, HELD)]
    scores = [np.linspace(-1, 1, 8) + shift for shift in gained]
    return release_check.check(proposed, *groups, *scores, Experiment.model_validate(tree))


def noisy(x_NHW: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, 1.5, x_NHW.shape)
    return np.asarray(np.clip(x_NHW + grain, 0, 255), np.uint8)


def test_images_of_nobody_pass() -> None:
    found = check(FRESH)
    assert found["passed"] is True, found
    assert found["copies"] == 0


@pytest.mark.parametrize(
    "copied",
    [
        TRAIN.reshape(-1, 16, 16),
        TRAIN.reshape(-1, 16, 16)[:, :, ::-1],
        noisy(TRAIN.reshape(-1, 16, 16)),
        noisy(TRAIN.reshape(-1, 16, 16)[:, :, ::-1]),
        np.concatenate([FRESH, TRAIN[0, :1]]),
    ],
    ids=["copies", "mirrored", "noisy", "noisy and mirrored", "one copy among many"],
)
def test_copies_of_training_images_fail(copied: np.ndarray) -> None:
    found = check(np.ascontiguousarray(copied))
    assert found["verdicts"]["near-copies"] is False
    assert found["passed"] is False


def test_images_that_lie_nearer_to_training_patients_fail_even_if_none_is_a_copy() -> None:
    mixed = (TRAIN.reshape(-1, 16, 16) * 0.75 + 0.25 * FRESH[:24]).astype(np.uint8)
    found = check(mixed, copies=10**6)
    assert found["verdicts"] == {"near-copies": True, "closer_share": False, "membership": True}
    assert check((HELD.reshape(-1, 16, 16) * 0.75 + 0.25 * FRESH[:24]).astype(np.uint8))["passed"]


def test_a_model_that_remembers_its_patients_fails_and_a_score_that_is_not_a_number_is_a_no() -> None:
    assert check(FRESH, gained=(3.0, 0.0))["verdicts"]["membership"] is False
    assert check(FRESH, gained=(0.0, 3.0))["passed"], "the wrong way round tells nobody anything"
    for broken in ([np.full(8, np.nan), np.zeros(8)], [np.zeros(4), np.zeros(8)]):
        groups = [[Patient(str(i), 0, x) for i, x in enumerate(xs)] for xs in (TRAIN, HELD)]
        with pytest.raises(PrivacyError):
            release_check.check(FRESH, *groups, *broken, EXPERIMENT)


def test_a_model_trained_without_privacy_until_it_remembers_is_caught_by_its_losses() -> None:
    """The positive control, with a real training: no proposed image is a copy, and the site says no all the same."""
    tree = EXPERIMENT.model_dump()
    tree["model"] |= {"channels": (32, 32)}
    tree["training"] |= {"trainable": "full", "slices": 3, "draws": 4, "condition_dropout": 0.0}
    tree["privacy"] |= {"epsilon": None}
    experiment = Experiment.model_validate(tree)
    cohort, heldout = ([Patient(str(i), 0, x[:1].repeat(3, 0)) for i, x in enumerate(xs[:5])] for xs in (TRAIN, HELD))
    model = weights.load_base("none", experiment.model, experiment.classes)
    attach(model, "full")
    before = [np.array(private_statistics.losses(model, group, experiment)) for group in (cohort, heldout)]
    x_B1HW = (torch.from_numpy(TRAIN[:5, :1]).float() / 127.5 - 1).repeat(6, 1, 1, 1)
    z_BF, any_B = torch.zeros(30, 4), torch.full((30,), model.denoiser.any_label)
    optimizer, process = torch.optim.Adam(model.denoiser.parameters(), lr=3e-3), Process()
    for _ in range(300):
        optimizer.zero_grad()
        code = model.codec.encode(x_B1HW)
        loss = process.losses(
            model.denoiser, code, any_B, z_BF, noise=lambda like=code: torch.randn_like(like), condition_dropout=0.0
        )
        loss.mean().backward()
        optimizer.step()
    after = [np.array(private_statistics.losses(model, group, experiment)) for group in (cohort, heldout)]
    gained = [a - b for a, b in zip(before, after, strict=True)]
    found = release_check.check(FRESH, cohort, heldout, *gained, experiment)
    assert found["membership"]["auc"] > 0.9
    assert found["verdicts"] == {"near-copies": True, "closer_share": True, "membership": False}


def test_with_many_patients_the_upper_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(FRESH)["membership"]["auc_high"] > 0.6
    assert check(FRESH)["passed"]
    monkeypatch.setattr(release_check, "ENOUGH", 8)
    assert not check(FRESH)["passed"]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    tree = {"name": "north", "data": str(tmp_path), "format": "images", "face_removal": "none", "release_checks": 2}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(tree))
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    for i, x_SHW in enumerate(TRAIN):
        dataset.save(Patient(f"p{i}", i % 2, x_SHW), tmp_path / "cohort")
    dataset.register(read(tmp_path / "site.yaml", Site), tmp_path, image_size=16, classes=tuple(EXPERIMENT.classes))
    return tmp_path


def ask(site: Path, proposed: np.ndarray, **spoil: Any) -> messages.Vote | messages.Refusal:
    model = weights.load_base("none", EXPERIMENT.model, EXPERIMENT.classes)
    tensors = {k: v.detach() for k, v in attach(model, "appearance").items()}
    held = HELD.reshape(-1, 16, 16)
    fields: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "tensors": tensors,
        "proposed_SHW": proposed,
        "heldout_NHW": held,
        "heldout_patient_N": np.repeat(np.arange(8), 3),
        "heldout_label_N": np.zeros(24, int),
    }
    context: Any = SimpleNamespace(node_config={"site": str(site / "site.yaml")}, run_config={}, run_id=7)
    reply = app.judge(messages.pack_proposal(messages.Proposal(**(fields | spoil))), context)
    assert set(reply.keys()) == {"config"}, "no array and no figure leaves"
    assert set(reply["config"].keys()) in ({"site", "passed"}, {"site", "refused", "about"})
    return messages.unpack_verdict(reply)


def test_one_bit_leaves_and_the_reasons_stay(site: Path) -> None:
    assert ask(site, FRESH) == messages.Vote("north", True)
    assert ask(site, TRAIN.reshape(-1, 16, 16)) == messages.Vote("north", False)
    record = site / answers.RECORD
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line.get("copies") for line in lines if "passed" in line] == [0, 24]
    assert record.stat().st_mode & 0o077 == 0


def test_the_number_of_answers_is_the_sites_own_and_survives_everything(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(release_check, "judge", fail)
        with pytest.raises(KeyboardInterrupt):
            ask(site, FRESH)
    assert ask(site, FRESH) == messages.Vote("north", True), "the same question: counted once, answered now"
    assert ask(site, TRAIN.reshape(-1, 16, 16)) == messages.Vote("north", False)
    assert ask(site, FRESH[:5]) == messages.Refusal("north", "answers")
    assert ask(site, FRESH) == messages.Vote("north", True), "asked before: the same answer, not counted again"
    with (site / answers.RECORD).open("a") as file:
        file.write("torn")
    assert isinstance(ask(site, FRESH[:5]), messages.Refusal)


def test_a_proposal_of_the_wrong_form_is_refused_and_not_counted(site: Path) -> None:
    for spoil in (
        {"proposed_SHW": np.zeros((2, 8, 8), np.uint8)},
        {"proposed_SHW": np.zeros((0, 16, 16), np.uint8)},
        {"proposed_SHW": FRESH.astype(np.float32)},
        {"heldout_patient_N": np.zeros(3, int)},
    ):
        assert isinstance(ask(site, FRESH, **spoil), messages.Refusal)
    assert not (site / answers.RECORD).exists()


@pytest.mark.real_data
@pytest.mark.parametrize("change", ["copies", "mirrored and noisy", "shifted by a pixel", "brighter", "other patients"])
def test_real_slices_of_training_patients_fail_however_they_are_hidden_and_those_of_others_pass(
    change: str, real_data: Callable[[str], Path]
) -> None:
    folders = sorted(real_data("slices_dementia").glob("*/*"))[::5][:24]
    x_PSHW = np.stack(
        [[np.asarray(Image.open(f).convert("L").resize((64, 64))) for f in sorted(p.iterdir())[::4]] for p in folders]
    )
    cohort, heldout = ([Patient(str(i), 0, x) for i, x in enumerate(x_PSHW[k::2])] for k in (0, 1))
    mine, others = (x_PSHW[k::2, ::2].reshape(-1, 64, 64).astype(float) for k in (0, 1))
    noise = np.random.default_rng(0).normal(0, 20, mine.shape)
    proposed = {
        "copies": mine,
        "mirrored and noisy": mine[:, :, ::-1] + noise,
        "shifted by a pixel": np.roll(mine, 1, 2),
        "brighter": mine * 1.2,
        "other patients": others,
    }[change]
    scores = np.linspace(-1, 1, 12)
    found = release_check.check(np.clip(proposed, 0, 255).astype(np.uint8), cohort, heldout, scores, scores, EXPERIMENT)
    assert found["passed"] is (change == "other patients"), found


def test_attack_03_a_proposal_passes_the_same_policy_as_a_round(site: Path) -> None:
    for change in ({"base": str(site / "JANE.safetensors")}, {"base": "../x"}):
        experiment = EXPERIMENT.model_copy(update=change)
        reply = ask(site, FRESH, experiment=experiment)
        assert isinstance(reply, messages.Refusal)
        assert str(site) not in reply.reason and "JANE" not in reply.reason
    tree = yaml.safe_load((site / "site.yaml").read_text())
    (site / "site.yaml").write_text(yaml.safe_dump(tree | {"policy": {"bases": ["phantoms-64"]}}))
    assert isinstance(ask(site, FRESH), messages.Refusal), "a base that the site does not permit"
    assert not (site / answers.RECORD).exists()


def test_attack_10_an_error_while_judging_is_a_no_and_not_a_third_answer(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("JANE SMITH")

    monkeypatch.setattr(release_check, "check", fail)
    assert ask(site, FRESH) == messages.Vote("north", False)


def test_attack_10_answers_are_counted_for_the_people_and_not_for_a_work_folder(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    pseudonym.load_or_make(records / dataset.KEY_FILE)
    given = 0
    for name in ("one", "two"):
        work = tmp_path / name
        work.mkdir()
        tree = {"name": "north", "data": str(work), "format": "images", "face_removal": "none", "release_checks": 1}
        (work / "site.yaml").write_text(yaml.safe_dump(tree | {"records": str(records)}))
        for i, x_SHW in enumerate(TRAIN):
            dataset.save(Patient(f"p{i}", i % 2, x_SHW), work / "cohort")
        dataset.register(read(work / "site.yaml", Site), work, image_size=16, classes=tuple(EXPERIMENT.classes))
        given += isinstance(ask(work, FRESH[: 5 + given]), messages.Vote)
    assert given == 1
