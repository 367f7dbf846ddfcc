"""`fedsynth client request | join`: how a hospital's node becomes part of a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client import node
from shared import keys
from shared.config import Site, read
from shared.errors import FederationError
from shared.weights import write_bytes

app = typer.Typer()

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the hospital's own settings")]
Work = Annotated[Path, typer.Option(help="the folder that `client ingest` made")]


@app.command("request", epilog="Example: fedsynth client request north.yaml --work work")
def request_command(
    site: SiteFile,
    work: Work,
    new_key: Annotated[bool, typer.Option("--new-key", help="put the key aside and make another")] = False,
) -> None:
    """Make the node's key and a request to join. The private key stays here; send the request to the coordinator."""
    settings = read(site, Site)
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
    settings = read(site, Site)
    paper = keys.read_paper(kit, keys.Kit)
    expected = keys.certificate_fingerprint(paper.ca)
    typer.echo(f"{paper.federation} at {paper.address}, certificate authority  {expected}")
    heard = fingerprint if fingerprint is not None else typer.prompt("type the digits that the coordinator reads out")
    if not keys.same_fingerprint(heard, expected):
        raise FederationError("these are not the digits of the kit; do not go on, somebody may stand in between")
    node.join(paper, settings, work)
    typer.echo(f"joined {paper.federation} as {settings.name}, until {paper.until:%Y-%m-%d}")
