"""A site's data to its cohort: one file per patient, a manifest line per input, and a key that stays.

Everything is written beside its place and renamed, the cohort as a whole folder: an interrupted ingest leaves the old
cohort or none, and running it again goes on with the patients who are not finished (`client.readers.resume`).

Left out: several patients of a PACS at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import dataset
from client.deidentification import manifest, profile, provenance, pseudonym, reader
from client.modalities import reader_of
from client.pacs import pull, spool
from client.readers import dicom, folder, images, labels, nifti, persons, resume, tables, text, whose
from client.readers.inventory import Cut, Found, Inputs, Step
from client.readers.labels import Labels
from client.readers.resume import Batch, Files, Task
from client.readers.whose import People
from client.verification import report_words
from shared import pictures
from shared.config.site import Site
from shared.errors import DataError
from shared.modalities.base import modality

# Settings that do not change what a patient's files become
UNRELATED = {
    "name", "data", "pacs", "labels", "epsilon_cap", "delta", "records", "separate_cohorts", "share", "policy",
}  # fmt: skip


@dataclass(frozen=True)
class IngestReport:
    """Totals of one ingest.

    reasons   files withheld by reason code
    people    patient identifiers that were met; of these `joined` to another as one person; `alike`: that look like one of
              somebody else but for case, zeros, blanks and signs
    labels    how the table of labels fits (`client.readers.labels`), and the patients with and without a label; empty without one
    """

    patients: int
    slices: int
    passed: int
    quarantined: int
    refused: int
    reasons: dict[str, int]
    people: dict[str, int]
    labels: dict[str, int]


def ingest(
    site: Site,
    *,
    classes: Sequence[str],
    image_size: int,
    slices_per_patient: int,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    jobs: int = 1,
) -> IngestReport:
    """Read `site.data` or fetch from `site.pacs`; write work/cohort/<pseudonym>.npz and work/manifest.jsonl.

    Where absent, the hospital's key is made.

    classes   names of the labels in order; a patient's label is an index into them
    progress  called with (done, total): of files, twice each, or of patients when they come from a PACS
    say       told, in one line, what was taken up of an earlier run over a folder
    jobs      patients of a folder that are worked on at the same time, each in a process of its own

    Raises DataError, in one line without patient data, when nothing usable is found; the manifest then tells why.
    """
    _check_faces(site)
    work = work.resolve()
    data = site.data.resolve() if site.data else None
    if data is not None and work.is_relative_to(data):
        raise DataError("the work folder must not lie inside the data folder; choose another")
    table, whose_table = (tables.locate(path, data or Path()).resolve() if isinstance(path, Path) else None
                          for path in (site.labels, site.people))  # fmt: skip
    files = reader.listing(data, ignore=[path for path in (table, whose_table) if path]) if data is not None else []
    key = _key(site, work)
    listed = _labels(site, table, files, classes, key)
    people = _people(site, whose_table, files, classes, key, listed)
    models = text.models() if site.text_check == "required" else {}
    cut = Cut(
        image_size,
        slices_per_patient,
        site.minimum_slices,
        text=site.text_check == "required",
        steps=_steps(site),
        faces_go=_faces_go(site),
        modality=site.modality,
    )
    source = _Source(site, key, cut, tuple(classes), listed, people)
    task = Task(source.read, source.settings, key, work, site.default_issuer)
    counted: dict[str, dict[str, int]] = {}

    def met(identifiers: list[set[str]]) -> None:
        counted.update(source.counts([each for each in identifiers if each]))

    store = work / "finished"
    store.mkdir(exist_ok=True, mode=0o700)
    with spool.alone(store):
        partial = work / "cohort.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        (partial / dataset.COHORT_FILE).write_text(dataset.cohort_id(key), encoding="ascii")
        if site.pacs is not None:
            codes = modality(site.modality).codes
            outcome = pull.pull(site.pacs, task, partial, codes, progress, met)
        else:
            assert data is not None
            if site.format == "images":
                images.check_classes(Inputs(data, files, key, people=people), classes)
            ties = {"dicom": dicom.ties, "nifti": nifti.ties, "images": images.ties}[site.format]
            outcome = pull.Outcome(folder.read(task, ties, data, files, partial, progress, say, jobs, met, people))
        batch = outcome.batch
        _write_names(batch, partial / dataset.NAMES_FILE)
        _replace(partial, work, lambda: dataset.register(site, work, image_size=image_size, classes=classes))
        if "labels" in counted:
            counted["labels"] |= batch.labelled
        manifest.write(batch.entries, work / "manifest.jsonl", _ran(site, models), counted)
    counts, reasons = manifest.verdicts(batch.entries), manifest.reasons(batch.entries)
    if outcome.silence is not None:
        raise DataError(
            f"{outcome.silence}; {len(batch.slices)} patients are in the cohort, and {reasons.get('not-reached', 0)} are still "
            "to be asked for: run the same command again to go on"
        )
    if not batch.slices:
        why = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        why += f"; {outcome.problem}" if outcome.problem else ""
        cure = next((f"{report_words.CURES[reason]}; " for reason in reasons), "")
        raise DataError(
            f"no usable patient among {len(batch.entries)} files ({why}); {cure}see {work / 'manifest.jsonl'}"
        )
    return IngestReport(
        len(batch.slices),
        sum(batch.slices.values()),
        counts["PASS"],
        counts["QUARANTINED"],
        counts["REFUSED"],
        reasons,
        counted["people"],
        counted.get("labels", {}),
    )


@dataclass(frozen=True)
class _Source:
    """How the files of this site become patients."""

    site: Site
    key: bytes
    cut: Cut
    classes: tuple[str, ...]
    listed: Labels | None
    people: People

    def read(self, data: Path, files: Files, place: Path) -> Batch:
        """The slices of some files below `data`, written to `place`, and the verdict on each file."""
        inputs = Inputs(data, files, self.key, people=self.people, default_issuer=self.site.default_issuer)
        sha256, slices, labels = {}, {}, {}
        for found in self._patients(inputs):
            said = self._label(found.identifiers)
            label = found.label if said is None else said
            dataset.save(dataset.Patient(found.pseudonym, label, found.x_SHW), place)
            sha256[found.pseudonym] = hashlib.sha256((place / f"{found.pseudonym}.npz").read_bytes()).hexdigest()
            slices[found.pseudonym], labels[found.pseudonym] = len(found.x_SHW), label
        return Batch(inputs.entries(sha256), slices, labels, frozenset(inputs.studies), frozenset(inputs.names))

    def counts(self, people: list[set[str]]) -> dict[str, dict[str, int]]:
        """What is known of the identifiers of each person before any pixel is read. DataError where the table of labels misses."""
        number = sum(map(len, people))
        found = {"people": {"identifiers": number, "joined": number - len(people), "alike": persons.alike(people)}}
        if self.listed is not None:
            found["labels"] = self.listed.match([self.spellings(name) for each in people for name in each], self.key)
        return found

    def spellings(self, identifier: str) -> frozenset[str]:
        """How a table of labels may have an identifier."""
        return frozenset({identifier}) if self.site.format == "dicom" else whose.spellings(identifier)

    def _label(self, identifiers: Iterable[str]) -> int | None:
        if self.listed is None:
            return None
        return self.listed.of(pseudonym.token(self.key, "label", identifier) for identifier in identifiers)

    def settings(self, *patients: str) -> str:
        """Keyed token of all that decides what these patients' files become: settings, code and labels."""
        labels = [self._label(self.spellings(patient)) for patient in patients]
        said = f"{resume.code()} {self.site.model_dump_json(exclude=UNRELATED)} {self.cut} {self.classes} {labels}"
        return pseudonym.token(self.key, "settings", said)

    def _patients(self, inputs: Inputs) -> Iterator[Found]:
        match self.site.format:
            case "dicom":
                return dicom.patients(inputs, self.cut)
            case "nifti":
                return nifti.patients(inputs, self.cut)
            case _:
                return images.patients(inputs, self.cut, self.classes)


def _check_faces(site: Site) -> None:
    """DataError where a face would stay that the site file wants removed."""
    wanted = modality(site.modality)
    if site.face_removal == "required" and wanted.faces == "stay":
        raise DataError(
            f"of {wanted.code} no face can be removed: say `face_removal: none` if the input holds no face, or if you accept that "
            "faces stay in the slices, which never leave the site"
        )
    if _faces_go(site) and site.format == "images":
        raise DataError(
            "pictures hold no volume, so nobody can check that a face is gone; ingest the DICOM or NIfTI files, or say "
            "`face_removal: none` in the site file if the pictures hold no face"
        )


def _labels(site: Site, table: Path | None, files: Files, classes: Sequence[str], key: bytes) -> Labels | None:
    """What the site's table says, or else the participants.tsv of its BIDS trees."""
    if table is not None:
        return labels.read(table, classes, key)
    found = [path for path, unfit in files if path.name == "participants.tsv" and unfit is None]
    found = [path for path in found if not nifti.DERIVED_FOLDERS.intersection(path.parts)]
    said = labels.participants(found, classes, key) if site.format == "nifti" else None
    return said if said is not None and said.by_identifier else None


def _people(
    site: Site, table: Path | None, files: Files, classes: Sequence[str], key: bytes, listed: Labels | None
) -> People:
    """How the site's paths say whose a file is."""
    people = People(
        key,
        site.people if isinstance(site.people, str) else "table",
        above=1 if site.format == "images" else 0,
        classes=frozenset(classes),
        listed=frozenset(listed.by_identifier if listed is not None else ()),
        table=whose.read(table, key) if table is not None else {},
    )
    if table is not None and site.data is not None:
        whose.fits(people.table, (path.relative_to(site.data.resolve()).parts for path, _ in files), key)
    return people


def _faces_go(site: Site) -> bool:
    """Whether faces are taken off: the site wants it, and there are any."""
    return site.face_removal == "required" and modality(site.modality).faces == "removed"


def _steps(site: Site) -> tuple[Step, ...]:
    """What every volume goes through before its pictures are made, in order."""
    return reader_of(site.modality).steps() if _faces_go(site) else ()


def _ran(site: Site, models: Mapping[str, str]) -> dict[str, Any]:
    """The header of the manifest: only what ran on every file that passed."""
    scaling = {"scaling": pictures.RULE if site.format == "images" else modality(site.modality).scaling}
    if not _faces_go(site):
        return provenance.header(models=models) | scaling
    networks = {**models, **reader_of(site.modality).networks()}
    return provenance.header((profile.BASIC_PROFILE, profile.CLEAN_FEATURES), networks) | scaling


def _write_names(batch: Batch, path: Path) -> None:
    """The people's further pseudonyms, where they have any."""
    also = sorted(batch.names - batch.slices.keys())
    if also:
        path.write_text("".join(f"{name}\n" for name in also), encoding="ascii")


def _key(site: Site, work: Path) -> bytes:
    """The hospital's key, made with its folder where there is none."""
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    records = dataset.records(site, work)
    records.mkdir(parents=True, exist_ok=True, mode=0o700)
    return pseudonym.load_or_make(records / dataset.KEY_FILE)


def _replace(partial: Path, work: Path, register: Callable[[], object]) -> None:
    """Put the new cohort in the place of the old one. Its facts go first and come last: see dataset.py."""
    place, old = work / "cohort", work / "cohort.old"
    dataset.forget(work)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    partial.rename(place)
    register()
    shutil.rmtree(old, ignore_errors=True)
