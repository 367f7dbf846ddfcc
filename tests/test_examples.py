"""What lies in examples/ is what a newcomer copies: every file is read, and the notebook runs from its first cell to its last."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from typer.testing import CliRunner

from server.superlink.federation import FederationFile
from shared import cli, plugins
from shared.config.experiment import Experiment
from shared.config.loading import read, validate
from shared.config.policy import Policy
from shared.config.site import Site
from shared.plugins import NAME
from simulations.cli import app

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SITE = (EXAMPLES / "site.yaml").read_text(encoding="utf-8")
NOTEBOOK = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
RUN = """
import json, sys
import matplotlib
matplotlib.use("Agg")
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
print("done", len(names["images"]), len(names["release"].images))
"""


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_LOADED", {})


def test_every_example_is_read_by_a_test() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        *("my_model.py", "my_adapter.py", "my_metric.py", "my_aggregation.py"),  # tests/contracts as well
        *("experiment.yaml", "federation.yaml", "site.yaml", "first_steps.ipynb"),
    }


def test_the_site_file_holds_every_key_with_the_value_that_it_has_anyway() -> None:
    site = read(EXAMPLES / "site.yaml", Site)
    assert site == Site(name="north", data=Path("/data"))
    tree = yaml.safe_load(SITE)
    switched_off = set(re.findall(r"^#(\w+):", SITE, re.MULTILINE))
    assert set(tree) | switched_off == set(Site.model_fields)
    assert set(tree["policy"]) == set(Policy.model_fields)


def test_what_is_switched_off_in_the_site_file_can_be_switched_on() -> None:
    tree = yaml.safe_load(re.sub(r"^#(?=\w| {2,4}\w+:)", "", SITE, flags=re.MULTILINE))
    assert set(tree) == set(Site.model_fields)
    del tree["data"]  # `pacs` stands instead of it
    site = validate(tree, Site, "site.yaml")
    assert site.pacs is not None and site.pacs.dicomweb is not None and site.delta == 1e-5


def test_every_key_of_the_site_file_is_explained() -> None:
    explained = False
    for line in SITE.splitlines():
        if re.match(r"# \S", line.lstrip()):
            explained = True
        elif not line.strip():
            explained = False
        elif re.match(r"#?\w+:", line):
            assert explained, line


def test_the_coordinators_file_holds_every_key() -> None:
    federation = read(EXAMPLES / "federation.yaml", FederationFile)
    assert (federation.host, federation.port) == ("fed.example.org", 9443)
    assert federation.listen == FederationFile(name="t", address="h:1").listen
    assert set(yaml.safe_load((EXAMPLES / "federation.yaml").read_text())) == set(FederationFile.model_fields)


def test_the_experiment_uses_the_four_files_and_can_be_planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # paths are relative to the experiment's file
    path = EXAMPLES / "experiment.yaml"
    done = CliRunner().invoke(app, ["simulate", str(path), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.output)
    assert told["plan"]["epsilon"] <= 8 and told["plan"]["nsr"] < Experiment(name="t").privacy.max_nsr
    assert told["settings"]["release"]["images_per_class"] == 0, "the header says that nothing is published"
    names = {NAME.findall(file.read_text(encoding="utf-8"))[-1] for file in EXAMPLES.glob("my_*.py")}
    assert {plugin.path.name for plugin in plugins.loaded()} == {file.name for file in EXAMPLES.glob("my_*.py")}
    assert len(names) == 4 and all(name in path.read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize("file", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_command_in_a_header_is_there(file: str) -> None:
    lines = re.findall(r"^# +fedsynth (.+?)(?:  .*)?$", (EXAMPLES / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in lines:
        words, context, command = shlex.split(line), click.Context(cli.build()), cli.build()
        while isinstance(command, click.Group):
            name, found, words = command.resolve_command(context, words)
            assert found is not None
            context, command = click.Context(found, parent=context, info_name=name), found
        command.make_parser(context).parse_args(words)
        assert all((ROOT / word).exists() for word in shlex.split(line) if word.startswith("examples/"))


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_kept_without_what_a_run_left_in_it() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    source = "\n".join("".join(cell["source"]) for cell in cells("code"))
    assert set(re.findall(r"^(?:import|from) (\S+)", source, re.MULTILINE)) == {"fedsynth", "matplotlib.pyplot"}
    assert len(cells("markdown")) >= len(cells("code")) - 1


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    command = [sys.executable, "-c", RUN, "first_steps.ipynb"]
    done = subprocess.run(command, cwd=tmp_path / "examples", capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done 8 12\n")
    assert "a patient of south has spent epsilon" in done.stdout and "whose key we had: True" in done.stdout
    assert (tmp_path / "out" / "first-steps" / "report.html").is_file()
