"""`fedsynth privacy`: what a run would cost; `ledger_cli` tells what has been spent.

A command imports what it needs when it runs: help is answered at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from privacy import ledger_cli
from privacy.ledger_cli import AsJson, table_of

if TYPE_CHECKING:
    from privacy import planning

app = typer.Typer(
    name="privacy",
    help="What one patient can reveal: plan a run, read a ledger. Every epsilon is per patient.",
    no_args_is_help=True,
)
app.add_typer(ledger_cli.app)


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
    from privacy import planning

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


def _print_plans(plans: dict[str, planning.Plan], sites: int) -> None:
    from rich.console import Console

    first = next(iter(plans.values()))
    table = table_of(
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
