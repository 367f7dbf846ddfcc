"""The command `fedsynth`: gathers each room's commands by the entry-point group `fedsynth.commands`, imports nothing upward.

An entry `ROOM` is that room's group of commands. An entry `ROOM.COMMAND` is one command more in the group of ROOM, brought by
a room above it: `privacy.audit` rehearses a federation, which the room `privacy` may not import.

Errors of ours are printed as one line and set the exit code; others keep their traceback, without local variables, because
those could hold patient data.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version

import click
import typer

from shared.errors import ConfigError, FedsynthError
from shared.journal import cli

INTERRUPTED = 130  # 128 + SIGINT; typer turns Ctrl-C into this code
TOP_LEVEL = ("simulations", "tools")  # their commands stand beside the others' groups


def build(first: str = "") -> typer.Typer:
    """All commands. A room that is not installed (simulations is not in the wheel) is left out.

    first   the first word that was typed: where it names a group, no other room is imported, which takes seconds
    """
    root = typer.Typer(
        name="fedsynth",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
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

    groups: dict[str, typer.Typer] = {}
    root.add_typer(cli.app, name="journal")
    entries = sorted(entry_points(group="fedsynth.commands"), key=lambda e: e.name)
    alone = first == "journal" or first in {e.name for e in entries} - {*TOP_LEVEL}
    for entry in entries:
        if alone and entry.name.partition(".")[0] != first:
            continue
        try:
            commands = entry.load()
        except ModuleNotFoundError as error:
            if error.name == entry.module.partition(".")[0]:
                continue
            raise
        room, _, command = entry.name.partition(".")  # sorted: a room comes before the commands that are added to it
        if command:
            groups[room].add_typer(commands)  # without a name of its own: its command joins the group
        else:
            groups[room] = commands
            root.add_typer(commands, name=None if room in TOP_LEVEL else room)
    return root


def main() -> None:
    """Entry point of the command."""
    # Several processes of ours share the cores; threads that spin while they wait would starve the others. Read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = build(*sys.argv[1:2])(standalone_mode=False)
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
