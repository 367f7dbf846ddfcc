"""`fedsynth client verify`: the commands that look.

Left out: everything that writes a cohort (`client.cli`).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.wording import count

if TYPE_CHECKING:
    from client.verification.findings import Verification

SHOWN = 40  # findings printed as a table
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


app = typer.Typer()


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="rebuilt DICOM, or a work folder")],
    source: Annotated[Path | None, typer.Option(help="what it was made from: look for its values everywhere")] = None,
    key: Annotated[Path | None, typer.Option(help="the site's key, to match each input with its verdict")] = None,
    seal: Annotated[
        Path | None, typer.Option(help="if all is clean, sign the manifest with this key; made when absent")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read everything that was written once more, with other code, and report whatever should not be there.

    Nothing is changed, but for the seal that was asked for.

    Exit code 1 when anything was found. Findings name a rule, a file and an offset; they never quote a value.

    Example: fedsynth client verify rebuilt --source scans --key pseudonym.key

    Example: fedsynth client verify work --source scans --json
    """
    from client.deidentification import manifest, pseudonym
    from client.verification.findings import RULES
    from client.verification.verify import about, verify_folder
    from shared.crypto import signing
    from shared.files import write_bytes

    secret = pseudonym.load(key) if key is not None else None
    started = time.monotonic()
    result = verify_folder(folder, source, secret)
    seconds = time.monotonic() - started
    if seal is not None and not result.findings:
        signer = signing.load_or_make(seal)
        body = about(manifest.load(folder / "manifest.jsonl"))
        write_bytes(folder / "manifest.seal", signing.seal(signer, body))
        result.ran.append(f"signed: {folder / 'manifest.seal'}, by the key {signing.fingerprint(signer.public_key())}")
    if as_json:
        tree = asdict(result) | {"clean": not result.findings, "seconds": round(seconds, 2)}
        tree["findings"] = [asdict(found) | {"text": RULES[found.rule]} for found in result.findings]
        typer.echo(json.dumps(tree))
    else:
        _print(result, seconds)
    if result.findings:
        raise typer.Exit(1)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="rebuilt DICOM, or a work folder")]) -> None:
    """Write DIR/report.html again: the page for the privacy office. `ingest` and `deidentify` write it by themselves.

    Example: fedsynth client report rebuilt
    """
    from client.verification.report import write as write_report

    typer.echo(f"wrote {write_report(folder)}")


def _print(result: Verification, seconds: float) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from client.verification.findings import RULES

    console = Console()
    for done in result.ran:
        typer.echo(f"looked at: {done}")
    for left in result.skipped:
        typer.secho(f"skipped:   {left}", fg="yellow")
    if result.findings:
        table = Table("file", "offset", "rule", "what it means", box=SIMPLE_HEAD)
        for found in result.findings[:SHOWN]:
            offset = "" if found.offset is None else str(found.offset)
            table.add_row(found.file, offset, found.rule, RULES[found.rule])
        console.print(table)
        for rule, number in Counter(found.rule for found in result.findings).most_common():
            typer.echo(f"{number:6d}  {rule}: {RULES[rule]}")
    size = f"{count(result.files, 'file')}, {result.bytes / 1e6:.1f} MB in {seconds:.1f} s"
    verdict = count(len(result.findings), "finding") if result.findings else "clean: nothing was found"
    typer.secho(f"{verdict} ({size})", fg="red" if result.findings else "green")
