"""Commands that need no federation, at the top level: measure any images, check any release.

Left out: what a coordinator does with a run of its own (see `server.cli`). A command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
TOGETHER = 500  # images of one size that are looked at together


@app.command(epilog="Example: fedsynth evaluate scans/heldout out/demo/release --patients folder --out evaluation")
def evaluate(
    real: Annotated[Path, typer.Argument(help="real images: a folder of PNG, JPEG, DICOM or NPZ, or an NPZ file")],
    synthetic: Annotated[Path, typer.Argument(help="synthetic images, in the same or another form; a release of ours")],
    patients: Annotated[
        str,
        typer.Option(help="whose the real images are: auto, folder (each is a patient), image, or a CSV file,patient"),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json and evaluation.html")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    images: Annotated[int, typer.Option(min=4, help="at most so many images of each set, spread over patients")] = 1000,
    size: Annotated[
        int | None, typer.Option(min=16, max=512, help="pixels a side; default: the smaller set's own")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=20, help="resamples behind each interval")] = 200,
    seed: Annotated[int, typer.Option(help="of splits, pairs and resamples")] = 0,
    inception_weights: Annotated[
        Path | None, typer.Option(help="pt_inception-2015-12-05-6726825d.pth; adds the true FID")
    ] = None,
    lpips_weights: Annotated[Path | None, typer.Option(help="alexnet-owt-7be5be79.pth; adds LPIPS")] = None,
    radiomics: Annotated[bool, typer.Option(help="add FRD; needs frd-score and pyradiomics, slow")] = False,
    utility: Annotated[
        bool,
        typer.Option(
            "--utility", help="add what classifiers trained on either set know of real patients; needs classes"
        ),
    ] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="a file of your own that defines metrics; may be given again")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="folder that keeps features of the real images between calls; as private as they are"),
    ] = None,
) -> None:
    """Measure how near synthetic images are to real ones: every figure beside what real images score, with an interval.

    Nothing is sent anywhere. The page shows real images; keep it where those may be seen.
    """
    from rich.console import Console
    from rich.table import Table

    from server.evaluation import study
    from server.evaluation.compare import compare
    from server.evaluation.compare_page import write_page
    from shared import plugins
    from shared.files import write_bytes

    for path in plugin or []:
        plugins.load(path)
    inception = inception_weights or _path(os.environ.get("FEDSYNTH_INCEPTION_WEIGHTS"))
    with progress("reading") as tell:
        found = compare(
            real,
            synthetic,
            patients=patients,
            images=images,
            size=size,
            bootstrap=bootstrap,
            seed=seed,
            inception_weights=inception,
            lpips_weights=lpips_weights,
            with_radiomics=radiomics,
            with_utility=utility,
            cache=cache,
            progress=tell,
        )
    text = json.dumps(found.to_dict(), indent=2)
    if out is not None:
        write_bytes(out / "evaluation.json", text.encode())
        write_page(found, out / "evaluation.html")
    if as_json:
        typer.echo(text)
        return
    table = Table("measure", "synthetic", "95 %", "real against real")
    for name, f in found.figures.items():
        told = found.descriptions[name]
        table.add_row(told.title, told.shown(f.value), told.interval(f.low, f.high), told.shown(f.floor))
    for name, extra in found.extras.items():
        told = found.descriptions[name]
        table.add_row(told.title, told.shown(extra["value"]), "none", told.shown(extra["floor"]))
    Console().print(table)
    for heads, rows in (
        (study.BIOMARKER_HEADS, study.biomarker_rows(found.studied)),
        (study.UTILITY_HEADS, study.utility_rows(found.studied)),
    ):
        if rows:
            table = Table(*heads)
            for row in rows:
                table.add_row(*row)
            Console().print(table)
    for note in found.notes:
        typer.echo(note)
    if out is not None:
        typer.echo(out / "evaluation.html")


@app.command(epilog="Example: fedsynth verify release --public-key coordinator.pub.pem")
def verify(
    release: Annotated[Path, typer.Argument(help="the folder of a release")],
    public_key: Annotated[
        Path | None, typer.Option(help="the coordinator's public key, PEM, from somewhere else than the release")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Check a release that you received: not a byte changed, no file missing, none added. Exit code 1 otherwise."""
    from server.release import seal

    with progress("checking", "checking") as tell:
        found = seal.verify_release(release, public_key, tell)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{found.experiment}: {found.files} files, as they were signed by {found.fingerprint}")
    if found.ignored:
        shown = ", ".join(found.ignored[:5]) + (", ..." if len(found.ignored) > 5 else "")
        typer.echo(f"Not part of the release, left there by what carried it: {len(found.ignored)} ({shown})")
    if not found.known:
        typer.echo("Whose key that is, the release cannot say: compare the fingerprint, or give --public-key.")


@app.command(epilog="Example: fedsynth detect downloaded --json")
def detect(
    images: Annotated[Path, typer.Argument(help="a folder of PNG, JPEG, DICOM or NPZ, or a release")],
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Look for the invisible mark of a release in images: in each one, and in all of one size together.

    A mark that is found says that the pixels came through fedsynth's release. One that is not found says nothing: resizing,
    turning, blur or intent remove it, and one image below 128 pixels is too small to show it. Exit code 1 when none is found.
    """
    import numpy as np

    from server.evaluation import image_sets, samples
    from server.release import watermark

    scores: list[float] = []
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    entries = image_sets.survey(images)
    with progress("looking", "looking") as tell:
        for number, entry in enumerate(entries, 1):
            x_HW = samples.read(entry)
            if x_HW is not None:
                scores.append(watermark.score(x_HW[None]))
                together = by_size.setdefault(x_HW.shape, [])
                if len(together) < TOGETHER:
                    together.append(x_HW)
            tell(number, len(entries))
    joint = max((watermark.score(np.stack(x)) for x in by_size.values()), default=0.0)
    alone = sum(score >= watermark.THRESHOLD for score in scores)
    found = {
        "images": len(scores),
        "marked_alone": alone,
        "score_together": joint,
        "marked_together": joint >= watermark.THRESHOLD,
        "threshold": watermark.THRESHOLD,
    }
    if as_json:
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{alone} of {len(scores)} images show the mark by themselves; together they score {joint:.1f}, "
                   f"{watermark.THRESHOLD:g} is a yes")  # fmt: skip
    if not alone and joint < watermark.THRESHOLD:
        raise typer.Exit(1)


@contextmanager
def progress(doing: str, then: str = "measuring") -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=doing if done < total else then)

        yield tell


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
