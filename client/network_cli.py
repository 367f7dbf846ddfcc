"""`fedsynth client request | join | approve | serve | doctor | journal`: a hospital's part in a federation over a network.

A command imports what it needs when it runs, after it has read the settings (see `client.cli`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import FederationError
from shared.wording import count

if TYPE_CHECKING:
    from shared.config.site import Site

app = typer.Typer()

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the hospital's own settings")]
Work = Annotated[Path, typer.Option(help="the folder that `client ingest` made")]
Door = Annotated[
    Path | None, typer.Option(help="the app runs elsewhere, by `client app`, and meets the node in this folder")
]


@app.command("request", epilog="Example: fedsynth client request north.yaml --work work")
def request_command(
    site: SiteFile,
    work: Work,
    new_key: Annotated[bool, typer.Option("--new-key", help="put the key aside and make another")] = False,
) -> None:
    """Make the node's key and a request to join. The private key stays here; send the request to the coordinator."""
    settings = _read(site)
    from client.supernode import node
    from shared.crypto import keys
    from shared.files import write_bytes

    asked = node.request(settings, work, new_key=new_key)
    path = Path(f"{settings.name}.request.json")
    write_bytes(path, asked.model_dump_json(indent=2).encode())
    typer.echo(f"send  {path.resolve()}")
    typer.echo(f"read to the coordinator by telephone:  {keys.node_fingerprint(keys.check_request(asked))}")


@app.command("join", epilog="Example: fedsynth client join north.yaml north.kit.json --work work")
def join_command(
    site: SiteFile,
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="the file that the coordinator sent")],
    work: Work,
    fingerprint: Annotated[
        str | None, typer.Option(help="the digits that the coordinator read out; asked for when absent")
    ] = None,
) -> None:
    """Keep the coordinator's kit. Ring the coordinator up: the 40 digits read out must be the ones shown here."""
    settings = _read(site)
    from client.supernode import node
    from shared.crypto import keys

    paper = keys.read_paper(kit, keys.Kit)
    expected = keys.certificate_fingerprint(paper.ca)
    typer.echo(f"{paper.federation} at {paper.address}, certificate authority  {expected}")
    heard = fingerprint if fingerprint is not None else typer.prompt("type the digits that the coordinator reads out")
    if not keys.same_fingerprint(heard, expected):
        raise FederationError("these are not the digits of the kit; do not go on, somebody may stand in between")
    node.join(paper, settings, work)
    typer.echo(f"joined {paper.federation} as {settings.name}, until {paper.until:%Y-%m-%d}")


@app.command("approve", epilog="Example: fedsynth client approve north.yaml --work work")
def approve_command(
    site: SiteFile,
    work: Work,
    look_at: Annotated[
        Path | None, typer.Option("--bundle", help="a bundle to look at, e.g. one of work/node/refused; else our own")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="an officer's key; else the node's own")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="print every changed line")] = False,
    withdraw: Annotated[str | None, typer.Option(help="withdraw the approval of the hash that begins so")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Approve the code that may run here: the sources installed on this machine, as one bundle with a hash.

    Shows what changed since the last approval, or else to the sources installed here. A coordinator with the same version has the
    same bundle; any other is refused before a byte of it is unpacked, and kept in work/node/refused to look at. What is no
    printable ASCII is shown by its number; a bundle that a person could misread cannot be approved.
    """
    settings = _read(site)
    from client.supernode import approval
    from shared.crypto import bundle, bundle_diff

    if withdraw is not None:
        typer.echo(f"withdrew {count(approval.withdraw(work, withdraw), 'approval')}")
        return
    ours = bundle.build()
    data = ours if look_at is None else look_at.read_bytes()
    digest, same = bundle.sha256(data), data == ours
    before = approval.last(settings, work)
    listing, text = bundle_diff.changes(before if before or same else ours, data)
    typer.echo(f"bundle {digest}, {count(len(data), 'byte')}")
    typer.echo(f"  {'every byte is' if same else 'NOT'} that of the sources installed on this machine")
    past = (
        "the last approval" if before else "nothing: none was approved before" if same else "the sources installed here"
    )
    typer.echo(f"  compared with {past}:")
    for line in listing or ["nothing changed"]:
        typer.echo(f"  {line}")
    if diff:
        typer.echo(text)
    approval.check(work, data)
    if not yes:
        typer.confirm(f"may this run at {settings.name}?", abort=True)
    approval.approve(settings, work, data, key)
    lacking = approval.missing(settings, work, digest)
    typer.echo(
        "signed; " + (f"before it may run it needs {count(lacking, 'more signature')}" if lacking else "it may run")
    )


@app.command("serve", epilog="Example: fedsynth client serve north.yaml --work work")
def serve_command(
    site: SiteFile,
    work: Work,
    attempts: Annotated[
        int | None, typer.Option(min=1, help="give up after so many failures one after another; else never")
    ] = None,
    door: Door = None,
) -> None:
    """Take part until Ctrl-C or SIGTERM. Connects outwards only, to the address of the kit."""
    _read(site)
    from client.supernode.supervise import supervise
    from shared import logs

    logs.begin()
    supervise(site, work, attempts, door)


@app.command("app", epilog="Example: fedsynth client app north.yaml --work work --door /run/fedsynth")
def app_command(
    site: SiteFile, work: Work, door: Annotated[Path, typer.Option(help="the folder of `client serve --door`")]
) -> None:
    """Train for a node in another container: here are the patients and no network, there the network and no patients."""
    _read(site)
    from client.supernode import starter
    from shared import logs

    logs.begin()
    starter.run(site.resolve(), work.resolve(), door.resolve())


@app.command("journal", epilog="Example: fedsynth client journal --work work --json")
def journal_command(work: Work, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """What this node was asked, what it refused and what it sent; first checked as `fedsynth journal verify` does."""
    from client.supernode import journal
    from shared.journal.cli import print_entries

    print_entries(journal.read(work), as_json=as_json)


@app.command("doctor", epilog="Example: fedsynth client doctor north.yaml --work work")
def doctor_command(
    site: SiteFile,
    work: Annotated[
        Path | None, typer.Option(help="the folder that `client ingest` makes; with it the node too")
    ] = None,
    door: Door = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Look at data, machine, settings, key, ledger and node, and say how to mend what is wrong. Exit code 1 when something is."""
    settings = _read(site)
    from client import doctor_data
    from client.doctor import examine
    from shared.checks import report

    findings = (
        doctor_data.examine(settings, work) if door is None else []
    )  # with a door, the data are in the other container
    findings += examine(settings, work, door) if work is not None else []
    report(findings, as_json=as_json)


def _read(site: Path) -> Site:
    from shared.config.loading import read
    from shared.config.site import Site

    return read(site, Site)
