"""`fedsynth client`: what a hospital does with its own data.

A command imports what it needs when it runs, after it has read the settings: help and a wrong key are answered at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from client import checks_cli, network_cli
from shared.errors import DataError
from shared.modalities import base as modalities
from shared.wording import count

app = typer.Typer(name="client", help="The hospital: its own data, and its part in a federation.", no_args_is_help=True)
app.add_typer(network_cli.app)
app.add_typer(checks_cli.app)


@app.callback()
def _client() -> None:
    """The hospital: its own data, and its part in a federation. Only `serve` sends anything; a PACS is asked, never told."""


@app.command()
def ingest(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the hospital's own settings")],
    work: Annotated[Path, typer.Option(help="folder for the cohort, the manifest and the key")],
    image_size: Annotated[int, typer.Option(min=16, max=512, help="pixels a side of each slice")] = 64,
    slices: Annotated[int, typer.Option(min=1, help="slices kept of each patient")] = 24,
    classes: Annotated[str, typer.Option(help="names of the labels in order, separated by commas")] = "",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="patients of a folder at the same time; by default one a core")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the totals as JSON")] = False,
) -> None:
    """Read a folder of DICOM, NIfTI or images, or fetch from a PACS; write patient-grouped slices and a manifest.

    Example: fedsynth client ingest site.yaml --work work --classes healthy,lesion

    Interrupted, even killed: the same command goes on with the patients who are not finished.

    Afterwards: work/cohort holds one file per patient, work/manifest.jsonl says what became of each input, and
    work/pseudonym.key must be kept: with it the same patient gets the same pseudonym next time.
    """
    from shared.config.loading import read
    from shared.config.site import Site

    settings = read(site, Site)
    from client import dataset
    from client.readers import workers
    from client.readers.ingest import ingest as ingest_site
    from client.verification import report_words
    from client.verification.report import write as write_report

    names = [name.strip() for name in classes.split(",") if name.strip()]
    with progress("reading") as tell:
        report = ingest_site(
            settings, classes=names, image_size=image_size, slices_per_patient=slices, work=work, progress=tell,
            say=lambda text: typer.echo(text, err=True), jobs=jobs or workers.cores(),
        )  # fmt: skip
    page = write_report(work)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    typer.echo(f"{settings.name}: {count(report.patients, 'patient')}, {count(report.slices, 'slice')}")
    for sentence in report_words.counted({"people": report.people, "labels": report.labels}):
        typer.echo(sentence)
    _say(report.passed, report.quarantined, report.refused, report.reasons)
    with_source = f" --source {settings.data}" if settings.data is not None else ""
    typer.echo(
        f"Next: look at {page}, run `fedsynth client verify {work}{with_source}`, and keep "
        f"{dataset.records(settings, work) / dataset.KEY_FILE} safe."
    )


@app.command()
def pacs(
    site: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="the hospital's own settings, with `pacs`")],
    as_json: Annotated[bool, typer.Option("--json", help="print the counts as JSON")] = False,
) -> None:
    """Ask the PACS what an ingest would fetch, and fetch nothing. Shows whether it answers and accepts us.

    Example: fedsynth client pacs site.yaml
    """
    from shared.config.loading import read
    from shared.config.site import Site

    settings = read(site, Site)
    if settings.pacs is None:
        raise DataError("the site file names no `pacs`")
    from client.pacs import pull

    with progress("asking") as tell:
        found = pull.preview(settings.pacs, modalities.modality(settings.modality), tell)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(
        f"the PACS answers; of {count(found.patients, 'wanted patient')} it has {found.found} with {found.modality} images"
    )
    typer.echo(
        f"an ingest would fetch {count(found.instances, 'instance')}: {found.series} series of {found.studies} studies"
    )


@app.command()
def deidentify(
    source: Annotated[Path | None, typer.Argument(metavar="IN", help="folder or file of DICOM")] = None,
    target: Annotated[Path | None, typer.Argument(metavar="OUT", help="folder for the rebuilt files")] = None,
    key: Annotated[Path | None, typer.Option(help="the site's key; made when it does not exist")] = None,
    text_check: Annotated[
        bool, typer.Option(help="look for text in every frame; withhold a series that shows any")
    ] = True,
    modality: Annotated[
        str, typer.Option(help="what is rebuilt, such as mr or ct; other files are refused")
    ] = modalities.DEFAULT,
    default_issuer: Annotated[
        str, typer.Option(help="issuer of the patient identifiers of headers that name none")
    ] = "",
    what_if: Annotated[bool, typer.Option("--what-if", help="print what would survive, and do nothing")] = False,
    conformance: Annotated[
        bool, typer.Option("--conformance", help="print the DICOM conformance statement, and do nothing")
    ] = False,
) -> None:
    """Rebuild DICOM files from the allow-list. Faces stay: keep the result in the hospital.

    Example: fedsynth client deidentify scans rebuilt --key pseudonym.key

    Example: fedsynth client deidentify --what-if --modality ct

    Example: fedsynth client deidentify --conformance > docs/conformance.md
    """
    if what_if:
        _print_table(modality)
        return
    if conformance:
        from client.deidentification.conformance import statement as conformance_statement

        typer.echo(conformance_statement(), nl=False)
        return
    if source is None or target is None or key is None:
        raise DataError("say what to read, where to write and which key: `deidentify IN OUT --key FILE`")
    from client.deidentification import export, manifest, pseudonym
    from client.verification.report import write as write_report

    modalities.modality(modality)  # an unknown one is an error before the key is made
    secret = pseudonym.load_or_make(key)
    with progress("rebuilding") as tell:
        entries = export.export(source, target, secret, tell, text_check=text_check, modality=modality,
                                default_issuer=default_issuer)  # fmt: skip
    page = write_report(target)
    counts = manifest.verdicts(entries)
    _say(counts["PASS"], counts["QUARANTINED"], counts["REFUSED"], manifest.reasons(entries))
    if not counts["PASS"]:
        raise DataError(f"no file could be rebuilt; {target / 'manifest.jsonl'} says why")
    typer.echo(f"Next: look at {page}, and run `fedsynth client verify {target} --source {source} --key {key}`.")


def _say(passed: int, quarantined: int, refused: int, reasons: dict[str, int]) -> None:
    from client.deidentification import manifest

    typer.echo(f"files: {passed} passed, {quarantined} quarantined, {refused} refused")
    for code, number in reasons.items():
        typer.echo(f"  {number:6d}  {manifest.Reason[code.upper().replace('-', '_')].text}")


def _print_table(modality: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from client.deidentification import profile

    table = Table("tag", "attribute", "what survives", title="Everything else is dropped, at every level")
    for row in profile.describe(modality):
        table.add_row(*row)
    Console().print(table)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
