"""From a PACS to slices, patient by patient: find, fetch into memory, read, forget the images, keep the result.

A study is read only when every instance that the PACS lists for it has come; else the study is withheld, the patient's other
studies are used, and the next run asks again. A patient whose images have not changed is not fetched again. When the PACS
falls silent, the patients who were read before stay as they are, and the others are withheld.

A study belongs to one person. Patients are read one by one, so two identifiers of the list that have a study in common are not
joined as in a folder: the first of the list is used, and what the other has is withheld, whether it came today or was kept.

Left out: several patients at a time; further identifiers that a header lists (in a folder they are read).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.deidentification import pseudonym, reader, rules
from client.deidentification.manifest import Entry, Reason, Withheld
from client.deidentification.redaction import guarded, redacted
from client.pacs import patient_list, spool
from client.pacs.archive import Archive, Series, Unanswered, patiently
from client.pacs.dicomweb import DicomwebArchive
from client.pacs.dimse import DimseArchive
from client.readers import resume
from client.readers.resume import Batch, Task
from shared.config.pacs import Pacs
from shared.modalities.base import Modality

IDENTITY = frozenset({"PatientID", "IssuerOfPatientID"})


@dataclass(frozen=True)
class Preview:
    """What an ingest would ask for: counts alone, of images of `modality`."""

    modality: str
    patients: int
    found: int
    studies: int
    series: int
    instances: int


@dataclass
class Outcome:
    """What came of a pull.

    silence   why the PACS fell silent half way, if it did
    problem   why a study did not come whole, if one did not (the first of them)
    """

    batch: Batch
    silence: Unanswered | None = None
    problem: Unanswered | None = None


def connect(pacs: Pacs) -> Archive:
    return DicomwebArchive(pacs) if pacs.dicomweb else DimseArchive(pacs)


def preview(pacs: Pacs, modality: Modality, progress: Callable[[int, int], None] | None = None) -> Preview:
    """Ask the PACS whether it answers, and what it has of the wanted patients; fetch nothing."""
    patients = list(patient_list.read(pacs.patients))
    found: dict[str, list[Series]] = {}
    with redacted(), connect(pacs) as archive:
        patiently(pacs, archive.ping)
        for number, patient in enumerate(patients, start=1):
            found[patient] = _find(pacs, archive, patient, modality.codes)
            if progress is not None:
                progress(number, len(patients))
    series = [one for several in found.values() for one in several]
    return Preview(modality.code, len(patients), sum(map(bool, found.values())), len({one.study for one in series}), len(series),
                   sum(len(one.instances) for one in series))  # fmt: skip


def _find(pacs: Pacs, archive: Archive, patient: str, codes: Sequence[str]) -> list[Series]:
    """The series of a patient, of any of these modalities. Raises Unanswered."""
    return [one for code in codes for one in patiently(pacs, lambda: archive.find(patient, code))]  # noqa: B023


def pull(
    pacs: Pacs,
    task: Task,
    place: Path,
    codes: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    met: Callable[[list[set[str]]], None] | None = None,
) -> Outcome:
    """Slices of every wanted patient in `place`, and their verdicts.

    codes  what Modality (0008,0060) says of the wanted images
    met    told each patient's identifiers before anything is asked; it may raise DataError

    Raises DataError, with nothing changed, when the list cannot be read or the PACS does not answer at all.
    """
    patients = patient_list.read(pacs.patients)
    if met is not None:
        met([{patient} for patient in patients])
    outcome = Outcome(Batch())
    owner: dict[str, str] = {}  # of a study: the first patient of the list who has it
    store = task.work / "finished"
    with redacted():
        spooled = spool.Spool(task.work, task.key)
        spooled.clear()
        with connect(pacs) as archive:
            patiently(pacs, archive.ping)
            names = {patient: pseudonym.token(task.key, "unit", patient) for patient in patients}
            resume.forget_others(store, set(names.values()))
            for number, (patient, issuers) in enumerate(patients.items(), start=1):
                folder, settings = store / names[patient], task.settings(patient)
                batch = None
                if outcome.silence is None:
                    try:
                        batch, problem = _one(pacs, archive, task, spooled, patient, issuers, codes, folder, settings)
                        outcome.problem = outcome.problem or problem
                    except Unanswered as error:
                        outcome.silence = _silence(archive, error)
                        outcome.problem = outcome.problem or error
                batch = batch or resume.find(folder, settings)
                if batch is None:
                    outcome.batch.entries.append(_entry(names[patient], Reason.NOT_REACHED))
                elif [study for study in batch.studies if owner.setdefault(study, patient) != patient]:
                    outcome.batch.add(batch.withheld(Reason.SHARED_STUDY))
                else:
                    outcome.batch.add(batch)
                    resume.copy(folder, place)
                if progress is not None:
                    progress(number, len(patients))
    return outcome


def _silence(archive: Archive, error: Unanswered) -> Unanswered | None:
    """None when the PACS does answer and other requests may go better, so that only this one is given up."""
    if error.final:
        return error
    try:
        archive.ping()
    except Unanswered:
        return error
    return None


def _one(pacs: Pacs, archive: Archive, task: Task, spooled: spool.Spool, patient: str, issuers: frozenset[str],
         codes: Sequence[str], folder: Path, settings: str) -> tuple[Batch, Unanswered | None]:  # fmt: skip
    """The batch of one patient, taken up again or made anew, and why a study is missing from it. Raises Unanswered."""
    found = _find(pacs, archive, patient, codes)
    listed = sorted([one.study, one.uid, *sorted(one.instances)] for one in found)
    images = pseudonym.token(task.key, "images", json.dumps([listed, sorted(issuers)]))
    done = resume.find(folder, settings, images)
    if done is not None:
        return done, None
    batch, missing = Batch(), dict[str, Unanswered]()
    for on_disk in (False, True):
        partial = resume.begin(folder)
        try:
            with spooled.folder(sum(len(one.instances) for one in found), on_disk=on_disk) as room:
                here = room / folder.name
                missing = _fetch(pacs, archive, found, here, task.key)
                files = [
                    (path, _foreign(path, patient, issuers, task.default_issuer)) for path, _ in reader.files_in(here)
                ]
                batch = task.read(room, files, partial) if files else Batch()
            break
        except spool.NoRoom:
            if on_disk:
                raise
    for study in sorted(missing):
        batch.entries.append(_entry(pseudonym.token(task.key, "uid", study), Reason.INCOMPLETE))
    if not batch.entries:
        batch.entries.append(_entry(folder.name, Reason.NOT_FOUND))
    resume.keep(folder, batch, settings, "" if missing else images)
    return batch, next(iter(missing.values()), None)


def _fetch(pacs: Pacs, archive: Archive, found: list[Series], here: Path, key: bytes) -> dict[str, Unanswered]:
    """Fetch every series into `here`, one file an instance; the studies that did not come whole, and why, without their files.

    Raises Unanswered when the PACS has fallen silent.
    """
    here.mkdir(mode=0o700)
    come: dict[str, Path] = {}
    missing: dict[str, Unanswered] = {}
    for one in found:
        if one.study in missing:
            continue

        def put(content: bytes, one: Series = one) -> None:
            arriving = here / "arriving"
            spool.put(arriving, content)
            instance = reader.instance_of(arriving)
            if instance in one.instances and instance not in come:
                come[instance] = arriving.rename(here / f"{pseudonym.token(key, 'uid', instance)}.dcm")
            else:
                arriving.unlink()

        def whole(one: Series = one, put: Callable[[bytes], None] = put) -> None:
            problem = Unanswered("it did not send every image that it lists")
            try:
                archive.fetch(one, put)
            except Unanswered as error:
                problem = error
            if not one.instances <= come.keys():
                raise problem

        try:
            patiently(pacs, whole)
        except Unanswered as error:
            silence = _silence(archive, error)
            if silence is not None:
                raise silence from None
            missing[one.study] = error
    for one in found:
        if one.study in missing:
            for instance in one.instances & come.keys():
                come.pop(instance).unlink()
    return missing


def _foreign(path: Path, patient: str, issuers: frozenset[str], default_issuer: str) -> Reason | None:
    """Why a file is not one of the patient who was asked for; None when it is, or when it cannot be read at all."""
    try:
        header = reader.header(path, IDENTITY)
        is_patient = guarded(Reason.NO_PATIENT, lambda: rules.identifier_of(header)) == patient
        issuer = guarded(Reason.NO_ISSUER, lambda: rules.issuer_of(header)) or default_issuer
    except Withheld as withheld:
        return withheld.reason
    if not is_patient or (issuers and issuer and issuer not in issuers):
        return Reason.OTHER_PATIENT
    return Reason.NO_ISSUER if issuers and not issuer else None


def _entry(token: str, reason: Reason) -> Entry:
    return Entry(token, reason, file=token)
