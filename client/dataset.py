"""Patients on disk: one file each, named by a pseudonym. The unit of privacy is decided here.

Left out: sharding for cohorts that do not fit in memory.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client import pseudonym
from shared.errors import DataError

KEY_FILE = "pseudonym.key"


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
    patients = [_load_one(path) for path in sorted(folder.glob("*.npz"))]
    if not patients:
        raise DataError(f"no patients in {folder}; run `fedsynth client ingest` first")
    return patients


def _load_one(path: Path) -> Patient:
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
