"""`fedsynth journal`: the journals of both sides, checked and shown.

A command imports what it needs when it runs: help is answered at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import DataError

if TYPE_CHECKING:
    from shared.journal.chain import Record

app = typer.Typer(help="The journals of both sides: what was asked, decided, refused and sent.", no_args_is_help=True)

Where = Annotated[
    Path,
    typer.Argument(metavar="PATH", help="journal.jsonl, or its folder: WORK of a site, the coordinator's, a run's"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
BESIDE = ("index", "previous", "hash", "kind", "time")


@app.callback()
def _journal() -> None:
    """The journals of both sides: what was asked, decided, refused and sent."""


@app.command(epilog="Example: fedsynth journal verify work --public-key journal.pub.pem")
def verify(
    path: Where,
    checkpoint: Annotated[
        Path | None, typer.Option(help="a copy of journal.checkpoint that was kept elsewhere")
    ] = None,
    public_key: Annotated[Path | None, typer.Option(help="PEM of the key that must have signed")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a journal offline: every byte, every link, and that nothing is missing of what was signed. Changes nothing.

    Exit code 0: whole; 4: a record was altered, which is named; 5: records are missing at the end; 6: no good checkpoint.
    """
    from shared.crypto import signing
    from shared.journal import verifier

    found = verifier.verify_journal(path, checkpoint, signing.load_public(public_key) if public_key else None)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(f"{found.state}: {found.said}")
        if found.key:
            typer.echo(f"public key: {found.key}")
        if found.key and public_key is None:
            typer.echo(
                "Who signed is shown only by comparing the public key with one that you know, or by --public-key."
            )
    if code := verifier.EXIT_CODES[found.state]:
        raise typer.Exit(code)


@app.command(epilog="Example: fedsynth journal show brains --json")
def show(path: Where, as_json: AsJson = False) -> None:
    """Print what a journal holds, oldest first, once it is checked."""
    from shared.journal import journal, verifier

    found = verifier.find(path)
    if found.name != journal.FILE:
        raise DataError(f"{found} is not called {journal.FILE}; `journal verify` takes any name")
    print_entries(journal.read(found.parent), as_json=as_json)


def print_entries(entries: list[Record], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(entries))
        return
    for entry in entries:
        said = "  ".join(f"{name}={_text(value)}" for name, value in entry.items() if name not in BESIDE)
        typer.echo(f"{entry['time']}  {entry['kind']:18}  {said}".rstrip())


def _text(value: Any) -> str:
    """As a line of a terminal: a reason came from another machine, and moves no cursor here."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)
