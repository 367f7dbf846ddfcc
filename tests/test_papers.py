"""What stands beside the code: how to cite, contribute and report, and what runs before a commit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")


def hooks() -> list[dict[str, Any]]:
    read = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [hook | {"repo": repo["repo"]} for repo in read["repos"] for hook in repo["hooks"]]


def test_the_citation_has_what_version_1_2_of_its_format_asks_for_and_the_projects_own_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"] == [{"name": "The fedsynth authors"}]
    assert (cited["version"], cited["license"]) == (PROJECT["project"]["version"], PROJECT["project"]["license"])


def test_what_runs_before_a_commit_needs_no_network_and_is_installed_with_the_project() -> None:
    known = {re.split(r"[<>=]", text)[0] for text in PROJECT["dependency-groups"]["dev"]}
    for hook in hooks():
        assert (hook["repo"], hook["language"]) == ("local", "system")
        command = hook["entry"].split()[0]
        assert command.startswith(".venv/bin/")
        assert command.removeprefix(".venv/bin/").replace("lint-imports", "import-linter") in known


def test_every_test_that_runs_before_a_commit_is_there() -> None:
    named = [word for hook in hooks() for word in hook["entry"].split() if word.endswith(".py")]
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_every_link_and_every_target_of_make_that_a_paper_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    targets = re.findall(r"(?m)^make ([a-z-]+)|`make ([a-z-]+)`", text)
    assert all(re.search(rf"(?m)^{first or second}:", MAKE) for first, second in targets)
