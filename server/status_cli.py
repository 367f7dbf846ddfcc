"""`fedsynth server status | watch`: how a federation stands, once or live.

A command imports what it needs when it runs: help and a wrong key are answered at once.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.wording import count

if TYPE_CHECKING:
    from server.status import SiteStatus, Status

app = typer.Typer()

Where = Annotated[
    Path, typer.Argument(metavar="WHERE", help="FEDERATION.yaml, or the folder of a run on this machine, e.g. out/demo")
]


@app.command("status", epilog="Example: fedsynth server status brains.yaml --json")
def status_command(
    where: Where, as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False
) -> None:
    """Server, certificates, sites and when they were last seen, the run, its round and epsilon; from the folder alone.

    Exit code 0: in order; 1: something must be looked at now (no server, an expired certificate, a failed run, a broken journal).
    """
    found = _of(where)[0]()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), allow_nan=False))
    else:
        _print(found)
    if found.alarms:
        raise typer.Exit(1)


@app.command("watch", epilog="Example: fedsynth server watch brains.yaml")
def watch_command(
    where: Where,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8140,
    listen: Annotated[
        str, typer.Option(help="in a container 0.0.0.0; requests must still name this machine")
    ] = "127.0.0.1",
) -> None:
    """Serve a page with live progress and samples, on this machine alone, until Ctrl-C. It changes nothing.

    From another machine: ssh -L 8140:127.0.0.1:8140 SERVER, then the address that is printed here.
    """
    look, runs = _of(where)
    look()
    from server.reports.watch import make_server

    token = secrets.token_urlsafe(16)
    with make_server(look, runs, token, port, listen) as server:
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/?token={token}")
        typer.echo("Ctrl-C ends.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def _of(where: Path) -> tuple[Callable[[], Status], Path]:
    """How to look, and the folder of the runs."""
    if where.is_dir():
        from server import status

        out = where.resolve()
        return lambda: status.of_run(out), out.parent
    from server.superlink.federation import FederationFile
    from shared.config.loading import read

    settings = read(where, FederationFile)
    from server import status
    from server.superlink import provision

    folder = provision.folder_of(where, settings)
    return lambda: status.of_federation(settings, folder), folder / "runs"


def _print(found: Status) -> None:
    from server import status
    from shared.crypto import keys

    now = keys.now()
    if found.address:
        typer.echo(f"{found.name} at {found.address}, {'serving' if found.serving else 'not serving'}")
        ends = ", ".join(f"{what} {count(days, 'day')}" for what, days in found.certificates.items())
        typer.echo(f"certificates   {ends}")
    if found.journal:
        typer.echo(f"journal        {found.journal['state']}, {count(found.journal['records'], 'record')}")
    if (run := found.run) is not None:
        stage = f", {run.stage}" if run.stage else f": {run.reason}" if run.reason else ""
        heard = f"last word {status.ago(run.told, now)}" if run.told else "nothing heard yet"
        typer.echo(f"run            {run.name}, {run.state}{stage}; {heard}")
        there = f"{len(run.contributed)} of {run.sites} contributed"
        typer.echo(
            f"round          {run.round} of {run.rounds}, {there}{f', attempt {run.attempt}' * (run.attempt > 1)}"
        )
        if run.release:
            typer.echo(f"release        {run.release}")
    if found.sites:
        typer.echo(
            f"\n{'site':20} {'state':10} {'last seen':12} {'approved':>9} {'round':>6} {'epsilon':>8}  last word"
        )
    for site in found.sites:
        typer.echo(_line(site, now_seen=status.ago(site.seen, now) if found.address else ""))
    for text in found.warnings:
        typer.echo(f"warning: {text}", err=True)
    for text in found.alarms:
        typer.echo(f"alarm: {text}", err=True)


def _line(site: SiteStatus, now_seen: str) -> str:
    days = "" if site.days is None or site.state == "revoked" else count(site.days, "day")
    spent = "" if site.round is None else "none" if site.epsilon is None else f"{site.epsilon:.3f}"
    last = "".join(c if c.isprintable() else "?" for c in site.last)  # a reason came from another machine
    return (
        f"{site.name:20} {site.state:10} {now_seen:12} {days:>9} {'' if site.round is None else site.round:>6} {spent:>8}  {last}"
    ).rstrip()
