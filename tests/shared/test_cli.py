"""One command, every room, errors in one line; help and a wrong setting before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shared import cli
from shared.journal import journal

FEDSYNTH = str(Path(sys.executable).parent / "fedsynth")
HEAVY = (
    "torch", "flwr", "pydicom", "diffusers", "opacus", "scipy", "PIL", "numpy", "matplotlib", "dp_accounting", "rich",
    "cryptography",
)  # fmt: skip
LOADED = f"""
import sys
from shared.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("loaded", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""
# Every command that reads a file of settings, with BAD where that file stands
SETTINGS = [
    "simulate BAD",
    "pretrain BAD",
    "privacy audit BAD",
    "client ingest BAD --work work",
    "client pacs BAD",
    "client request BAD --work work",
    "client join BAD kit.json --work work",
    "client approve BAD --work work",
    "client serve BAD --work work",
    "client app BAD --work work --door door",
    "client doctor BAD --work work",
    "server provision BAD",
    "server approve BAD request.json",
    "server revoke BAD north",
    "server sites BAD",
    "server accept-ledger BAD north --why x",
    "server doctor BAD",
    "server serve BAD",
    "server run BAD experiment.yaml",
    "server run federation.yaml BAD",
    "server status BAD",
    "server watch BAD",
]


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    """Every command by its words, groups too."""
    yield before
    for name in group.commands:
        command = cli.load(name) if group.name == "fedsynth" and name in cli.COMMANDS else group.commands[name]
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        elif not command.hidden:
            yield (*before, name)


def fedsynth(*words: str, folder: Path | None = None) -> tuple[int, str, str, str]:
    """Exit code, what was said on both streams, and what was loaded that is heavy."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, timeout=60, check=False, cwd=folder
    )
    said, _, loaded = done.stdout.rpartition("loaded")
    return done.returncode, said, done.stderr, loaded.strip()


def test_the_list_of_commands_is_what_the_rooms_bring() -> None:
    found = {}
    for entry in cli.entries():
        if "." in entry.name:
            continue  # joins the group of another
        group = cli.group_of(entry)
        mine = group.commands if entry.name in cli.TOP_LEVEL else {entry.name: group}
        found |= {name: (entry.name, cli.first_paragraph(command)) for name, command in mine.items()}
    lines = "\n".join(f'    "{name}": ("{entry}", "{text}"),' for name, (entry, text) in found.items())
    assert found == cli.COMMANDS, f"write into shared/cli.py:\n{lines}"


@pytest.mark.parametrize("words", list(commands(cli.build())), ids=lambda words: " ".join(words) or "fedsynth")
def test_every_command_has_help_with_an_example_and_loads_nothing_for_it(words: tuple[str, ...]) -> None:
    code, said, errors, loaded = fedsynth(*words, "--help")
    assert (code, loaded) == (0, ""), errors
    assert "Commands:" in said or "Example: fedsynth" in said


@pytest.mark.parametrize("line", SETTINGS)
def test_a_wrong_setting_is_said_before_anything_heavy_is_loaded(line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: brains\nno_such_key: 1\n")
    (tmp_path / "federation.yaml").write_text("name: brains\naddress: fed.example.org:9443\n")
    code, _, errors, loaded = fedsynth(*line.replace("BAD", "bad.yaml").split(), folder=tmp_path)
    assert (code, loaded) == (2, "")
    assert errors.startswith("fedsynth: bad.yaml: ") and len(errors.splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_every_command_that_names_a_file_of_settings_is_tried_with_a_wrong_one() -> None:
    named = set()
    for words in commands(cli.build()):
        command: click.Command = cli.build()
        for word in words:
            assert isinstance(command, click.Group)
            _, found, _ = command.resolve_command(click.Context(command), [word])
            assert found is not None
            command = found
        if any((p.metavar or p.name or "").endswith((".yaml", "config", "WHERE")) for p in command.params):
            named.add(" ".join(words))
    assert named == {line.partition(" BAD")[0].removesuffix(" federation.yaml") for line in SETTINGS}


def test_the_help_explains_every_argument() -> None:
    _, said, _, _ = fedsynth("client", "join", "--help")
    assert said.count("the hospital's own settings") == said.count("the file that the coordinator sent") == 1


def test_a_slip_in_a_command_is_answered_with_the_near_one_once() -> None:
    code, _, errors, _ = fedsynth("simulat")
    assert code == 2
    assert errors.count("Did you mean 'simulate'?") == 1


def test_an_error_of_ours_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [FEDSYNTH, "journal", "show", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("fedsynth: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_journal_is_checked_without_loading_what_trains(tmp_path: Path) -> None:
    journal.write(tmp_path, "run_stopped", run="demo")
    code, _, errors, loaded = fedsynth("journal", "verify", str(tmp_path))
    assert (code, loaded) == (0, "cryptography"), errors
