"""A file that a user names joins the rooms of a simulation; a room gives what is asked for and imports no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from server.aggregation.base import RULES
from server.metrics.base import METRICS
from server.superlink.run import run
from shared import plugins
from shared.config.experiment import Experiment
from shared.errors import ConfigError
from shared.journal.journal import configuration
from simulations.cli import app
from simulations.run import simulate

EXAMPLES = Path(__file__).parents[2] / "examples"
RULE = """
from server.aggregation.base import Tensors, Together, Update

class First(Together):
    name = "{name}"

    def combine(self, updates: list[Update]) -> Tensors:
        return updates[0].tensors
"""


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    yield


def write(folder: Path, **changes: object) -> Path:
    """An experiment beside copies of the examples."""
    for file in EXAMPLES.glob("my_*.py"):
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine"} | changes))
    return path


def test_the_examples_join_by_the_experiment_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "evaluation": {"metrics": ["FD-efflite0", "brightness gap"], "select_by": "brightness gap"},
        "federation": {"aggregation": {"rule": "geometric-median", "steps": 30}, "assumed_bad_sites": 0},
    }
    without = CliRunner().invoke(app, ["simulate", str(write(tmp_path, **changes)), "--dry-run"])
    assert isinstance(without.exception, ConfigError)
    assert "`evaluation.metrics` names `brightness gap`" in str(without.exception)
    monkeypatch.chdir(tmp_path.parent)  # paths are relative to the experiment's file
    path = write(tmp_path, **changes, plugins=["my_metric.py", "my_aggregation.py"])
    done = CliRunner().invoke(app, ["simulate", str(path), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert METRICS["brightness gap"].described().digits == 1
    assert METRICS.plugged() == ["brightness gap"]
    assert "geometric-median" in RULES.names()
    assert list(plugins.digests(plugins.loaded())) == ["plug-in my_metric.py", "plug-in my_aggregation.py"]


def test_an_experiment_that_travels_never_holds_plug_ins_and_is_the_same_experiment() -> None:
    named, plain = Experiment(name="t", plugins=("mine.py",)), Experiment(name="t")
    assert named.model_dump_json() == plain.model_dump_json()
    assert configuration(named) == configuration(plain)


def test_who_runs_a_real_federation_refuses_plug_ins_and_so_does_a_simulation_that_has_not_loaded_them(
    tmp_path: Path,
) -> None:
    experiment = Experiment(name="t", plugins=("mine.py",))
    with pytest.raises(ConfigError, match="plug-ins are for `fedsynth simulate`"):
        run(tmp_path, experiment, None, Console())
    with pytest.raises(ConfigError, match="plug-ins are for `fedsynth simulate`"):
        simulate(experiment, tmp_path, Console())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "cannot read the plug-in .*absent.py: No such file"),
        ("1 / 0", "the plug-in mine.py cannot be loaded: ZeroDivisionError: division by zero"),
        ("def", "the plug-in mine.py cannot be loaded: SyntaxError"),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_one_sentence(tmp_path: Path, source: str | None, words: str) -> None:
    before = {name for name in sys.modules if name.startswith("fedsynth_plugin_mine")}
    path = tmp_path / ("absent.py" if source is None else "mine.py")
    if source is not None:
        path.write_text(source)
    with pytest.raises(ConfigError, match=words):
        plugins.load(path)
    assert not plugins.loaded()
    assert {name for name in sys.modules if name.startswith("fedsynth_plugin_mine")} == before


@pytest.mark.parametrize("named", ["mine.py", [3], {"a": "b"}])
def test_plug_ins_that_are_no_list_of_files_are_refused_and_nothing_is_run(tmp_path: Path, named: object) -> None:
    path = write(tmp_path, plugins=named)
    with pytest.raises(ConfigError, match="`plugins"):
        plugins.read(path)
    assert not plugins.loaded()


def test_a_plug_in_runs_once_and_a_changed_file_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RULE.format(name="first"))
    before = plugins.load(path)
    assert plugins.load(path) is before
    path.write_text(RULE.format(name="very-first"))
    assert plugins.load(path) is not before
    assert RULES.plugged() == ["very-first"]
    assert not list(tmp_path.glob("__pycache__"))


def test_a_plug_in_cannot_take_the_name_of_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RULE.format(name="mean"))
    plugins.load(tmp_path / "mine.py")
    with pytest.raises(ConfigError, match=r"a plug-in defines `mean`, which server\.aggregation has"):
        RULES["mean"]


def test_two_plug_ins_cannot_have_one_name(tmp_path: Path) -> None:
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text(RULE.format(name="first"))
        plugins.load(tmp_path / file)
    with pytest.raises(ConfigError, match="two plug-ins define `first`"):
        RULES["first"]


def test_what_a_simulation_starts_has_its_plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plugins.environment() == {}
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text(RULE.format(name=file[0]))
        plugins.load(tmp_path / file)
    given = plugins.environment()
    monkeypatch.setattr(plugins, "_LOADED", {})
    monkeypatch.setenv(plugins.VARIABLE, given[plugins.VARIABLE])
    plugins.load_from_environment()
    assert RULES.plugged() == ["a", "b"]


def test_only_the_file_of_the_kind_that_is_asked_for_is_imported() -> None:
    code = (
        "import sys\nfrom server.aggregation.base import RULES\nRULES['mean']\n"
        "from server.metrics.base import METRICS\nMETRICS['recall']\n"
        "print(sorted(m for m in sys.modules if m.startswith(('server.aggregation.', 'server.metrics.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(
        ["server.aggregation.base", "server.aggregation.mean"]
        + [f"server.metrics.{name}" for name in ("base", "features", "manifold", "recall")]
    )
