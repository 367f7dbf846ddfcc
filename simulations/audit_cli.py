"""`fedsynth privacy audit`. It rehearses, so it lives here; `shared/cli.py` puts it into the group of the room `privacy`.

The command imports what it needs when it runs, after it has read the settings: help and a wrong key are answered at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli import progress
from shared.errors import PrivacyError

if TYPE_CHECKING:
    from simulations.audit import Audit

app = typer.Typer()


@app.command("audit", epilog="Example: fedsynth privacy audit configs/demo.yaml --run out/demo")
def audit_command(
    config: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="What is to be audited.")],
    canaries: Annotated[int, typer.Option(min=100, help="Canary patients; more of them, a sharper bound.")] = 2000,
    finished: Annotated[
        Path | None, typer.Option("--run", help="A finished simulation; attack its model instead of a rehearsal's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; default out/<name>-audit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of tables.")] = False,
) -> None:
    """Try to break the privacy that an experiment states: canaries, membership inference, copies. Exit code 1 when it breaks.

    The canaries' bound holds with 95 % confidence. Below the stated epsilon it proves nothing; above, the code is wrong.
    """
    from shared import plugins

    experiment = plugins.read(config)
    from simulations.audit import run

    folder = out or Path("out") / f"{experiment.name}-audit"
    found = run(experiment, folder, canaries=canaries, finished=finished, progress=progress)
    if as_json:
        typer.echo((folder / "audit.json").read_text(encoding="utf-8"))
    else:
        _print(found)
        typer.echo(f"{folder / 'audit.json'}, canaries.png, membership.png, copies.png")
    problems = found.problems()
    if problems:
        raise PrivacyError("the audit contradicts the stated privacy: " + "; ".join(problems))


def _print(found: Audit) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from privacy.accounting import gdp_mu
    from privacy.membership_inference import ceiling

    console = Console()
    b, s, n, c = found.canaries, found.sampling, found.nearness, found.copies
    table = Table(box=SIMPLE_HEAD, title=f"{found.experiment}: epsilon {b.stated:.3f} per patient, delta {b.delta:g}")
    for column in ("test", "found", "if the statement is true"):
        table.add_column(column, overflow="fold")
    table.add_row(
        f"canaries: {b.inside + b.outside} counted",
        f"epsilon at least {b.epsilon:.2f} ({b.confidence:.0%} confidence)",
        f"at most {b.stated:.2f}",
    )
    table.add_row(f"sampling: {s.batches} batches", f"p {s.p_value:.3g} ({s.worst})", "0.001 or more")
    table.add_section()
    mu = gdp_mu(b.stated, b.delta)
    for name, m in found.membership.items():
        table.add_row(
            f"membership by {name}",
            f"AUC {m.auc:.2f} ({m.auc_low:.2f} to {m.auc_high:.2f})\n"
            f"TPR at 1 % FPR {m.tpr_at_1pct:.0%} ({m.tpr_low:.0%} to {m.tpr_high:.0%})",
            f"at most {found.best.auc:.2f}\nat most {found.best.tpr_at_1pct:.0%}"
            + (f" ({ceiling(m.fpr, mu):.0%} at {m.fpr:.0%})" if m.fpr > 0.015 else ""),
        )
    table.add_section()
    table.add_row(
        f"{n.images} images: closer to a training patient",
        f"{n.closer_share:.0%} ({n.low:.0%} to {n.high:.0%})",
        "about 50 %",
    )
    table.add_row("near a training / held-out patient", f"{n.near_train:.1%} / {n.near_heldout:.1%}", "about equal")
    table.add_row("copies", f"{c.copies} of {c.images}", "0")
    console.print(table)
    m = next(iter(found.membership.values()))
    console.print(
        f"Membership and copies: {found.source}; {m.members} members, {m.nonmembers} others. 95 % intervals over patients.",
        highlight=False,
    )
    if m.fpr > 0.015:
        console.print(
            f"{m.nonmembers} others are too few to see an FPR of 1 %: none of them above the threshold is an FPR of "
            f"{m.fpr:.0%} on average.",
            highlight=False,
        )
