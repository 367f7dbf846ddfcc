"""A site's data to its cohort: one file per patient, a manifest line per input, and a key that stays.

Everything is written beside its place and renamed, the cohort as a whole folder: an interrupted ingest leaves the old
cohort or none, and running it again heals it.

Left out: resuming half way; face removal (refused unless the site says that it is not needed); text in pixels.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import dataset, dicom, images, labels, manifest, nifti, provenance, pseudonym, reader
from client.inputs import Cut, Found, Inputs
from shared.config import Site
from shared.errors import DataError


@dataclass(frozen=True)
class IngestReport:
    """Totals of one ingest. `reasons`: files withheld by reason code."""

    patients: int
    slices: int
    passed: int
    quarantined: int
    refused: int
    reasons: dict[str, int]


def ingest(
    site: Site,
    *,
    classes: Sequence[str],
    image_size: int,
    slices_per_patient: int,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Read `site.data`; write work/cohort/<pseudonym>.npz, work/manifest.jsonl and, where absent, the hospital's key.

    classes   names of the labels in order; a patient's label is an index into them
    progress  called with (done, total)

    Raises DataError, in one line without patient data, when nothing usable is found; the manifest then tells why.
    """
    if site.face_removal == "required":
        raise DataError(
            "face removal is not built in yet; say `face_removal: none` in the site file if the input holds no face, "
            "or if you accept that faces stay in the slices, which never leave the site"
        )
    data, work = site.data.resolve(), work.resolve()
    if work.is_relative_to(data):
        raise DataError("the work folder must not lie inside the data folder; choose another")
    table = labels.locate(site.labels, data).resolve() if site.labels else None
    files = reader.listing(data, ignore=table)
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    records = dataset.records(site, work)
    records.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = pseudonym.load_or_make(records / dataset.KEY_FILE)
    by_identifier = labels.read(table, classes, key) if table else {}
    inputs = Inputs(data, files, key, progress)
    cut = Cut(image_size, slices_per_patient, site.minimum_slices)

    partial = work / "cohort.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    (partial / dataset.COHORT_FILE).write_text(dataset.cohort_id(key), encoding="ascii")
    sha256, slices = {}, 0
    for found in _patients(site.format, inputs, cut, classes):
        label = by_identifier.get(found.identifier, found.label)
        dataset.save(dataset.Patient(found.pseudonym, label, found.x_SHW), partial)
        sha256[found.pseudonym] = hashlib.sha256((partial / f"{found.pseudonym}.npz").read_bytes()).hexdigest()
        slices += len(found.x_SHW)
    entries = inputs.entries(sha256)
    _replace(partial, work / "cohort")
    manifest.write(entries, work / "manifest.jsonl", provenance.header())
    counts, reasons = manifest.verdicts(entries), manifest.reasons(entries)
    if not sha256:
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        raise DataError(f"no usable patient among {len(entries)} files ({why}); see {work / 'manifest.jsonl'}")
    return IngestReport(len(sha256), slices, counts["PASS"], counts["QUARANTINED"], counts["REFUSED"], reasons)


def _patients(kind: str, inputs: Inputs, cut: Cut, classes: Sequence[str]) -> Iterator[Found]:
    match kind:
        case "dicom":
            return dicom.patients(inputs, cut)
        case "nifti":
            return nifti.patients(inputs, cut)
        case _:
            return images.patients(inputs, cut, classes)


def _replace(partial: Path, place: Path) -> None:
    """Put the new cohort in the place of the old one."""
    old = place.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    partial.rename(place)
    shutil.rmtree(old, ignore_errors=True)
