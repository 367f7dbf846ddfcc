"""`fedsynth server`: what a coordinator does with a finished run; `network_cli` adds what it does before.

A command imports what it needs when it runs: help and a wrong option are answered at once.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from server import network_cli, status_cli
from shared.errors import ConfigError, ReleaseRefused

app = typer.Typer(help="The coordinator: admit sites, run the federation, release and report.", no_args_is_help=True)
app.add_typer(network_cli.app)
app.add_typer(status_cli.app)

Run = Annotated[Path, typer.Argument(help="Output folder of a finished run, e.g. out/demo.")]


@app.command(epilog="Example: fedsynth server release out/demo")
def release(
    run: Run,
    force: Annotated[bool, typer.Option("--force", help="publish although a check failed; needs --reason")] = False,
    reason: Annotated[str, typer.Option(help="why; it is printed in gate.json and on both cards")] = "",
) -> None:
    """Draw the release of a finished run, take it through the gate, and write it, signed, into RUN/release.

    Interrupted, the same command goes on. Exit code 3 when a check fails: RUN/gate.json and the report say which, and nothing
    is published. The check of the formal privacy cannot be overruled.
    """
    if (run / "release").exists():
        raise ReleaseRefused(f"{run / 'release'} exists; a release is never overwritten, move it away first")
    if force != bool(reason.strip()):
        raise ConfigError(
            "--force and --reason TEXT go together: who overrules the gate says why, and the cards repeat it"
        )
    from server import finalize
    from server.evaluation.tools import progress
    from server.reports.report.write import write_report

    try:
        with progress("drawing", "checking and writing") as tell:
            folder = finalize.publish(run, finalize.summarise(run), tell, force=reason.strip() or None)
    finally:
        if (run / "summary.json").exists():
            write_report(run)
    typer.echo(folder)


@app.command(epilog="Example: fedsynth server report out/demo")
def report(run: Run) -> None:
    """Write RUN/summary.json and RUN/report.html again from the run's own record."""
    from server import finalize
    from server.reports.report.write import write_report

    finalize.summarise(run)
    typer.echo(write_report(run))


@app.command(epilog="Example: fedsynth server review out/demo/release --real scans/heldout --reader anna --reader ben")
def review(
    release: Annotated[Path, typer.Argument(help="the folder of a release")],
    real: Annotated[Path | None, typer.Option(help="real images that readers may see; needed to begin")] = None,
    reader: Annotated[list[str] | None, typer.Option(help="a reader's name; repeat it for more")] = None,
    images: Annotated[int, typer.Option(min=2, help="of either kind, spread over patients")] = 50,
    patients: Annotated[str, typer.Option(help="whose the real images are: auto, folder, image, or a CSV")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="the review's own folder; default: `review` beside the release")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="on this machine alone; 0: any that is free")] = 8137,
    seed: Annotated[int, typer.Option(help="which images are taken")] = 0,
    results: Annotated[bool, typer.Option("--results", help="print what it has come to as JSON, and end")] = False,
) -> None:
    """Let readers judge real and synthetic images blind: which is which, how good the anatomy is, which artefacts they see.

    Prints one address for each reader, on this machine alone, and serves until Ctrl-C. Every answer is saved at once; the same
    command goes on. At the end the confusion tables, kappa and intervals are written to review.json and into the run's report.
    """
    from server.reports import agreement
    from server.reports import review as reviews
    from server.reports.report.write import write_report
    from server.reports.review_server import make_server
    from shared.files import write_bytes

    folder = out or release.parent / "review"
    if results or (real is None and not reader):
        found = reviews.open_review(folder)
    elif real is None and not (folder / "plan.json").exists():
        raise ConfigError("a review begins with real images and at least one reader; give --real and --reader")
    else:
        found = reviews.prepare(
            folder, release, real or folder, reader or [], images=images, patients=patients, seed=seed
        )
    if not found.tokens:
        raise ConfigError("a review needs a reader; give --reader NAME")
    if not results:
        with make_server(found, port) as server:
            for name, token in found.tokens.items():
                typer.echo(f"{name}: http://127.0.0.1:{server.server_address[1]}/?token={token}")
            typer.echo("Ctrl-C ends; every answer is saved at once.")
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    text = json.dumps(agreement.results(found), indent=2)
    write_bytes(folder / "review.json", text.encode())
    if folder == release.parent / "review" and (release.parent / "summary.json").exists():
        write_report(release.parent)
    typer.echo(text if results else folder / "review.json")
