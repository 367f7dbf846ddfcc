"""Make the hospitals of a simulation: their data, their own site files, and the central held-out cohort.

    out/hospitals/<site>/...        what the hospital holds (DICOM of phantoms, or its share of a folder of images)
    out/sites/<site>/site.yaml      what the hospital says about itself

Phantom hospitals differ as real ones do: in contrast, noise and class mix. Their sites say `face_removal: none` and
`text_check: none`, and so do those that share a folder of images: it must be one that holds neither faces nor text.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from privacy.noisy_statistics import asked
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.errors import DataError
from shared.files import write_bytes
from simulations.cohorts import phantom_dicom, phantoms

NAMES = ("north", "south", "east", "west", "harbour", "hill", "lake", "forest", "river", "valley")
IMAGES = (".png", ".jpg", ".jpeg")


def build(experiment: Experiment, out: Path, progress: Callable[[str], None]) -> tuple[list[Site], Site]:
    """Write everything under `out`; returns the sites and the held-out cohort as one more site ("heldout")."""
    if experiment.data == "sites":
        sites, heldout = (
            list(experiment.sites),
            _phantom_site(experiment, "heldout", len(NAMES), out, experiment.cohort.heldout_patients),
        )
        heldout = heldout.model_copy(update={"labels": None})  # the phantoms' classes are not the experiment's
        progress("held-out cohort: phantoms, because the listed sites keep their patients")
    elif experiment.data == "phantoms":
        names = [site_name(i) for i in range(experiment.cohort.sites)]
        sites = []
        for index, name in enumerate(names):
            progress(f"{name}: writing DICOM of {experiment.cohort.patients_per_site} phantoms")
            sites.append(_phantom_site(experiment, name, index, out, experiment.cohort.patients_per_site))
        heldout = _phantom_site(experiment, "heldout", len(NAMES), out, experiment.cohort.heldout_patients)
    else:
        sites, heldout = _deal(experiment, Path(experiment.data), out)
    if experiment.data != "sites":  # made-up hospitals share what they are asked for; real ones say so themselves
        share = {"share": tuple(asked(experiment.privacy.statistics, 1))}
        sites = [site.model_copy(update=share) for site in sites]
    sites = [_with_cap(site, experiment) for site in sites]
    for site in sites:
        tree = site.model_dump(mode="json")
        write_bytes(out / "sites" / site.name / "site.yaml", yaml.safe_dump(tree, sort_keys=False).encode())
    return sites, heldout


def site_name(index: int) -> str:
    return NAMES[index] if index < len(NAMES) else f"site-{index + 1}"


def _with_cap(site: Site, experiment: Experiment) -> Site:
    """A rehearsal without privacy needs sites that allow it; their data is public by definition of a simulation."""
    if experiment.privacy.epsilon is None:
        return site.model_copy(update={"epsilon_cap": None})
    return site


def _phantom_site(experiment: Experiment, name: str, index: int, out: Path, patients: int) -> Site:
    rng = np.random.default_rng((experiment.seed, index))
    heldout = name == "heldout"
    look = (
        phantoms.Look()
        if heldout
        else phantoms.Look(
            contrast=float(rng.uniform(-0.08, 0.08)),
            noise=float(rng.uniform(0.6, 1.8)),
            bias=float(rng.uniform(0.6, 1.6)),
        )
    )
    mix = None if heldout else rng.dirichlet(np.full(len(phantoms.CLASSES), 3.0)).tolist()
    folder = out / "hospitals" / name
    if not (folder / "labels.csv").exists():
        phantom_dicom.write_hospital(
            folder,
            rng,
            patients=patients,
            size=experiment.model.image_size,
            look=look,
            mix=mix,
            planted=name == experiment.cohort.planted,
        )
    return Site(
        name=name,
        data=folder,
        format="dicom",
        modality=experiment.modality,
        labels=folder / "labels.csv",
        face_removal="none",
        text_check="none",
        epsilon_cap=max(8.0, experiment.privacy.epsilon or 8.0),
        delta=experiment.privacy.delta,
    )


def _deal(experiment: Experiment, source: Path, out: Path) -> tuple[list[Site], Site]:
    """Deal the patients of a folder class/patient/*.png|jpg over sites; classes stay balanced, patients whole."""
    if not source.is_dir():
        raise DataError(f"there is no folder {source}; `data` names a folder class/patient/*.png|jpg")
    rng = np.random.default_rng(experiment.seed)
    missing = [name for name in experiment.classes if not (source / name).is_dir()]
    if missing:
        raise DataError(f"{source} has no folder for the class `{missing[0]}`")
    patients = [
        (name, p)
        for name in experiment.classes
        for p in sorted((source / name).iterdir())
        if p.is_dir() and any(f.suffix.lower() in IMAGES for f in p.iterdir())
    ]
    wanted = experiment.cohort.heldout_patients + experiment.cohort.sites
    if len(patients) < wanted:
        raise DataError(
            f"{source} has {len(patients)} patients; {experiment.cohort.heldout_patients} held out and at least one "
            f"for each of {experiment.cohort.sites} sites need {wanted}"
        )
    # Stratified by class: shuffle within classes, interleave, and hold out evenly
    order = np.concatenate(
        [rng.permutation([i for i, (c, _) in enumerate(patients) if c == name]) for name in experiment.classes]
    )
    held_positions = np.linspace(0, len(order) - 1, experiment.cohort.heldout_patients).round().astype(int)
    held = {int(order[i]) for i in held_positions}
    rest = [int(i) for i in order if int(i) not in held]
    sites = []
    for index in range(experiment.cohort.sites):
        name = site_name(index)
        folder = _copy([patients[i] for i in rest[index :: experiment.cohort.sites]], out / "hospitals" / name)
        sites.append(
            Site(
                name=name,
                data=folder,
                format="images",
                modality=experiment.modality,
                face_removal="none",
                text_check="none",
                epsilon_cap=max(8.0, experiment.privacy.epsilon or 8.0),
                delta=experiment.privacy.delta,
            )
        )
    folder = _copy([patients[i] for i in sorted(held)], out / "hospitals" / "heldout")
    heldout = Site(name="heldout", data=folder, format="images", face_removal="none", text_check="none")
    return sites, heldout.model_copy(update={"modality": experiment.modality})


def _copy(patients: list[tuple[str, Path]], folder: Path) -> Path:
    for label, patient in patients:
        target = folder / label / patient.name
        if not target.exists():
            shutil.copytree(patient, target)
    return folder
