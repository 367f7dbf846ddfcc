"""`fedsynth server`: what a coordinator does with a finished run; `network_cli` adds what it does before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server import finish, network_cli
from server.report import write_report
from server.tools import progress
from shared.errors import ConfigError, ReleaseRefused

app = typer.Typer(help="The coordinator: admit sites, run the federation, release and report.", no_args_is_help=True)
app.add_typer(network_cli.app)

Run = Annotated[Path, typer.Argument(help="Output folder of a finished run, e.g. out/demo.")]


@app.command(epilog="Example: fedsynth server release out/demo")
def release(
    run: Run,
    force: Annotated[bool, typer.Option("--force", help="publish although a check failed; needs --reason")] = False,
    reason: Annotated[str, typer.Option(help="why; it is printed in gate.json and on both cards")] = "",
) -> None:
    """Draw the release of a finished run, take it through the gate, and write it, signed, into RUN/release.

    Interrupted, the same command goes on. Exit code 3 when a check fails: RUN/gate.json and the report say which, and nothing
    is published. The check of the formal privacy cannot be overruled.
    """
    if (run / "release").exists():
        raise ReleaseRefused(f"{run / 'release'} exists; a release is never overwritten, move it away first")
    if force != bool(reason.strip()):
        raise ConfigError(
            "--force and --reason TEXT go together: who overrules the gate says why, and the cards repeat it"
        )
    try:
        with progress("drawing", "checking and writing") as tell:
            folder = finish.publish(run, finish.summarise(run), tell, force=reason.strip() or None)
    finally:
        if (run / "summary.json").exists():
            write_report(run)
    typer.echo(folder)


@app.command(epilog="Example: fedsynth server report out/demo")
def report(run: Run) -> None:
    """Write RUN/summary.json and RUN/report.html again from the run's own record."""
    finish.summarise(run)
    typer.echo(write_report(run))
