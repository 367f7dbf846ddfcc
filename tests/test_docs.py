"""The documentation: what is made from the program is what the program says now, and all of it builds without a network."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import generate
import pytest
import settings_page
import yaml

import fedsynth
from shared import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FROM_ELSEWHERE = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.fixture(scope="module", autouse=True)
def _no_plugins() -> Iterator[None]:
    """What other tests of this process have loaded is no part of the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.plugins._LOADED", {})
        yield


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


@pytest.mark.parametrize("name", ["api.md", "commands.md", "configuration.md"])
def test_a_page_that_is_made_from_the_program_is_the_present_one(pages: dict[str, str], name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages[name], "run `make docs`, and commit the pages"


def test_every_key_of_every_file_of_settings_is_explained(pages: dict[str, str]) -> None:
    paths = []
    for _, record, _ in settings_page.FILES:
        for path, owner, name in settings_page.keys(record):
            paths.append(path)
            inside = any(settings_page.parts_of(owner.model_fields[name].annotation))
            assert inside or settings_page.said_of(owner).get(name), (
                f"`{path}` has no words in the docstring of its record"
            )
            assert f"| `{name}` |" in pages["configuration.md"]
    for model in settings_page.MODELS.kinds():
        assert set(model.Settings.model_fields) <= settings_page.said_of(model.Settings).keys(), model.name
    assert {"privacy.statistics.loss_bound", "pacs.dimse.called_ae", "policy.answer_every_s", "address"} <= set(paths)


def test_every_name_that_a_key_may_have_is_listed(pages: dict[str, str]) -> None:
    for registry in (settings_page.MODELS, settings_page.ADAPTERS, settings_page.RULES, settings_page.METRICS):
        for name in registry.names():
            assert re.search(rf"^(\| `{re.escape(name)}` \||### {re.escape(name)}$)", pages["configuration.md"], re.M)


def test_every_command_is_there_with_each_of_its_options(pages: dict[str, str]) -> None:
    def look(command: click.Command, words: str) -> None:
        assert f"## {words}\n" in pages["commands.md"]
        section = pages["commands.md"].split(f"## {words}\n")[1].split("\n## ")[0].split("\n### ")[0]
        for param in command.params:
            assert "--help" in param.opts or isinstance(param, click.Argument) or f"`{param.opts[0]}" in section
        for name in command.commands if isinstance(command, click.Group) else ():
            inner = cli.load(name) if words == "fedsynth" and name in cli.COMMANDS else command.commands[name]
            if not inner.hidden:
                look(inner, f"{words} {name}")

    look(cli.build(), "fedsynth")


def test_everything_that_import_fedsynth_gives_is_there(pages: dict[str, str]) -> None:
    for name in fedsynth.__all__:
        assert f"\n## {name}\n" in pages["api.md"]
        thing = getattr(fedsynth, name)
        assert not inspect.isfunction(thing) or all(
            f"    {p}: " in pages["api.md"] for p in inspect.signature(thing).parameters
        )


def test_a_docstring_tells_of_several_keys_in_one_line_and_goes_on_in_the_next() -> None:
    prose, words = settings_page.said(
        "Two.\n\nhost, port   of it, and\n             more\nage  old", ["host", "port", "age"]
    )
    assert (prose, words) == ("Two.", {"host": "of it, and more", "port": "of it, and more", "age": "old"})
    assert settings_page.said("How. `every`: rounds between; the last always.", ["every"])[1] == {
        "every": "rounds between; the last always"
    }


def test_every_page_stands_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[a-z-]+\.md", str(nav))
    assert sorted(named) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_documentation_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        assert not os.environ.get("CI"), "CI must have mkdocs"
        pytest.skip("mkdocs is absent; `make install` brings it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, timeout=120, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").glob("*.html"))
    assert len(built) > len(list(DOCS.glob("*.md")))
    for page in built:
        assert FROM_ELSEWHERE.findall(page.read_text(encoding="utf-8")) == [], page.name


@pytest.mark.parametrize(
    "tag", ['<script src="https://a.b/c.js">', '<link rel=x href="//a.b/c.css">', "<img alt=x src=http://a.b/c.png>"]
)
def test_a_page_that_loads_something_from_elsewhere_would_be_noticed(tag: str) -> None:
    assert FROM_ELSEWHERE.search(tag)
    assert not FROM_ELSEWHERE.search('<a href="https://flower.ai"><img src="report.png">')
