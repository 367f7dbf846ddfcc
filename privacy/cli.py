"""`fedsynth privacy`: what a run would cost, and what has been spent."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from privacy import accounting, durable, ledger, membership, planning, statement
from shared import signing
from shared.chain import Record
from shared.errors import LedgerError, SignatureError

app = typer.Typer(
    name="privacy",
    help="What one patient can reveal: plan a run, read a ledger. Every epsilon is per patient.",
    no_args_is_help=True,
)
ledger_app = typer.Typer(
    name="ledger", help="Read, verify and sign for a hospital's ledger. Never changes it.", no_args_is_help=True
)
app.add_typer(ledger_app)

LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "title_justify": "left"}  # 80 columns suffice
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerPath = Annotated[Path, typer.Argument(metavar="LEDGER", help="A ledger.jsonl of one site.")]


@app.callback()
def _privacy() -> None:
    """What one patient can reveal: plan a run, read a ledger. Every epsilon is per patient."""


@app.command(epilog="Example: fedsynth privacy plan --patients 100 --epsilon 8 --rounds 3 --parameters 300 --sites 4")
def plan(
    patients: Annotated[int, typer.Option(min=1, help="Patients at one site: a public, expected number.")],
    epsilon: Annotated[float, typer.Option(help="Target per patient, over all rounds.")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the federation.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a round.")] = 4,
    sampling_rate: Annotated[float, typer.Option(help="Probability that a patient takes part in a step.")] = 1.0,
    parameters: Annotated[int, typer.Option(min=1, help="Trainable parameters.")] = 10_000,
    sites: Annotated[int, typer.Option(min=1, help="Sites whose updates are averaged.")] = 1,
    delta: Annotated[
        float | None, typer.Option(help="Default, as at a site: 1e-5, or 1/(10 patients) if less.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Do not fail when the noise drowns the signal.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the noise that a target epsilon needs, whether a network can learn under it, and what else one could do.

    NSR is the norm of the noise over the largest possible signal, per step, at one site. Aim under 1; above 4 is warned of;
    above 10 the exit code is 1.
    """
    schedule = planning.Schedule(
        patients=patients,
        epsilon=epsilon,
        delta=planning.default_delta(patients) if delta is None else delta,
        rounds=rounds,
        steps=steps,
        sampling_rate=sampling_rate,
        parameters=parameters,
        sites=sites,
    )
    found = planning.plan(schedule)
    others = planning.alternatives(schedule)
    if as_json:
        tree = {"schedule": asdict(schedule), "plan": asdict(found)}
        typer.echo(json.dumps({**tree, "alternatives": {name: asdict(other) for name, other in others.items()}}))
    else:
        _print_plans({"as asked": found, **others}, sites)
    warning = planning.judge(found, force=force)
    if warning:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)


@ledger_app.command(epilog="Example: fedsynth privacy ledger show sites/north/ledger.jsonl")
def show(path: LedgerPath, as_json: AsJson = False) -> None:
    """Print every reservation of a ledger and the epsilon per patient after it. Verifies the chain first."""
    records = ledger.verify(path)
    if as_json:
        typer.echo(json.dumps({**_summary(path, records), "records": records}))
        return
    header = records[0]
    title = f'cohort "{escape(header["cohort"])}", delta {ledger.delta_now(records):g}'
    table = Table(title=title, **LOOK)
    for name in ("", "time", "run", "purpose", "noise", "rate", "steps", "epsilon", "cap"):
        words = name in ("run", "purpose")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for r in records[1:]:
        if r["kind"] == "reserve":
            numbers = (f"{r['noise_multiplier']:g}", f"{r['sampling_rate']:g}", str(r["steps"]))
            ends = (_shown(r["epsilon"], ".4f"), _shown(r["cap"], "g"))
            table.add_row(str(r["index"]), r["time"][:16], escape(r["run"]), escape(r["purpose"]), *numbers, *ends)
        else:
            table.add_row(
                str(r["index"]), r["time"][:16], "", f"{r['kind']}: {r.get('torn_bytes', 0)} torn bytes set aside"
            )
    Console().print(table)
    typer.echo(f"epsilon per patient: {_shown(_summary(path, records)['epsilon'], '.4f')}")


@ledger_app.command(epilog="Example: fedsynth privacy ledger verify sites/north/ledger.jsonl --json")
def verify(path: LedgerPath, as_json: AsJson = False) -> None:
    """Check every byte and link of a ledger. Exit code 1, naming the record, when one was changed.

    Records cut from the end leave no trace in the file: compare the last hash with one noted earlier.
    """
    found = _summary(path, ledger.verify(path))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(
        f"{path}: {found['records']} records, unbroken\ncohort: {found['cohort']}\n"
        f"epsilon per patient: {_shown(found['epsilon'], '.4f')} at delta {found['delta']:g}\nlast hash: {found['last_hash']}"
    )
    if found["counted_for_everybody"]:
        typer.echo(
            f"{found['counted_for_everybody']} reservation(s) count for everybody: their list of patients is missing, was "
            "changed, or never was"
        )


@ledger_app.command(epilog="Example: fedsynth privacy ledger export ledger.jsonl --key office.pem --out statement.json")
def export(
    path: LedgerPath,
    key: Annotated[Path, typer.Option(help="Ed25519 key in PEM; made, for you alone, when it does not exist.")],
    out: Annotated[Path, typer.Option(help="The statement; an older one is replaced.")],
) -> None:
    """Sign what a ledger holds, for the privacy office: events, epsilon per patient, last hash. No patient is in it.

    Prints the fingerprint of the public key: hand it over on another way than the statement.
    """
    signer = signing.load_or_make(key)
    data = statement.make(path, signer)
    try:
        durable.replace(out, data)
    except OSError as error:
        raise LedgerError(f"cannot write {out}: {error.strerror or error}") from error
    typer.echo(f"{out}: signed\npublic key: {signing.fingerprint(signer.public_key())}")


@ledger_app.command(epilog="Example: fedsynth privacy ledger check-statement statement.json --ledger ledger.jsonl")
def check_statement(
    path: Annotated[Path, typer.Argument(metavar="STATEMENT", help="A statement.json made by `export`.")],
    ledger_path: Annotated[
        Path | None, typer.Option("--ledger", help="The ledger that it must follow from; it may have grown since.")
    ] = None,
    public_key: Annotated[Path | None, typer.Option(help="PEM of the key that must have signed it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a statement offline: every byte, who signed, and, with the ledger, that it follows from it. Exit code 1 if not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SignatureError(f"cannot read {path}: {error.strerror or error}") from error
    public = signing.load_public(public_key) if public_key else None
    said, signer = statement.check(data, public=public, path=ledger_path)
    if as_json:
        typer.echo(json.dumps({**said, "fingerprint": signing.fingerprint(signer)}))
        return
    epsilon, cap = _shown(said["epsilon"], ".4f"), _shown(said["cap"], "g")
    typer.echo(
        f"{path}: not a byte was changed since it was signed\n"
        f"cohort: {said['cohort']}, {said['records']} records, {said['time']}\n"
        f"epsilon per patient: {epsilon} at delta {said['delta']:g}, cap {cap}\n"
        f"last hash: {said['last_hash']}\npublic key: {signing.fingerprint(signer)}"
    )
    if public is None:
        typer.echo(
            "Who signed it is shown only by comparing the public key with one that you know, or by --public-key."
        )


def _shown(value: float | None, digits: str) -> str:
    """null in a record is infinity: without noise, or without a cap."""
    return "infinite" if value is None else f"{value:{digits}}"


def _summary(path: Path, records: list[Record]) -> dict[str, Any]:
    header, delta = records[0], ledger.delta_now(records)
    groups = membership.counted(path, records)
    largest = max(accounting.epsilon(events, delta) for events in groups)
    return {
        "cohort": header["cohort"],
        "delta": delta,
        "unit_of_privacy": header["unit_of_privacy"],
        "neighbouring_relation": header["neighbouring_relation"],
        "records": len(records),
        "epsilon": largest if math.isfinite(largest) else None,
        "groups": len(groups),
        "counted_for_everybody": membership.unknown(path, records),
        "last_hash": records[-1]["hash"],
    }


def _print_plans(plans: dict[str, planning.Plan], sites: int) -> None:
    first = next(iter(plans.values()))
    table = Table(
        **LOOK,
        title=f"per patient, delta {first.delta:g}, add or remove one patient",
        caption=f"NSR: noise over the largest signal, one site. /{sites}: averaged over {sites} site{'s' * (sites > 1)}.\n"
        "TPR, AUC: the best that a membership attack can do, TPR at 1 % false positives.",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in ("epsilon", "noise", "rate", "steps", "NSR", f"/{sites}", "TPR", "AUC"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, p in plans.items():
        asked = (f"{p.epsilon:.2f}", f"{p.noise_multiplier:g}", f"{p.sampling_rate:g}", str(p.steps))
        follows = (f"{p.nsr:.2g}", f"{p.nsr_all_sites:.2g}", f"{p.attack_tpr_at_1pct:.0%}", f"{p.attack_auc:.2f}")
        table.add_row(name, *asked, *follows, end_section=name == "as asked")
    Console().print(table)
