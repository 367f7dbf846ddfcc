"""Every degenerate generator fails the check that is meant for it, real images of other patients pass all, and doubt is a no."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from server.evaluation.heldout import Heldout
from server.release import cliques, gate, release
from server.release.cards import data_card, model_card
from server.release.draw import Draws
from server.release.gate import Decision
from server.release.quality import Check
from server.release.release import ReleaseStatement
from shared.config.experiment import Release
from shared.config.gate import Gate
from shared.errors import ReleaseRefused

CLASSES = ("healthy", "lesion")
CENTRAL = ("classes", "diversity", "sharpness", "likeness", "cliques")
STATEMENT = ReleaseStatement(
    epsilon_per_patient={"north": 7.4, "south": 7.9},
    delta=1e-5,
    sites_total=2,
    sites_contributed=2,
    rounds=3,
    trainable="appearance",
    noise_multiplier=2.1,
    sampling_rate=0.5,
    steps=12,
    max_grad_norm=1.0,
    accountant="PLD",
    model_sha256="ab" * 32,
    experiment="demo",
    base="none",
    metrics={},
)


def brains(patients: int, seed: int, per_patient: int = 4) -> Heldout:
    """Ellipses with a texture of their own and fine grain; every other patient has a bright lesion on the left."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    images, labels = [], []
    for p in range(patients):
        wide, tall = rng.uniform(0.6, 0.9, 2)
        texture = ndimage.gaussian_filter(rng.normal(size=(32, 32)), 3)
        for _ in range(per_patient):
            own = texture / texture.std() + 0.4 * rng.normal(size=(32, 32))
            if p % 2:
                own = own + 6 * np.exp(-((x + 0.35) ** 2 + y**2) / 0.12)
            images.append(np.clip(100 + 25 * own, 0, 255) * ((x / wide) ** 2 + (y / tall) ** 2 < 1))
            labels.append(p % 2)
    return Heldout(np.stack(images).astype(np.uint8), np.repeat(np.arange(patients), per_patient), np.array(labels))


HELDOUT, OTHERS = brains(16, seed=0), brains(16, seed=1)


def draws(x_NHW: np.ndarray, label_N: np.ndarray = OTHERS.label_N) -> Draws:
    return Draws.of({name: x_NHW[label_N == k] for k, name in enumerate(CLASSES)})


def said(drawn: Draws, **answers: bool) -> dict[str, Any]:
    return {"images_sha256": drawn.sha256(), "sites": answers or {"north": True, "south": True}}


def judge(drawn: Draws, statement: ReleaseStatement = STATEMENT, **changes: Any) -> Decision:
    kept = {"heldout": HELDOUT, "settings": Gate(), "said": said(drawn), "sites": 2} | changes
    return gate.judge(
        drawn,
        kept["heldout"],
        kept["settings"],
        lambda: release.formal(statement, Release()),
        kept["said"],
        kept["sites"],
    )


def failed(verdict: Decision) -> set[str]:
    return {check.name for check in verdict.failed}


def test_real_images_of_other_patients_pass_every_check() -> None:
    verdict = judge(draws(OTHERS.x_NHW))
    assert verdict.passed, verdict.failed
    assert [check.name for check in verdict.checks] == ["privacy", "sites", *CENTRAL, "copies and membership"]


@pytest.mark.parametrize(
    ("name", "make", "meant"),
    [
        ("mean image", lambda x, rng: np.repeat(x.mean(0, keepdims=True), len(x), 0), "diversity"),
        ("one image over and over", lambda x, rng: np.repeat(x[:1], len(x), 0), "diversity"),
        ("one image over and over", lambda x, rng: np.repeat(x[:1], len(x), 0), "cliques"),
        ("blurred", lambda x, rng: ndimage.gaussian_filter(x.astype(float), (0, 1.2, 1.2)), "sharpness"),
        ("grainy", lambda x, rng: np.clip(x + rng.normal(0, 60, x.shape), 0, 255), "sharpness"),
        ("pure noise", lambda x, rng: rng.integers(0, 256, x.shape), "likeness"),
        ("one class only", lambda x, rng: np.concatenate([x[OTHERS.label_N == 0]] * 2)[: len(x)], "classes"),
    ],
)
def test_a_degenerate_generator_fails_the_check_meant_for_it(
    name: str, make: Callable[[np.ndarray, np.random.Generator], np.ndarray], meant: str
) -> None:
    x_NHW = make(OTHERS.x_NHW, np.random.default_rng(0)).astype(np.uint8)
    verdict = judge(draws(x_NHW))
    assert meant in failed(verdict), name
    assert not verdict.passed


@pytest.mark.parametrize(("times", "grain", "found"), [(10, 4.0, 10), (25, 4.0, 25), (9, 4.0, 0), (10, 60.0, 0)])
def test_an_image_that_is_drawn_ten_times_is_found_though_all_else_is_well(
    times: int, grain: float, found: int
) -> None:
    rng = np.random.default_rng(0)
    x_NHW = OTHERS.x_NHW.copy()
    again = rng.permutation(len(x_NHW))[:times]
    x_NHW[again] = np.clip(brains(1, seed=7).x_NHW[:1] + rng.normal(0, grain, (times, 32, 32)), 0, 255).astype(np.uint8)
    check = next(c for c in judge(draws(x_NHW)).checks if c.name == "cliques")
    assert check.value == found
    assert check.passed is (found == 0)


def test_so_many_alike_that_nobody_can_count_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NHW = np.repeat(OTHERS.x_NHW[:4], 16, 0)
    for name in ("MANY", "TRIES"):
        with monkeypatch.context() as patch:
            patch.setattr(cliques, name, 0)
            check = next(c for c in judge(draws(x_NHW)).checks if c.name == "cliques")
            assert (check.passed, check.value) == (False, 64)
    close = np.eye(40)[np.arange(30)] + 0.0  # thirty images, none alike
    assert cliques.repeated(close, 0.5) == 0
    ring = np.stack([np.cos(np.arange(60) / 60 * 2 * np.pi), np.sin(np.arange(60) / 60 * 2 * np.pi)], 1)
    step = float(np.linalg.norm(ring[1] - ring[0]))
    assert cliques.repeated(ring, 5.5 * step) == 0, "each has ten neighbours, but no ten are all alike"
    assert cliques.repeated(ring, 9.5 * step) == 60


def test_a_class_without_images_is_a_no_and_classes_that_nobody_can_tell_apart_are_not_asked() -> None:
    one = Draws({"healthy": 32, "lesion": 0}, 32, 64, lambda number: OTHERS.x_NHW[OTHERS.label_N == 0])
    assert "classes" in failed(judge(one))
    alike = replace(HELDOUT, label_N=np.random.default_rng(0).integers(0, 2, 16)[HELDOUT.patient_N])
    found = next(c for c in judge(draws(OTHERS.x_NHW), heldout=alike).checks if c.name == "classes")
    assert found.passed
    assert "cannot be told apart" in found.detail


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (None, "no site was asked"),
        ({"images_sha256": "other", "sites": {"north": True, "south": True}}, "other images than these"),
        ({"sites": {"north": True, "south": False}}, "1 of 2 sites said no"),
        ({"sites": {"north": True}}, "1 of 2 sites answered"),
        ({"sites": {"north": True, "south": "yes"}}, "said no"),
        ({"sites": "north"}, "could not run"),
    ],
)
def test_a_site_that_did_not_say_yes_to_these_images_said_no(answers: dict[str, Any] | None, words: str) -> None:
    drawn = draws(OTHERS.x_NHW)
    about = None if answers is None else {"images_sha256": drawn.sha256()} | answers
    verdict = judge(drawn, said=about)
    assert failed(verdict) == {"copies and membership"}
    assert words in verdict.failed[0].detail


def test_a_check_that_could_not_run_has_failed() -> None:
    assert failed(judge(draws(OTHERS.x_NHW), heldout=None)) == set(CENTRAL)
    broken = replace(HELDOUT, patient_N=np.zeros(3))
    verdict = judge(draws(OTHERS.x_NHW), heldout=broken)
    assert failed(verdict) == set(CENTRAL)
    assert all("could not run" in check.detail for check in verdict.failed)


def test_the_non_private_control_and_a_missing_site_fail() -> None:
    drawn = draws(OTHERS.x_NHW)
    assert failed(judge(drawn, replace(STATEMENT, epsilon_per_patient={"north": None}, noise_multiplier=None))) >= {
        "privacy"
    }
    assert failed(judge(drawn, replace(STATEMENT, epsilon_per_patient={"north": 8.2, "south": 1.0}))) == {"privacy"}
    assert failed(judge(drawn, replace(STATEMENT, sites_contributed=1))) == {"sites"}


def test_only_what_the_experiment_requires_is_asked() -> None:
    verdict = judge(draws(OTHERS.x_NHW), said=None, settings=Gate(required=("privacy", "diversity")))
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["privacy", "diversity"]


@pytest.mark.parametrize(
    ("change", "passed", "words"),
    [
        ({}, True, "canaries show epsilon 3.10 at least, stated is 7.90"),
        ({"canaries": {"epsilon": 9.0, "stated": 7.9}, "problems": ["canaries show epsilon 9.00"]}, False, "9.00"),
        ({"stated": {"noise_multiplier": 1.0, "sampling_rate": 0.5, "steps": 12}}, False, "another mechanism"),
        (None, False, "could not run"),
    ],
)
def test_a_required_audit_must_be_there_of_this_mechanism_and_without_a_contradiction(
    change: dict[str, Any] | None, passed: bool, words: str, tmp_path: Path
) -> None:
    audit = {
        "stated": {"noise_multiplier": 2.1, "sampling_rate": 0.5, "steps": 12},
        "canaries": {"epsilon": 3.1, "stated": 7.9},
        "problems": [],
    }
    if change is not None:
        (tmp_path / "audit.json").write_text(json.dumps(audit | change))
    found = gate.judge(
        draws(OTHERS.x_NHW),
        HELDOUT,
        Gate(required=("audit",)),
        lambda: release.formal(STATEMENT, Release()),
        None,
        2,
        lambda: gate.audited(tmp_path / "audit.json", 2.1, 0.5, 12),
    )
    assert found.passed is passed
    assert words in found.checks[0].detail


def test_a_verdict_survives_the_disk(tmp_path: Path) -> None:
    verdict = replace(judge(draws(OTHERS.x_NHW)), forced="because")
    verdict.save(tmp_path / "gate.json")
    assert Decision.load(tmp_path / "gate.json") == verdict
    assert json.loads((tmp_path / "gate.json").read_text())["passed"] is True


def test_pain20_a_failed_gate_publishes_nothing_unless_forced_with_a_reason_that_the_cards_repeat(
    tmp_path: Path,
) -> None:
    drawn = draws(OTHERS.x_NHW)
    verdict = judge(drawn, said=said(drawn, north=True, south=False))
    with pytest.raises(ReleaseRefused, match=r"copies and membership: 1 of 2 sites said no"):
        release.write(tmp_path / "release", drawn, STATEMENT, Release(), seed=1, gate=verdict)
    assert not list(tmp_path.iterdir())
    forced = replace(verdict, forced="the south's cohort is public | see #12")
    release.write(tmp_path / "release", drawn, STATEMENT, Release(), seed=1, gate=forced)
    for card in ("DATA_CARD.md", "MODEL_CARD.md"):
        text = (tmp_path / "release" / card).read_text()
        assert "did not pass its gate" in text
        assert "the south's cohort is public  see 12".replace("  ", " ") in text
        assert "| copies and membership | **FAIL** |" in text
    assert json.loads((tmp_path / "release" / "gate.json").read_text())["forced"]
    unprivate = replace(verdict, checks=(Check("privacy", False, "epsilon is 9", "8 or less"),), forced="I insist")
    with pytest.raises(ReleaseRefused, match="privacy: epsilon is 9"):
        release.write(tmp_path / "other", drawn, STATEMENT, Release(), seed=1, gate=unprivate)


def test_the_cards_say_what_was_checked_or_that_nothing_was() -> None:
    verdict = judge(draws(OTHERS.x_NHW))
    counts = dict.fromkeys(CLASSES, 32)
    assert "| diversity | pass |" in data_card(STATEMENT, Release(), counts, 32, verdict)
    assert "by force" not in model_card(STATEMENT, Release(), verdict)
    assert "admitted on its formal guarantee" in model_card(STATEMENT, Release())


@pytest.mark.real_data
def test_real_slices_of_other_patients_pass_and_their_blur_mean_and_noise_do_not(
    real_data: Callable[[str], Path],
) -> None:
    from PIL import Image

    patients = sorted(real_data("slices_dementia").glob("*/*"))[::4]
    x_PSHW = np.stack(
        [[np.asarray(Image.open(f).convert("L").resize((64, 64))) for f in sorted(p.iterdir())[::6]] for p in patients]
    )
    label_P = np.unique([p.parent.name for p in patients], return_inverse=True)[1]
    held = Heldout(x_PSHW[::2].reshape(-1, 64, 64), np.repeat(np.arange(15), 4), label_P[::2].repeat(4))
    others, label_N = x_PSHW[1::2].reshape(-1, 64, 64), label_P[1::2].repeat(4)

    def fails(x_NHW: np.ndarray) -> set[str]:
        drawn = Draws.of({str(k): x_NHW[label_N == k].astype(np.uint8) for k in range(3)})
        return failed(judge(drawn, heldout=held))

    assert fails(others) == set()
    assert "sharpness" in fails(ndimage.gaussian_filter(others, (0, 1.2, 1.2)))
    assert "diversity" in fails(np.repeat(others.mean(0, keepdims=True), len(others), 0))
    assert "likeness" in fails(np.random.default_rng(0).integers(0, 256, others.shape))
