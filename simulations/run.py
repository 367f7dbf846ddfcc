"""One simulation, whole: hospitals -> de-identified cohorts -> federation -> summary, release, report.

Everything lands in one folder. Run again on the same folder it goes on where it stopped; a finished step is not repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from client import dataset
from client.readers.ingest import ingest
from server import finalize
from server.aggregation.base import check_weights
from server.evaluation.evaluate import Heldout
from server.plan import plan
from server.reports.report.write import write_report
from server.superlink.follow import Follow, progress
from shared import plugins
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.config.site import Site
from shared.errors import ConfigError, ReleaseRefused
from shared.files import write_bytes
from shared.models import weights
from shared.models.device import check_memory, device_for
from simulations.cohorts import hospitals
from simulations.federation import federate


def dry_run(experiment: Experiment) -> dict[str, Any]:
    """What would be run: the resolved settings, parameters, epsilon and NSR."""
    relaxed = experiment.model_copy(update={"privacy": experiment.privacy.model_copy(update={"max_nsr": 1e9})})
    work = plan(relaxed)
    return {"plan": dataclasses.asdict(work), "settings": experiment.model_dump(mode="json")}


def simulate(
    experiment: Experiment,
    out: Path,
    console: Console,
    inception_weights: Path | None = None,
    *,
    repeatable: bool = False,
) -> Path:
    """Run the experiment into `out`; returns the path of the report. ReleaseRefused comes after the report is written.

    Plug-ins that this process has loaded take part (shared/plugins.py); an experiment that still names some is refused.

    repeatable   all noise from the experiment's seed: the run repeats bit for bit, protects nobody and is never released
    """
    plugins.refuse(experiment)
    out = out.resolve()  # the apps run in folders of their own
    # Check before anything is made
    device = device_for(experiment.performance)
    names = [site.name for site in experiment.sites] or map(hospitals.site_name, range(experiment.cohort.sites))
    check_weights(experiment.federation, list(names))
    work = plan(experiment)
    model = weights.load_base(experiment.base, experiment.model, experiment.classes)  # refuses here, not in every app
    settings = experiment.training
    alone = settings.trainable == "appearance"  # then drawing is what takes most
    images = experiment.performance.sampling_batch // 4 if alone else settings.slices * settings.draws
    check_memory(model.training_bytes(images, 2 if experiment.performance.precision == "bfloat16" else 4), device)
    _claim(experiment, out)
    private = (
        f"epsilon {work.epsilon:.3f} per patient (delta {experiment.privacy.delta:g}), noise multiplier "
        f"{work.noise_multiplier:.4g}, NSR {work.nsr:.3g}"
        if work.epsilon is not None
        else "without privacy"
    )
    console.print(
        f"[bold]{experiment.name}[/] · {work.trainable_parameters:,} of {work.total_parameters:,} parameters · "
        f"{work.steps} steps · {private} · {device.type}",
        highlight=False,
    )
    # Hospitals: data, then each one's de-identified cohort
    sites, heldout = hospitals.build(experiment, out, lambda text: console.print(f"  {text}", highlight=False))
    if repeatable:
        _fix_keys(experiment, [site.name for site in sites], out)
    for site in sites:
        _ingest(site, experiment, out / "sites" / site.name, console)
    target = out / "server" / "heldout.npz"
    if not target.exists():
        _ingest(heldout, experiment, out / "heldout", console)
        _keep_heldout(out / "heldout" / "cohort", target)
    # Federation
    if not (out / "summary.json").exists():
        with progress(console) as bar:
            federate(experiment, out, Follow(console, bar, experiment), inception_weights, repeatable=repeatable)
    # Summary, release, report
    summary = finalize.summarise(out)
    refused: ReleaseRefused | None = None
    if experiment.release.images_per_class and not (out / "release").exists():
        try:
            with progress(console) as bar:  # drawn already where the sites were asked about it
                total = experiment.release.images_per_class * len(experiment.classes)
                task = bar.add_task("drawing the release", total=total)
                finalize.publish(out, summary, lambda done, _: bar.update(task, completed=done))
        except ReleaseRefused as error:
            refused = error
    report = write_report(out)
    if refused is not None:
        console.print(f"report   {report.resolve()}", highlight=False, soft_wrap=True)
        raise refused
    return report


def _claim(experiment: Experiment, out: Path) -> None:
    """One folder, one experiment."""
    path = out / "experiment.json"
    if path.exists() and read(path, Experiment) != experiment:
        raise ConfigError(f"{out} holds a run with other settings; give another --out, or delete it")
    write_bytes(path, experiment.model_dump_json(indent=2).encode())


def _fix_keys(experiment: Experiment, sites: list[str], out: Path) -> None:
    """Pseudonyms, and with them the order of patients, from the seed."""
    for work in (out / "heldout", *(out / "sites" / name for name in sites)):
        path = work / dataset.KEY_FILE
        if not path.exists():
            write_bytes(path, hashlib.sha256(f"{experiment.seed}/{work.name}".encode()).digest())
            path.chmod(0o600)


def _ingest(site: Site, experiment: Experiment, work: Path, console: Console) -> None:
    if (work / "manifest.jsonl").exists() and any((work / "cohort").glob("*.npz")):
        return
    with progress(console) as bar:
        task = bar.add_task(f"{site.name}: de-identifying", total=None)
        report = ingest(
            site,
            classes=list(experiment.classes),
            image_size=experiment.model.image_size,
            slices_per_patient=experiment.cohort.slices_per_patient,
            work=work,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"  {site.name}: {report.patients} patients, {report.slices} slices; {report.passed} passed, "
        f"{report.quarantined} quarantined, {report.refused} refused",
        highlight=False,
    )


def _keep_heldout(cohort: Path, target: Path) -> None:
    """The held-out cohort as one file for the server."""
    # Pseudonyms are random; in an order of their own the patients give the same figures in every run
    patients = sorted(dataset.load(cohort), key=lambda p: (p.label, p.x_SHW.tobytes()))
    held = Heldout(
        x_NHW=np.concatenate([p.x_SHW for p in patients]),
        patient_N=np.concatenate([np.full(len(p.x_SHW), i) for i, p in enumerate(patients)]),
        label_N=np.concatenate([np.full(len(p.x_SHW), p.label) for p in patients]),
    )
    held.save(target)
