"""The command `fedsynth`: gathers each room's commands by the entry-point group `fedsynth.commands`, imports nothing upward.

An entry `ROOM` is that room's group of commands. An entry `ROOM.COMMAND` is one command more in the group of ROOM, brought by
a room above it: `privacy.audit` rehearses a federation, which the room `privacy` may not import.

A room is imported when one of its commands is called, and a command imports what it needs when it runs, after it has read its
settings. So help and a wrong setting are answered at once, although training libraries take seconds to load.

Errors of ours are printed as one line and set the exit code; others keep their traceback, without local variables, because
those could hold patient data.
"""

from __future__ import annotations

import inspect
import os
import sys
from importlib.metadata import EntryPoint, distribution, version
from importlib.util import find_spec
from typing import Any, get_type_hints

import click
import typer
from typer.core import TyperArgument, TyperGroup
from typer.models import ArgumentInfo

from shared.errors import ConfigError, FedsynthError

INTERRUPTED = 130  # 128 + SIGINT; typer turns Ctrl-C into this code
GROUP = "fedsynth.commands"
OWN = EntryPoint("journal", "shared.journal.cli:app", GROUP)  # this room's, which both sides share
TOP_LEVEL = ("simulations", "tools")  # their commands stand beside the others' groups

# What `fedsynth --help` lists: name, the entry that brings it, the help. tests/shared/test_cli.py compares it with the commands
# themselves, and prints the lines to write here
COMMANDS = {
    "journal": ("journal", "The journals of both sides: what was asked, decided, refused and sent."),
    "client": ("client", "The hospital: its own data, and its part in a federation."),
    "privacy": ("privacy", "What one patient can reveal: plan a run, read a ledger. Every epsilon is per patient."),
    "server": ("server", "The coordinator: admit sites, run the federation, release and report."),
    "simulate": (
        "simulations",
        "Run a federation on this machine: hospitals, de-identification, private training, evaluation, release, report.",
    ),
    "pretrain": ("simulations", "Train a public base on digital phantoms. Resumable."),
    "evaluate": (
        "tools",
        "Measure how near synthetic images are to real ones: every figure beside what real images score, with an interval.",
    ),
    "verify": (
        "tools",
        "Check a release that you received: not a byte changed, no file missing, none added. Exit code 1 otherwise.",
    ),
    "detect": (
        "tools",
        "Look for the invisible mark of a release in images: in each one, and in all of one size together.",
    ),
}


class Rooms(TyperGroup):
    """Each command stands here by its name and its help; its room is imported when it is called."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def build() -> click.Group:
    """All commands. A room that is not installed (simulations is not in the wheel) is left out."""
    root = typer.Typer(
        name="fedsynth",
        cls=Rooms,
        no_args_is_help=True,
        add_completion=False,
        suggest_commands=False,  # click suggests by itself
        help="Hospitals train one diffusion model together, with differential privacy per patient.",
        epilog="Start here: fedsynth simulate configs/demo.yaml",
    )

    @root.callback(invoke_without_command=True)
    def about(show_version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True)) -> None:
        if show_version:
            typer.echo(f"fedsynth {version('fedsynth')}")
            raise typer.Exit

    @root.command("audit", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def renamed() -> None:
        raise ConfigError(
            "`fedsynth audit` is called `fedsynth journal` now; the audit of privacy is `fedsynth privacy audit`"
        )

    group = typer.main.get_group(root)
    there = {entry.name for entry in entries() if _installed(entry)}
    for name, (entry, text) in COMMANDS.items():
        if entry in there:
            group.add_command(click.Command(name, short_help=text))
    return group


def entries() -> list[EntryPoint]:
    """What brings the commands: our own entry points alone, so that no other package adds a command."""
    return [OWN, *distribution("fedsynth").entry_points.select(group=GROUP)]


def load(name: str) -> click.Command:
    """Import the room of a command of `COMMANDS`, and what rooms above it add to its group."""
    brought = COMMANDS[name][0]
    found = {entry.name: entry for entry in entries()}
    group = group_of(found.pop(brought))
    for entry in found.values():
        if entry.name.startswith(f"{brought}.") and _installed(entry):
            group.commands.update(group_of(entry).commands)
    return group.commands[name] if brought in TOP_LEVEL else group


def group_of(entry: EntryPoint) -> click.Group:
    app: typer.Typer = entry.load()
    app.suggest_commands = False  # click suggests by itself
    group = typer.main.get_group(app)
    _tell_whole(group)
    return group


def _tell_whole(group: click.Group) -> None:
    """List each command with its whole first paragraph; click would cut it at the end of the line."""
    for command in group.commands.values():
        command.short_help = first_paragraph(command)
        if isinstance(command, click.Group):
            _tell_whole(command)
        elif command.callback is not None:
            _tell_arguments(command, get_type_hints(inspect.unwrap(command.callback), include_extras=True))


def _tell_arguments(command: click.Command, hints: dict[str, Any]) -> None:
    """Give each argument its help once more: click 8.5 forgets what typer 0.20 has told it."""
    for argument in command.params:
        if isinstance(argument, TyperArgument):
            about = getattr(hints[argument.name or ""], "__metadata__", ())
            argument.help = next((info.help for info in about if isinstance(info, ArgumentInfo)), None)
    command.format_arguments = lambda ctx, formatter: None  # type: ignore[method-assign]  # typer lists them, click would again


def first_paragraph(command: click.Command) -> str:
    return (command.help or "").partition("\n\n")[0]


def _installed(entry: EntryPoint) -> bool:
    return find_spec(entry.module.partition(".")[0]) is not None


def main() -> None:
    """Entry point of the command."""
    # Several processes of ours share the cores; threads that spin while they wait would starve the others. Read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(
        "PYDANTIC_DISABLE_PLUGINS", "__all__"
    )  # no other package looks at settings; to search for one takes time
    typer.core.HAS_RICH = False  # plain help: to load rich takes as long as all the rest
    try:
        code = build().main(prog_name="fedsynth", standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except FedsynthError as error:
        typer.echo(f"fedsynth: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        typer.echo("fedsynth: interrupted; run the same command again to go on", err=True)
        sys.exit(INTERRUPTED)
