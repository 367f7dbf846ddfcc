"""`fedsynth simulate` and `fedsynth pretrain`.

A command imports what it needs when it runs, after it has read the settings: help and a wrong key are answered at once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import ConfigError

app = typer.Typer(help="Whole federations on one machine.")


@app.command("simulate", epilog="Example: fedsynth simulate configs/demo.yaml --epsilon 4 --out out/demo-eps4")
def simulate_command(
    config: Annotated[Path, typer.Argument(help="Experiment file, e.g. configs/demo.yaml.")],
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default out/<name>. Run again to go on after an interruption.")
    ] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Number of sites.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds.")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="Epsilon per patient, over all rounds; `none` trains without privacy.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of data and samples; of privacy noise only with --repeatable.")
    ] = None,
    inception_weights: Annotated[
        Path | None, typer.Option(help="Inception-v3 weights; adds the true FID (extra `inception`).")
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, parameters, epsilon and NSR; compute nothing.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Start although the noise drowns the signal (privacy.max_nsr).")] = False,
    repeatable: Annotated[
        bool, typer.Option(help="Noise from the seed: the same bits in every run, no privacy, no release.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json at the end.")] = False,
) -> None:
    """Run a federation on this machine: hospitals, de-identification, private training, evaluation, release, report."""
    overrides: dict[str, Any] = {}
    if sites is not None:
        overrides["cohort.sites"] = sites
    if rounds is not None:
        overrides["training.rounds"] = rounds
    if epsilon is not None:
        overrides["privacy.epsilon"] = _epsilon(epsilon)
    if seed is not None:
        overrides["seed"] = seed
    if force:
        overrides["privacy.max_nsr"] = 1e9
    from shared import plugins

    experiment = plugins.read(config, overrides)
    if sites is not None and experiment.sites:
        raise ConfigError(f"{config} lists its sites, so --sites does not apply; edit the list")
    from rich.console import Console

    from simulations.run import dry_run, simulate

    if dry:
        typer.echo(json.dumps(dry_run(experiment), indent=2))
        return
    console = Console(stderr=as_json)
    folder = out or Path("out") / experiment.name
    report = simulate(experiment, folder, console, inception_weights, repeatable=repeatable)
    if as_json:
        typer.echo((folder / "summary.json").read_text(encoding="utf-8"))
    console.print(
        f"\nreport   {report.resolve()}\nsummary  {(folder / 'summary.json').resolve()}\nrelease  {(folder / 'release').resolve()}",
        highlight=False,
        soft_wrap=True,
    )


def _epsilon(text: str) -> float | None:
    """A number above 0, or `none`. ConfigError otherwise."""
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"--epsilon is {text[:20]}; give a number above 0, or `none` to train without privacy")
    return value


@app.command("pretrain", epilog="Example: fedsynth pretrain configs/base.yaml --out out/base")
def pretrain_command(
    config: Annotated[Path, typer.Argument(help="Settings of the base, e.g. configs/base.yaml.")],
    out: Annotated[Path, typer.Option(help="Output folder; run again to go on after an interruption.")] = Path(
        "out/base"
    ),
) -> None:
    """Train a public base on digital phantoms. Resumable."""
    from shared.config.loading import read
    from simulations.pretraining import Pretraining

    settings = read(config, Pretraining)
    from simulations.pretrain import pretrain

    typer.echo(pretrain(settings, out))
