"""One run over the network, seen from the coordinator's desk: ask the running server, follow, then release and report.

Everything lands in FOLDER/runs/NAME. The run itself goes on in the server's process, whether anybody follows it or not.
"""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
from rich.console import Console

from server import finalize, journal
from server.aggregation.base import check_weights
from server.evaluation.evaluate import Heldout
from server.events import read as read_events
from server.plan import plan
from server.reports.report.write import write_report
from server.superlink import jobs, provision
from server.superlink.follow import Follow, progress
from shared import plugins
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.errors import ConfigError, DataError, FederationError, ReleaseRefused
from shared.files import write_bytes
from shared.journal.journal import configuration
from shared.models import weights

POLL_S = 0.5


def run(folder: Path, experiment: Experiment, heldout: Path | None, console: Console) -> Path:
    """Ask for the run, or follow it when it goes on already; returns the report's path.

    heldout   folder of a cohort, or a file of held-out images; needed at the first time
    Raises FederationError when no server runs or the run ends, ReleaseRefused after the report is written.
    """
    plugins.refuse(experiment)
    admitted = [m.site for m in provision.members(folder) if m.admitted]
    if not admitted:
        raise FederationError("no site is admitted yet; approve their requests with `fedsynth server approve`")
    if experiment.data == "sites":
        raise ConfigError("`sites` of an experiment are for simulations; here the admitted sites take part")
    check_weights(experiment.federation, admitted)
    sites = len(admitted)
    cohort = experiment.cohort.model_copy(update={"sites": sites})
    experiment = experiment.model_copy(update={"cohort": cohort})
    out = folder / "runs" / experiment.name
    path = out / "experiment.json"
    if path.exists() and read(path, Experiment) != experiment:
        raise ConfigError(f"{out} holds a run with other settings or sites; give the experiment another name")
    plan(experiment)
    weights.load_base(experiment.base, experiment.model, experiment.classes)
    if not (out / "summary.json").exists():
        _ask(folder, out, experiment, heldout)
        write_bytes(path, experiment.model_dump_json(indent=2).encode())
        console.print(f"[bold]{experiment.name}[/] · {sites} sites admitted · {out}", highlight=False, soft_wrap=True)
        _follow(folder, out, experiment, console)
    summary = finalize.summarise(out)
    refused: ReleaseRefused | None = None
    if experiment.release.images_per_class and not (out / "release").exists():
        try:
            finalize.publish(out, summary)
        except ReleaseRefused as error:
            refused = error
    report = write_report(out)
    if refused is not None:
        console.print(f"report   {report}", highlight=False, soft_wrap=True)
        raise refused
    return report


def _ask(folder: Path, out: Path, experiment: Experiment, heldout: Path | None) -> None:
    target = out / "server" / "heldout.npz"
    if heldout is not None and not target.exists():
        gather(heldout).save(target)
    if not target.exists():
        raise ConfigError("a run needs held-out images to evaluate on; name them with --heldout")
    if not jobs.serving(folder):
        raise FederationError(f"no server runs in {folder}; start it with `fedsynth server serve`")
    journal.write(
        out,
        "run_asked",
        configuration=configuration(experiment),
        sites=experiment.cohort.sites,
        rounds=experiment.training.rounds,
        epsilon=experiment.privacy.epsilon,
    )
    jobs.want(out, experiment.model_dump_json())


def _follow(folder: Path, out: Path, experiment: Experiment, console: Console) -> None:
    """Print what happens until the run has finished. FederationError when it failed, was stopped, or the server is gone."""
    record = out / "server" / "events.jsonl"
    failures = [i for i, event in enumerate(read_events(record)) if event["event"] == "run_failed"]
    seen = failures[-1] + 1 if failures else 0  # an earlier failure is over, since the run was asked for again
    with progress(console) as bar:
        follow = Follow(console, bar, experiment)
        while True:
            events = read_events(record)
            for event in events[seen:]:
                follow(event)
                if event["event"] == "run_finished":
                    return
                if event["event"] == "run_failed":
                    raise FederationError(f"the run ended: {event['reason']}")
            seen = len(events)
            if not (out / "wanted.json").exists():
                raise FederationError("the run was stopped; run the same command again to go on")
            if not jobs.serving(folder):
                raise FederationError("the server has ended; start it again, and the run goes on")
            time.sleep(POLL_S)


def gather(source: Path) -> Heldout:
    """Held-out images from a file of them, or from a cohort folder: one file a patient, `x` (S, H, W) uint8 and `label`."""
    if source.is_file():
        return Heldout.load(source)
    paths = sorted((source / "cohort" if (source / "cohort").is_dir() else source).glob("*.npz"))
    patients = []
    for path in paths:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                patients.append((int(arrays["label"]), arrays["x"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path.name} is not a file of held-out images; make it again") from error
    if not patients:
        raise DataError(f"no held-out images in {source}; make them with `fedsynth client ingest`")
    # File names are random; in an order of their own the patients give the same figures in every run
    patients.sort(key=lambda p: (p[0], p[1].tobytes()))
    return Heldout(
        x_NHW=np.concatenate([x for _, x in patients]),
        patient_N=np.concatenate([np.full(len(x), i) for i, (_, x) in enumerate(patients)]),
        label_N=np.concatenate([np.full(len(x), label) for label, x in patients]),
    )
