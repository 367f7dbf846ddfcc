"""`fedsynth server`: what a coordinator does with a finished run; `network_cli` adds what it does before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server import finish, network_cli
from server.report import write_report
from shared.errors import ReleaseRefused

app = typer.Typer(help="The coordinator: admit sites, run the federation, release and report.", no_args_is_help=True)
app.add_typer(network_cli.app)

Run = Annotated[Path, typer.Argument(help="Output folder of a finished run, e.g. out/demo.")]


@app.command(epilog="Example: fedsynth server release out/demo")
def release(run: Run) -> None:
    """Draw the release of a finished run into RUN/release. Exit code 3 when it is refused; nothing is written then."""
    if (run / "release").exists():
        raise ReleaseRefused(f"{run / 'release'} exists; a release is never overwritten, move it away first")
    folder = finish.publish(run, finish.summarise(run))
    write_report(run)
    typer.echo(folder)


@app.command(epilog="Example: fedsynth server report out/demo")
def report(run: Run) -> None:
    """Write RUN/summary.json and RUN/report.html again from the run's own record."""
    finish.summarise(run)
    typer.echo(write_report(run))
