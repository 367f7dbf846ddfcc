"""The README promises only commands that are there, and figures only from benchmarks that are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from shared import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# A line of a block of commands, or a whole command in the text; what comes after # is for people
LINES = sorted(set(re.findall(r"^(fedsynth [^#\n]+)", README, re.M)) | set(re.findall(r"`(fedsynth [^`]+)`", README)))


@pytest.fixture(scope="module")
def root() -> click.Command:
    return cli.build()


def understood(root: click.Command, line: str) -> None:
    """Raise click.UsageError when a command or an option of the line is not there."""
    context, words = click.Context(root, info_name="fedsynth"), shlex.split(line)[1:]
    command: click.Command = root
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        _, found, _ = command.resolve_command(context, [name])
        assert found is not None
        command, context = found, click.Context(found, parent=context, info_name=name)
    command.make_parser(context).parse_args(words)


def test_every_command_of_the_readme_is_there(root: click.Command) -> None:
    assert len(LINES) > 20
    for line in LINES:
        understood(root, line)


@pytest.mark.parametrize("line", ["fedsynth client anonymise", "fedsynth privacy plan --pacients 24"])
def test_a_command_that_is_not_there_is_noticed(root: click.Command, line: str) -> None:
    with pytest.raises(click.UsageError):
        understood(root, line)


def test_every_benchmark_of_the_readme_is_there() -> None:
    named = re.findall(r"python -m (simulations\.\S+?)[`\s]", README)
    assert named
    assert all(importlib.util.find_spec(name) for name in named)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert all((Path(__file__).parent.parent / link).exists() for link in links)
