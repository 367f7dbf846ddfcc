"""Patients on disk: one file each, named by a pseudonym. The unit of privacy is decided here.

    WORK/cohort/<pseudonym>.npz   a patient
    WORK/cohort/cohort.id         whose key made the pseudonyms
    WORK/node/cohort.json         what may be known of the cohort without opening it (`Facts`); written last, so that a cohort which
                                  is being replaced is never taken for the one before

Left out: sharding for cohorts that do not fit in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from client.deidentification import pseudonym
from privacy import ledger_members
from privacy.planning import default_delta
from shared.config.record import Positive, Record
from shared.config.site import Site
from shared.crypto import keys
from shared.errors import DataError
from shared.files import sync_folder, write_arrays, write_bytes
from shared.modalities.base import PIPELINE, modality

LOG = logging.getLogger("fedsynth.client")
LEDGER_FILE = "ledger.jsonl"
KEY_FILE = "pseudonym.key"
NAMES_FILE = "cohort.names"  # beside it: further pseudonyms of the people in it, of identifiers that are theirs as well
COHORT_FILE = "cohort.id"  # inside the cohort's folder: whose key made its pseudonyms


@dataclass(frozen=True)
class Patient:
    """Everything of one person that training may see.

    pseudonym   keyed token that names the person
    label       index into the experiment's classes; -1: unlabelled
    x_SHW       (slices, height, width) uint8; inferior to superior, study after study; file order for folders of images
    """

    pseudonym: str
    label: int
    x_SHW: np.ndarray


def save(patient: Patient, folder: Path) -> None:
    """Write `<pseudonym>.npz` whole or not at all. The same patient always gives the same bytes."""
    write_arrays(folder / f"{patient.pseudonym}.npz", x=patient.x_SHW, label=np.int64(patient.label))


class Facts(Record):
    """What the node may know of a cohort: enough to compare it with an experiment and to charge for it, and no patient.

    cohort       name in the ledger, from the hospital's key
    members      SHA-256 of the list of pseudonyms, which lies beside the ledger; none: the cohort was made with another key
    delta        what follows from the number of patients (a power of ten), for sites whose file names none
    modality, image_size, channels   of the pictures
    classes      names of the labels in order, as given to the ingest; none: every patient is unlabelled
    pipeline     number of the pipeline that made the pictures (shared/modalities/base.py)

    What a file of an older version lacks has the value that everything had then.
    """

    version: Literal[1] = 1
    cohort: str
    members: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    delta: float
    modality: str = "mr"
    image_size: Positive
    channels: Positive = 1
    classes: tuple[str, ...]
    pipeline: Positive = 1


def facts_path(work: Path) -> Path:
    return keys.private_folder(work / "node") / "cohort.json"


def register(site: Site, work: Path, *, image_size: int, classes: Sequence[str]) -> Facts:
    """Write down the facts of the finished cohort of `work`, and the list of its members beside the ledger.

    Whoever has several identifiers is on the list by each: another cohort that knows the person by one of them shares a patient.
    """
    folder, mine = work / "cohort", records(site, work)
    names = sorted(path.stem for path in folder.glob("*.npz"))
    cohort = cohort_id(mine)
    try:
        ours = (folder / COHORT_FILE).read_text(encoding="ascii") == cohort
        also = folder / NAMES_FILE
        more = also.read_text(encoding="ascii").split() if also.exists() else []
    except (OSError, UnicodeDecodeError):
        ours, more = False, []
    facts = Facts(
        cohort=cohort,
        members=ledger_members.keep(mine / LEDGER_FILE, {*names, *more}) if ours else None,
        delta=default_delta(max(1, len(names))),
        modality=site.modality,
        image_size=image_size,
        channels=modality(site.modality).channels,
        classes=tuple(classes),
        pipeline=PIPELINE,
    )
    write_bytes(facts_path(work), facts.model_dump_json(indent=2).encode())
    return facts


def forget(work: Path) -> None:
    """A cohort that is about to be replaced has no facts, whenever the replacing ends."""
    path = facts_path(work)
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def facts(work: Path) -> Facts:
    """The facts of a cohort. DataError where the ingest was not finished, or was made by an older version."""
    try:
        return Facts.model_validate_json(facts_path(work).read_bytes())
    except (OSError, ValidationError):
        raise DataError(
            f"{work} has no whole {facts_path(work).name}: run `fedsynth client ingest` again; what is finished is taken over"
        ) from None


def load_usable(folder: Path, image_size: int) -> list[Patient]:
    """The patients whom training can use. One who cannot be read, or whose images have another size, is left out, and only this
    site's log says that there was one: a failure would tell others about a patient."""
    found, left = [], 0
    for path in sorted(folder.glob("*.npz")):
        try:
            patient = load_one(path)
        except DataError:
            left += 1
            continue
        if patient.x_SHW.shape[1:] == (image_size, image_size):
            found.append(patient)
        else:
            left += 1
    if left:
        LOG.error("%d patients cannot be used and contribute nothing; run `fedsynth client ingest` again", left)
    return found


def load(folder: Path) -> list[Patient]:
    """All patients of a cohort folder in the order of their pseudonyms; DataError when there is none."""
    patients = [load_one(path) for path in sorted(folder.glob("*.npz"))]
    if not patients:
        raise DataError(f"no patients in {folder}; run `fedsynth client ingest` first")
    return patients


def load_one(path: Path) -> Patient:
    """One patient's file; DataError when it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x_SHW, label = arrays["x"], int(arrays["label"])
        if x_SHW.dtype != np.uint8 or x_SHW.ndim != 3 or len(x_SHW) == 0:
            raise ValueError
    except (Exception, MemoryError):  # noqa: BLE001 - zip, zlib and numpy raise whatever they like at bytes that are not theirs
        raise DataError(f"{path.name} is damaged; run `fedsynth client ingest` again") from None
    return Patient(path.stem, label, x_SHW)


def cohort_id(folder_or_key: Path | bytes) -> str:
    """Name of the cohort in the ledger: a function of the site's key alone, so no setting of a run can change it.

    folder_or_key   the key, the work folder, its `cohort` folder, or the key file
    """
    if isinstance(folder_or_key, bytes):
        return pseudonym.cohort(folder_or_key)
    for path in (folder_or_key / KEY_FILE, folder_or_key.parent / KEY_FILE, folder_or_key):
        if path.is_file():
            return pseudonym.cohort(pseudonym.load(path))
    raise DataError(f"no {KEY_FILE} in {folder_or_key}; run `fedsynth client ingest` first")


def records(site: Site, work: Path) -> Path:
    """The folder of the hospital's key and ledger: the one its file names, or the work folder.

    Raises DataError when the file names one and the work folder has a key or a ledger of its own: two ledgers would each
    know half of what was spent.
    """
    if site.records is None or site.records.resolve() == work.resolve():
        return work
    for name in (KEY_FILE, LEDGER_FILE):
        if (work / name).exists():
            raise DataError(
                f"{work} holds a {name} of its own, and the site file names other `records`; move both the key and the "
                "ledger there if there are none yet, or begin a new work folder"
            )
    return site.records
