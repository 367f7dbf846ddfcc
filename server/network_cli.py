"""`fedsynth server provision | approve | revoke | sites | accept-ledger | doctor | serve | run`: a federation over a network.

A command imports what it needs when it runs, after it has read the settings: help and a wrong key are answered at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import ConfigError, FederationError
from shared.wording import count

if TYPE_CHECKING:
    from server.superlink.federation import FederationFile

app = typer.Typer()

File = Annotated[Path, typer.Argument(metavar="FEDERATION.yaml", help="name and address of the federation")]


@app.command("provision", epilog="Example: fedsynth server provision brains.yaml")
def provision_command(federation: File) -> None:
    """Make the certificate authority and the server's certificate, in a folder beside the file. Run again to renew.

    FEDERATION.yaml holds two lines:  name: brains  and  address: fed.example.org:9443
    """
    settings = _read(federation)
    from server.superlink import provision

    folder = federation.resolve().parent / settings.name
    for line in provision.provision(settings, folder):
        typer.echo(f"made  {line}")
    for line in provision.warnings(folder):
        typer.echo(f"warning: {line}", err=True)
    typer.echo(f"read to every hospital by telephone:  {_authority(folder)}")


@app.command("approve", epilog="Example: fedsynth server approve brains.yaml north.request.json")
def approve_command(
    federation: File,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="the file that the site sent")],
    fingerprint: Annotated[
        str | None, typer.Option(help="the digits that the site read out; asked for when absent")
    ] = None,
) -> None:
    """Admit a site and write its kit. Ring the site up: its 40 digits must be the ones shown here."""
    settings, folder = _open(federation)
    from server.superlink import provision
    from shared.crypto import keys

    asked = keys.read_paper(request, keys.Request)
    expected = keys.node_fingerprint(keys.check_request(asked))
    typer.echo(f"{asked.site} asks to join with the key  {expected}")
    compare(fingerprint, expected, f"the key that {asked.site} reads out")
    kit = provision.approve(settings, folder, asked)
    typer.echo(f"approved until {kit.until:%Y-%m-%d}; send  {folder / 'kits' / f'{asked.site}.kit.json'}")
    typer.echo(f"read to the site by telephone:  {_authority(folder)}")


@app.command("revoke", epilog="Example: fedsynth server revoke brains.yaml north")
def revoke_command(federation: File, site: Annotated[str, typer.Argument(help="name of the site")]) -> None:
    """Shut a site out, for good with this key; a running server does so within seconds."""
    _, folder = _open(federation)
    from server.superlink import provision

    member = provision.revoke(folder, site)
    typer.echo(f"revoked {member.site}, key {member.fingerprint}")


@app.command("sites", epilog="Example: fedsynth server sites brains.yaml --json")
def sites_command(
    federation: File, as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False
) -> None:
    """List the sites that were ever approved, and what expires soon."""
    _, folder = _open(federation)
    from server.superlink import provision

    found = provision.members(folder)
    if as_json:
        typer.echo(json.dumps([m.model_dump(mode="json") | {"admitted": m.admitted} for m in found]))
        return
    for m in found:
        state = f"until {m.until:%Y-%m-%d}" if m.admitted else "revoked" if m.revoked else "expired"
        typer.echo(f"{m.site:20} {state:18} {m.fingerprint}")
    for line in provision.warnings(folder):
        typer.echo(f"warning: {line}", err=True)


@app.command(
    "accept-ledger", epilog='Example: fedsynth server accept-ledger brains.yaml north --why "DPO, 12 Oct: disk lost"'
)
def accept_ledger_command(
    federation: File,
    site: Annotated[str, typer.Argument(help="name of the site")],
    why: Annotated[str, typer.Option(help="who decided at the hospital, and why; written into the journal")],
) -> None:
    """Take a site's ledger that was refused because it is shorter than one that it showed before, or another.

    Only after the hospital's privacy office has decided: what the lost records said was spent is not counted there any more.
    """
    _, folder = _open(federation)
    from server import ledgers

    new = ledgers.accept(folder, site, why)
    typer.echo(f"accepted the ledger of {site}: {count(new.records, 'record')}, {new.hash[:12]}")


@app.command("doctor", epilog="Example: fedsynth server doctor brains.yaml --json")
def doctor_command(
    federation: File, as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False
) -> None:
    """Look at keys, certificates, TLS, address, port, sites, journal and machine, and say how to mend what is wrong.

    Exit code 1 when something is bad, 0 otherwise.
    """
    settings = _read(federation)
    folder = federation.resolve().parent / settings.name
    if not (folder / "server.pem").exists():
        raise ConfigError(f"{folder} holds no federation; run `fedsynth server provision {federation}` first")
    from server.doctor import examine
    from shared.checks import report

    report(examine(settings, folder), as_json=as_json)


@app.command("serve", epilog="Example: fedsynth server serve brains.yaml")
def serve_command(federation: File) -> None:
    """Run the server until Ctrl-C or SIGTERM. Outside, only approved nodes find anything; runs begin with `server run`."""
    settings, folder = _open(federation)
    from server.superlink.serve import serve
    from shared import logs

    logs.begin()
    serve(settings, folder)


@app.command("run", epilog="Example: fedsynth server run brains.yaml configs/demo.yaml --heldout heldout")
def run_command(
    federation: File,
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="what to run, e.g. configs/demo.yaml")],
    heldout: Annotated[
        Path | None, typer.Option(help="held-out images: a folder that `client ingest` made, or a heldout.npz")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="stop the run; run again to go on")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json at the end")] = False,
) -> None:
    """Run an experiment with the sites of a running server; summary, release and report at the end.

    Ctrl-C leaves the run going; the same command follows it again. A run that was cut off goes on after its last round.
    """
    from shared.config.experiment import Experiment
    from shared.config.loading import read

    _read(federation)
    wanted = read(experiment, Experiment)
    _, folder = _open(federation)
    out = folder / "runs" / wanted.name
    if stop:
        (out / "wanted.json").unlink(missing_ok=True)
        typer.echo(f"stopped {wanted.name}")
        return
    from rich.console import Console

    from server.superlink.run import run

    console = Console(stderr=as_json)
    report = run(folder, wanted, heldout, console)
    if as_json:
        typer.echo((out / "summary.json").read_text(encoding="utf-8"))
    console.print(f"report   {report}\nrelease  {out / 'release'}", highlight=False, soft_wrap=True)


def compare(heard: str | None, expected: str, what: str) -> None:
    """Ask for the digits, or take the ones given; FederationError unless they are the expected ones."""
    from shared.crypto import keys

    heard = heard if heard is not None else typer.prompt(f"type {what}")
    if not keys.same_fingerprint(heard, expected):
        raise FederationError(f"these are not the digits of {what}; do not go on, somebody may stand in between")


def _read(federation: Path) -> FederationFile:
    from server.superlink.federation import FederationFile
    from shared.config.loading import read

    return read(federation, FederationFile)


def _open(federation: Path) -> tuple[FederationFile, Path]:
    settings = _read(federation)
    from server.superlink import provision

    return settings, provision.folder_of(federation, settings)


def _authority(folder: Path) -> str:
    from shared.crypto import keys

    return keys.certificate_fingerprint((folder / "ca.pem").read_text(encoding="utf-8"))
