"""Settings are frozen, checked at the edge, and refuse in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.config.experiment import Experiment, Federation, Performance
from shared.config.loading import read, validate
from shared.config.policy import Policy
from shared.config.site import Site
from shared.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def test_every_shipped_experiment_is_valid_and_opens_with_its_command() -> None:
    for path in CONFIGS:
        assert f"configs/{path.name}" in "".join(path.read_text().splitlines(keepends=True)[:6]), path.name
        if not path.name.startswith("base"):
            read(path, Experiment)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"name": "a", "roundz": 3}, "unknown key `roundz`"),
        ({"name": "a", "privacy": {"epsilom": 3}}, "unknown key `privacy.epsilom`; did you mean `epsilon`?"),
        (
            {"name": "a", "sites": [{"name": "b", "data": "x", "formt": "dicom"}], "data": "sites"},
            "did you mean `format`?",
        ),
        (
            {"name": "a", "training": {"lr_schedule": 3}},
            "unknown key `training.lr_schedule`; the keys here are trainable, rounds",
        ),
        (
            {"name": "a", "cohort": {"alpha": 3}},
            "unknown key `cohort.alpha`; the keys here are sites, patients_per_site",
        ),
        ({}, "the key `name` is required"),
        ({"name": "a", "privacy": {"epsilon": -1}}, "`privacy.epsilon` is -1"),
        ({"name": "a", "privacy": {"epsilon": float("nan")}}, "privacy.epsilon"),
        ({"name": "a", "privacy": {"epsilon": "none"}}, "write null for none"),
        ({"name": "a", "training": None}, "`training` is null: it needs keys and values"),
        ({"name": "a", "data": "sites"}, "go together"),
        ({"name": "A B"}, "`name`"),
        ({"name": "a", "federation": {"weights": {"north": 8000}}}, "`federation.weights.north` is 8000"),
        ({"name": "a", "federation": {"weights": {"north": 0}}}, "`federation.weights.north` is 0"),
        ({"name": "a", "federation": {"weights": {"../x": 1}}}, "federation.weights"),
        (
            {"name": "a", "data": "sites", "sites": [{"name": "b", "data": "x"}], "federation": {"weights": {"c": 2}}},
            "`federation.weights` names `c`",
        ),
        (
            {"name": "a", "data": "sites", "sites": [{"name": "b", "data": "x", "weight": 2.0}]},
            "the coordinator writes `federation.weights: {NAME: WEIGHT}`",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_names_it(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(tree, Experiment, source="file.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not re.search("None|True|dict|tuple|instance|literal", str(caught.value)), "words of Python"


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [\n", "name: a\n\tb: c\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read(path, Experiment)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.yaml", Experiment)


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a\n")
    experiment = read(path, Experiment, {"privacy.epsilon": 2.0, "cohort.sites": 5})
    assert (experiment.privacy.epsilon, experiment.cohort.sites) == (2.0, 5)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Experiment(name="a").name = "b"  # type: ignore[misc]


def test_settings_survive_the_wire() -> None:
    experiment = Experiment(name="a", classes={"x": "any"}, seed=3)
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment


def test_a_site_refuses_faces_by_default() -> None:
    assert Site(name="a", data=Path("x")).face_removal == "required"


def test_pain04_there_are_two_limits_of_time_and_each_says_what_it_waits_for() -> None:
    """Other platforms have a hundred, and people set them all to 100 hours."""
    limits = {
        name
        for record in (Federation, Policy, Performance, Site)
        for name in record.model_fields
        if name.endswith("_s")
    }
    limits.remove("answer_every_s")  # when answers leave; nothing is waited for
    assert limits == {"deadline_s", "join_timeout_s"}
    assert all(f"    {name} " in (Federation.__doc__ or "") for name in limits)
