"""README and documentation promise only commands that are there, and figures only from benchmarks that are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from shared import cli

ROOT = Path(__file__).parent.parent
PAPERS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAPERS)
# A line of a block of commands, or a whole command in the text; what comes after # is for people
BLOCKS = "".join(re.findall(r"^```\w*\n(.*?)^```", TEXT, re.M | re.S))
LINES = sorted(set(re.findall(r"^(fedsynth [^#>|\n]+)", BLOCKS, re.M)) | set(re.findall(r"`(fedsynth [^`\n]+)`", TEXT)))


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


def test_every_command_that_a_paper_names_is_there(root: click.Command) -> None:
    assert len(LINES) > 50
    for line in LINES:
        understood(root, line)


@pytest.mark.parametrize("line", ["fedsynth client anonymise", "fedsynth privacy plan --pacients 24"])
def test_a_command_that_is_not_there_is_noticed(root: click.Command, line: str) -> None:
    with pytest.raises(click.UsageError):
        understood(root, line)


def test_every_benchmark_that_a_paper_names_is_there() -> None:
    named = re.findall(r"python -m (simulations\.\S+?)[`\s]", TEXT)
    assert len(named) > 10
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_link_of_a_paper_leads_somewhere(paper: Path) -> None:
    text = paper.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]|src=\"([^\"]+)\"", text) if "://" not in str(link)]
    assert links or paper.name not in ("README.md", "index.md")
    assert [link for pair in links for link in pair if link and not (paper.parent / link).exists()] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_every_file_of_ours_that_a_paper_names_is_there(paper: Path) -> None:
    named = re.findall(r"`((?:shared|privacy|client|server|simulations|configs|examples|tests)/[\w/.-]+\.\w+)`",
                       paper.read_text(encoding="utf-8"))  # fmt: skip
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
