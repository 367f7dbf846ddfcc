"""`fedsynth privacy ledger`: what has been spent.

A command imports what it needs when it runs: help is answered at once.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import LedgerError, PrivacyError, SignatureError
from shared.wording import count

if TYPE_CHECKING:
    from rich.table import Table

    from privacy import ledger
    from shared.journal.chain import Record

app = typer.Typer(
    name="ledger", help="Read, verify and sign for a hospital's ledger. Only `accept` changes it.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerPath = Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger.jsonl of one site.")]


@app.command(epilog="Example: fedsynth privacy ledger show sites/north/ledger.jsonl")
def show(path: LedgerPath, as_json: AsJson = False) -> None:
    """Print every plan that a ledger reserved, how many of its rounds were drawn, and the epsilon per patient after it.

    "counted" is what the filter counts, which holds the cap though each plan may have been chosen by what those before it
    gave; "alone" is what the plan costs by itself.
    """
    from rich.console import Console

    from privacy import ledger, reservations, statement

    records = ledger.checked_records(path)
    found = _summary(path, records)
    if as_json:
        typer.echo(json.dumps({**found, "records": records}))
        return
    held = {r.record: r for r in reservations.read(records)[0]}
    table = table_of(title=f'cohort "{_words(found["cohort"])}", delta {found["delta"]:g}')
    for name in ("", "time", "plan", "drawn", "noise", "rate", "steps", "alone", "counted", "cap"):
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=name != "plan", overflow="fold")
    for r in records[1:]:
        start = (str(r["index"]), r["time"][:16])
        if r["kind"] == "reserve":
            plan = held[r["index"]]
            events = statement.merged(plan)
            numbers = [(f"{e.noise_multiplier:g}", f"{e.sampling_rate:g}", str(e.steps)) for e in events]
            drawn = f"{len(plan.drawn)}/{len(plan.rounds)}"
            alone = ledger.spent([[plan]], found["delta"])
            ends = (
                _shown(alone if math.isfinite(alone) else None, ".2f"),
                _shown(r["epsilon"], ".2f"),
                _shown(r["cap"], "g"),
            )
            table.add_row(*start, _words(plan.name), drawn, *numbers[0], *ends)
            for more in numbers[1:]:
                table.add_row("", "", "", "", *more)
        elif r["kind"] == "repair":
            table.add_row(*start, f"repair: {r.get('torn_bytes', 0)} torn bytes set aside")
        elif r["kind"] == "accepted":
            table.add_row(*start, f"accepted by {_words(r['who'])}, though records were lost: {_words(r['why'])}")
    Console().print(table)
    typer.echo(_told(found))


@app.command(epilog="Example: fedsynth privacy ledger verify sites/north/ledger.jsonl --json")
def verify(path: LedgerPath, as_json: AsJson = False) -> None:
    """Check every byte and link of a ledger, and that it runs through its high-water mark. Exit code 1, naming what is wrong.

    A ledger that was brought back together with its mark shows only against a mark or a hash that was kept elsewhere.
    """
    from privacy import ledger

    found = _summary(path, ledger.checked_records(path))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{path}: {count(found['records'], 'record')}, unbroken, up to its mark\ncohort: {found['cohort']}\n"
        f"{_told(found)}\nlast hash: {found['last_hash']}"
    )
    for made in found["accepted"]:
        lost = ", ".join(count(mark["records"], "record") for mark in made["lost"]) or "a mark that could not be read"
        typer.echo(f"accepted by {made['who']} on {made['time'][:10]}, with {lost} lost: {made['why']}")
    if found["counted_for_everybody"]:
        typer.echo(
            f"counted for everybody, because their list of patients is missing, was changed, or never was: "
            f"{count(found['counted_for_everybody'], 'reservation')}"
        )


@app.command(
    epilog='Example: fedsynth privacy ledger accept ledger.jsonl --who "Dr. A. Office" --why "disk failed; backup of May 3"'
)
def accept(
    path: LedgerPath,
    who: Annotated[str, typer.Option(help="Who decides: a person of the privacy office.")],
    why: Annotated[str, typer.Option(help="Why work may go on although records are lost.")],
    mark: Annotated[
        list[str] | None, typer.Option(help="RECORDS:HASH of a mark kept elsewhere, as the refusal names it.")
    ] = None,
) -> None:
    """Go on with a ledger that lost records. The privacy office's decision: what was lost is no longer counted, for anybody.

    First restore the ledger from a backup, as new as there is. The decision stays in the ledger, in `show`, `verify` and
    every statement. Where the ledger is gone, it is the first record of the next one.
    """
    from privacy import ledger

    lost = ledger.accept(path, who, why, [_mark(text) for text in mark or []])
    named = ", ".join(map(str, lost)) or "one that could not be read"
    typer.echo(
        f"{path}: accepted by {who}. What was spent beyond the records that are left counts no more. Lost mark: {named}"
    )


@app.command(epilog="Example: fedsynth privacy ledger export ledger.jsonl --key office.pem --out statement.json")
def export(
    path: LedgerPath,
    key: Annotated[Path, typer.Option(help="Ed25519 key in PEM; made, for you alone, when it does not exist.")],
    out: Annotated[Path, typer.Option(help="The statement; an older one is replaced.")],
) -> None:
    """Sign what a ledger holds, for the privacy office: events, epsilon per patient, last hash. No patient is in it.

    Prints the fingerprint of the public key: hand it over on another way than the statement.
    """
    from privacy import statement
    from shared import files
    from shared.crypto import signing

    signer = signing.load_or_make(key)
    data = statement.make(path, signer)
    try:
        files.replace(out, data)
    except OSError as error:
        raise LedgerError(f"cannot write {out}: {error.strerror or error}") from error
    typer.echo(f"{out}: signed\npublic key: {signing.fingerprint(signer.public_key())}")


@app.command(epilog="Example: fedsynth privacy ledger check-statement statement.json --ledger ledger.jsonl")
def check_statement(
    path: Annotated[Path, typer.Argument(metavar="STATEMENT", help="A statement.json made by `export`.")],
    ledger_path: Annotated[
        Path | None, typer.Option("--ledger", help="The ledger that it must follow from; it may have grown since.")
    ] = None,
    public_key: Annotated[Path | None, typer.Option(help="PEM of the key that must have signed it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a statement offline: every byte, who signed, and, with the ledger, that it follows from it. Exit code 1 if not."""
    from privacy import statement
    from shared.crypto import signing

    try:
        data = path.read_bytes()
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {error.strerror or error}") from error
    public = signing.load_public(public_key) if public_key else None
    said, signer = statement.check(data, public=public, path=ledger_path)
    if as_json:
        typer.echo(json.dumps({**said, "fingerprint": signing.fingerprint(signer)}))
        return
    cap = _shown(said["cap"], "g")
    typer.echo(
        f"{path}: not a byte was changed since it was signed\n"
        f"cohort: {said['cohort']}, {count(said['records'], 'record')}, {said['time']}\n"
        f"{_told(said)}, cap {cap}\n"
        f"last hash: {said['last_hash']}\npublic key: {signing.fingerprint(signer)}"
    )
    if public is None:
        typer.echo(
            "Who signed it is shown only by comparing the public key with one that you know, or by --public-key."
        )


def _shown(value: float | None, digits: str) -> str:
    """null in a record is infinity: without noise, or without a cap."""
    return "infinite" if value is None else f"{value:{digits}}"


def _told(found: dict[str, Any]) -> str:
    """Both numbers; a statement of version 1 has one."""
    counted, spent = _shown(found["epsilon"], ".4f"), _shown(found.get("spent", found["epsilon"]), ".4f")
    return (
        f"epsilon per patient, counted by the filter: {counted}; spent if nothing was chosen by what was seen: {spent} "
        f"(delta {found['delta']:g})"
    )


def _words(text: str) -> str:
    """Words of others, for a terminal."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))


def _mark(text: str) -> ledger.Mark:
    if not re.fullmatch("[0-9]{1,12}:[0-9a-f]{64}", text):
        raise PrivacyError(f"--mark {text[:80]!r} is no RECORDS:HASH")
    from privacy import ledger

    records, digest = text.split(":")
    return ledger.Mark(int(records), digest)


def _summary(path: Path, records: list[Record]) -> dict[str, Any]:
    from privacy import ledger_members, reservations, statement

    said = statement.body(path, records)
    kept = (
        "cohort",
        "delta",
        "unit_of_privacy",
        "neighbouring_relation",
        "records",
        "epsilon",
        "spent",
        "accepted",
        "last_hash",
    )
    held = reservations.read(records)[0]
    return {
        **{key: said[key] for key in kept},
        "groups": len(said["groups"]),
        "counted_for_everybody": ledger_members.unknown(path, held),
    }


def table_of(**words: Any) -> Table:
    """A table for which 80 columns suffice."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", **words)
