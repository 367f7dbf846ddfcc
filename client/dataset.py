"""Patients on disk: one file each, named by a pseudonym. The unit of privacy is decided here.

Left out: sharding for cohorts that do not fit in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.rebuild import pseudonym
from shared.config import Site
from shared.errors import DataError

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
    """Write `<pseudonym>.npz` under a temporary name, then rename. The same patient always gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{patient.pseudonym}.partial"
    with partial.open("wb") as file:
        np.savez_compressed(file, x=patient.x_SHW, label=np.int64(patient.label))
    partial.replace(folder / f"{patient.pseudonym}.npz")


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
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
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
    for name in (KEY_FILE, "ledger.jsonl"):
        if (work / name).exists():
            raise DataError(
                f"{work} holds a {name} of its own, and the site file names other `records`; move both the key and the "
                "ledger there if there are none yet, or begin a new work folder"
            )
    return site.records


def members(site: Site, work: Path, cohort: Iterable[Patient]) -> frozenset[str] | None:
    """Pseudonyms of everybody in the cohort, or none where it was not made with the key that the hospital's records hold.

    Whoever has several identifiers is in it by each, so that another cohort that knows the person by one of them shares a patient.
    """
    try:
        made_by = (work / "cohort" / COHORT_FILE).read_text(encoding="ascii")
        names = work / "cohort" / NAMES_FILE
        also = names.read_text(encoding="ascii").split() if names.exists() else []
    except (OSError, UnicodeDecodeError):
        return None
    if made_by != cohort_id(records(site, work)):
        return None
    return frozenset(patient.pseudonym for patient in cohort) | frozenset(also)
