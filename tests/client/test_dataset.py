"""The cohort says what it is, and what does not fit an experiment is known before anything is charged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import admission, dataset, policy
from client.dataset import Facts
from client.deidentification import pseudonym
from privacy import ledger
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.errors import PolicyError
from shared.modalities.base import PIPELINE

SITE = Site(name="north", data=Path("/data"))
EXPERIMENT = Experiment(name="e", classes={"a": "any", "b": "any"})
FITS = Facts(cohort="c", members=None, delta=1e-5, image_size=64, classes=("a", "b"), pipeline=PIPELINE)
BEFORE_PIPELINES = """{
  "version": 1,
  "cohort": "cohort-2f7c1a9be0d34c55",
  "members": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
  "delta": 1e-05,
  "modality": "mr",
  "image_size": 64,
  "channels": 1,
  "classes": [
    "healthy",
    "lesion"
  ]
}"""
BEFORE_MODALITIES = """{
  "version": 1,
  "cohort": "cohort-2f7c1a9be0d34c55",
  "members": null,
  "delta": 1e-05,
  "image_size": 64,
  "classes": []
}"""


@pytest.mark.parametrize("text", [BEFORE_PIPELINES, BEFORE_MODALITIES])
def test_a_file_of_an_older_version_is_read_as_it_was_meant(tmp_path: Path, text: str) -> None:
    dataset.facts_path(tmp_path).write_text(text)
    facts = dataset.facts(tmp_path)
    assert (facts.modality, facts.channels, facts.pipeline, facts.image_size) == ("mr", 1, 1, 64)
    assert facts.cohort == "cohort-2f7c1a9be0d34c55"


@pytest.mark.parametrize(("name", "channels"), [("mr", 1), ("ct", 1)])
def test_a_finished_cohort_says_what_it_is(tmp_path: Path, name: str, channels: int) -> None:
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    (tmp_path / "cohort").mkdir()
    site = SITE.model_copy(update={"modality": name})
    dataset.register(site, tmp_path, image_size=32, classes=["healthy", "lesion"])
    said = json.loads((tmp_path / "node" / "cohort.json").read_text())
    assert {key: said[key] for key in ("modality", "image_size", "channels", "classes", "pipeline")} == {
        "modality": name,
        "image_size": 32,
        "channels": channels,
        "classes": ["healthy", "lesion"],
        "pipeline": PIPELINE,
    }


def test_a_cohort_that_fits_is_taken() -> None:
    policy.check_cohort(SITE, EXPERIMENT, FITS)
    policy.check_cohort(SITE, EXPERIMENT, FITS.model_copy(update={"classes": ()}))  # all are unlabelled


@pytest.mark.parametrize(("other", "setting", "said"), [
    ({"modality": "ct"}, "modality", "the cohort is of ct, the experiment of mr: take part with a site file"),
    ({"channels": 3}, "model.image_channels", "has images of 3 channels, the experiment of 1: run `fedsynth client ingest` again"),
    ({"image_size": 16}, "model.image_size", "has images of 16 pixels, the experiment wants 64: .*--image-size 64"),
    ({"classes": ("b", "a")}, "classes", "was made with the classes b, a, the experiment has a, b: .*--classes in that order"),
    ({"pipeline": PIPELINE + 1}, "", f"was made by pipeline {PIPELINE + 1}, this version is pipeline {PIPELINE} .* again"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_cure(other: dict[str, Any], setting: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said) as caught:
        policy.check_cohort(SITE, EXPERIMENT, FITS.model_copy(update=other))
    assert (caught.value.word, caught.value.setting) == ("cohort", setting)
    assert policy.refusal("north", caught.value).setting == setting  # it may be said to others: a key of the experiment


def test_nothing_is_charged_for_an_experiment_of_another_modality(tmp_path: Path) -> None:
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    dataset.save(dataset.Patient("p1", 0, np.zeros((4, 64, 64), np.uint8)), tmp_path / "cohort")
    dataset.register(SITE, tmp_path, image_size=64, classes=["a", "b"])
    experiment = EXPERIMENT.model_copy(update={"modality": "ct"})
    asked = admission.AdmittedRound(experiment, {}, 1, 3.0, {}, "request")
    with pytest.raises(PolicyError, match="the cohort is of mr, the experiment of ct"):
        admission.spend(asked, SITE, tmp_path, "run")
    assert not ledger.begun(tmp_path / dataset.LEDGER_FILE)
