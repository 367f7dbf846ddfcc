"""`import fedsynth`: what it promises by name, and what of it needs no federation. A whole way through: tests/test_examples.py."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fedsynth
from server.release import seal
from shared import errors, plugins
from shared.crypto import bundle, signing
from shared.models.base import GenerativeModel

ROOT = Path(fedsynth.__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TYPED = ("fedsynth", "shared", "privacy", "client", "server")
FUNCTIONS = [name for name in fedsynth.__all__ if inspect.isfunction(getattr(fedsynth, name))]


def test_all_names_exactly_what_is_public_in_order() -> None:
    own = {
        name
        for name, value in vars(fedsynth).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == "fedsynth"
    }
    records = {"Experiment", "Site", "FedsynthError"}  # from other rooms, for `except` and for annotations
    assert set(fedsynth.__all__) == own | records
    assert fedsynth.__all__ == sorted(fedsynth.__all__)


def test_importing_it_loads_no_library_of_deep_learning() -> None:
    look = "import fedsynth, sys; print(*{'torch', 'numpy', 'flwr', 'pydicom', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", fedsynth.__all__)
def test_every_name_is_explained_in_the_help(name: str) -> None:
    text = pydoc.render_doc(fedsynth, renderer=pydoc.plaintext)
    assert re.search(rf"\b(class|def|)\s*{name}\b", text)
    assert len(inspect.getdoc(getattr(fedsynth, name)) or "") > 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_names_its_errors(name: str) -> None:
    function = getattr(fedsynth, name)
    said = set(re.findall(r"\b[A-Z]\w+(?:Error|Refused)\b", inspect.getdoc(function) or ""))
    assert said and all(issubclass(getattr(errors, error), fedsynth.FedsynthError) for error in said)
    assert "Raises" in inspect.getdoc(function)
    assert all(each.annotation is not each.empty for each in inspect.signature(function).parameters.values())
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_the_records_have_types_that_can_be_looked_up() -> None:
    names = {"np": np, "Verified": seal.Verified}
    assert get_type_hints(fedsynth.Release, {**vars(fedsynth), **names})["images"] is np.ndarray
    assert get_type_hints(fedsynth.Run)["folder"] is Path


# ---- what is installed ----------------------------------------------------------------------------------------------


def test_it_is_typed_for_whoever_installs_it_and_never_travels_to_a_hospital() -> None:
    assert all((ROOT / room / "py.typed").is_file() for room in TYPED)
    assert {*TYPED, "weights"} == set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    sent = {name.partition("/")[0] for name in bundle.contents(bundle.build())}
    assert sent == {*bundle.ROOMS, "pyproject.toml"}
    assert {pattern.partition("/")[0] for pattern in PYPROJECT["tool"]["flwr"]["app"]["fab-include"]} == {
        *bundle.ROOMS,
        "README.md",
    }


def test_the_wheel_holds_it_and_the_command_of_the_same_name(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is absent; install the group `build`")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {"fedsynth/__init__.py", *(f"{room}/py.typed" for room in TYPED)} <= held
    assert not any(name.startswith(("tests/", "simulations/", "examples/")) for name in held)
    assert PYPROJECT["project"]["scripts"] == {"fedsynth": "shared.cli:main"}


def test_without_the_repository_a_simulation_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simulations.run", None)
    with pytest.raises(errors.ConfigError, match="not part of the wheel; clone the repository"):
        fedsynth.simulate(fedsynth.Experiment(name="t"), tmp_path)


# ---- what needs no federation ---------------------------------------------------------------------------------------


def test_settings_are_read_changed_planned_and_refused_by_the_name_of_their_key(tmp_path: Path) -> None:
    demo = ROOT / "configs" / "demo.yaml"
    four, eight = (fedsynth.plan(fedsynth.read_experiment(demo, {"privacy.epsilon": e})) for e in (4.0, 8.0))
    assert four.epsilon is not None and four.epsilon <= 4 and four.noise_multiplier > eight.noise_multiplier
    with pytest.raises(fedsynth.FedsynthError, match=r"unknown key `privacy\.epsilom`; did you mean `epsilon`\?"):
        fedsynth.read_experiment(demo, {"privacy.epsilom": 4.0})
    with pytest.raises(errors.PrivacyError, match="max_nsr"):
        fedsynth.plan(fedsynth.read_experiment(demo, {"privacy.epsilon": 0.01}))
    with pytest.raises(errors.ConfigError, match="cannot read"):
        fedsynth.read_site(tmp_path / "absent.yaml")


def test_an_experiment_may_name_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_LOADED", {})
    assert fedsynth.plan(fedsynth.read_experiment(ROOT / "examples" / "experiment.yaml")).trainable_parameters > 0


class Labels(torch.nn.Module):
    """Draws the number of the class."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def sample(self, label_N: torch.Tensor, rng: torch.Generator, *_: object) -> torch.Tensor:
        return (label_N / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)


def test_images_are_drawn_class_after_class_as_they_were_asked_for() -> None:
    model: Any = Labels()
    images = fedsynth.draw(model, {"c": 2, "a": 1, "b": 0})
    assert images.shape == (3, 16, 16) and images.dtype == np.uint8 and images[:, 0, 0].tolist() == [2, 2, 0]
    with pytest.raises(errors.DataError, match="knows no class `d`; it draws a, b, c"):
        fedsynth.draw(model, {"d": 1})
    with pytest.raises(errors.ConfigError, match="draw: `sampler_steps` is 1"):
        fedsynth.draw(model, {"a": 1}, steps=1)


def test_a_shipped_base_is_loaded_by_name_and_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    model = fedsynth.load_model("phantoms-64")
    assert isinstance(model, GenerativeModel) and "healthy" in model.classes
    with pytest.raises(errors.WeightsError, match="no base is called `phantoms`"):
        fedsynth.load_model("phantoms")
    for ask in (lambda: fedsynth.load_model(fedsynth.Run(tmp_path)), lambda: fedsynth.Run(tmp_path).summary):
        with pytest.raises(errors.DataError, match="it is not the folder of"):
            ask()
    (tmp_path / "experiment.json").write_text(fedsynth.Experiment(name="t").model_dump_json())
    with pytest.raises(errors.DataError, match="holds no evaluated round"):
        fedsynth.load_model(fedsynth.Run(tmp_path))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A signed release of two images; its key lies beside it."""
    folder, key = tmp_path / "release", Ed25519PrivateKey.generate()
    folder.mkdir()
    np.savez(folder / "images.npz", x_NHW=np.zeros((2, 16, 16), np.uint8), label_N=[0, 1], classes=["a", "b"])
    seal.close(folder, "t", key)
    for name, owner in (("key", key), ("stranger", Ed25519PrivateKey.generate())):
        (tmp_path / f"{name}.pem").write_text(signing.public_pem(owner.public_key()))
    return folder


def test_a_release_is_read_only_as_it_was_signed(release: Path, tmp_path: Path) -> None:
    found = fedsynth.read_release(release, tmp_path / "key.pem")
    assert found.images.shape == (2, 16, 16) and found.labels.tolist() == [0, 1] and found.classes == ("a", "b")
    assert found.verified.known and not fedsynth.read_release(release).verified.known
    with pytest.raises(errors.SignatureError):
        fedsynth.read_release(release, tmp_path / "stranger.pem")
    (release / "more.png").write_bytes(b"x")
    with pytest.raises(errors.SignatureError, match="which was not signed"):
        fedsynth.read_release(release, tmp_path / "key.pem")
    with pytest.raises(errors.DataError, match="is not a release"):
        fedsynth.read_release(tmp_path)
