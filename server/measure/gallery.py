"""Reads images of any two sets that somebody wants compared: PNG and JPEG, NPZ, DICOM, in the folders people have.

A set is one of
  a folder with metadata.jsonl   `file_name`, and `label` and `patient` where there are such columns: a release of ours, or any
                                 image folder in the layout of the hub
  a folder of PNG or JPEG        class/patient/image: the patient is the folder; class/image or image: patients are not known
  a folder of DICOM              the patient is the PatientID; every frame is an image
  an NPZ file or a folder of it  `x_NHW` with `patient_N` and `label_N` where there are, or `x` (one patient a file)

An image is made 8 bit grey: DICOM by its window, everything else by `shared.pictures`, the rule by which hospitals ingest
pictures; samples deeper than 8 bits share one scale within a patient, or within the set where no patients are known. Then it is
padded to a square with black, and resized once, bilinear with antialiasing. Pixels that are no numbers (NaN) make an image
unusable: it is left out and counted. Black and flat images are counted and kept: whoever draws them is judged by them. Who is
who stays inside: neither patients nor file names are ever printed.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from server.measure import samples
from server.measure.samples import PICTURES
from server.measure.samples import Entry as Entry  # noqa: PLC0414 - callers have one place for sets of images
from shared import pictures
from shared.errors import DataError

SMALLEST, LARGEST = 16, 256  # pixels a side at which sets are compared


@dataclass(frozen=True)
class Gallery:
    """Images that were read: x_NHW (N, S, S) uint8, patient_N and label_N (N,) int, and how it went.

    patients_known   whether patient_N is people; otherwise every image counts as one of its own
    found            images in the folder, of which `unreadable` could not be read, and `not_finite` hold pixels that are no numbers
    empty            of those in x_NHW, how many are nearly black or flat
    """

    x_NHW: np.ndarray
    patient_N: np.ndarray
    label_N: np.ndarray
    classes: tuple[str, ...]
    patients_known: bool
    found: int
    unreadable: int
    not_finite: int = 0
    empty: int = 0


def survey(source: Path, patients: str = "auto") -> list[Entry]:
    """Every image of a set, unread, in a fixed order.

    patients   "auto" as above; "folder": each folder is a patient; "image": each image is; or a CSV with `file,patient`

    DataError where there is no image, several kinds of files, or a table of patients that lacks an image.
    """
    if not source.exists():
        raise DataError(f"there is no {source}")
    if (source / "metadata.jsonl").is_file():
        entries = _listed(source)
    else:
        files = (
            [source]
            if source.is_file()
            else sorted(p for p in source.rglob("*") if p.is_file() and not _hidden(p, source))
        )
        kinds = {
            "PNG or JPEG": [p for p in files if p.suffix.lower() in PICTURES],
            "NPZ": [p for p in files if p.suffix.lower() == ".npz"],
            "DICOM": [p for p in files if p.suffix.lower() == ".dcm" or (not p.suffix and _is_dicom(p))],
        }
        there = [kind for kind, paths in kinds.items() if paths]
        if len(there) != 1:
            what = " and ".join(there) if there else "no PNG, JPEG, NPZ or DICOM"
            raise DataError(f"{source} holds {what}; name a folder with images of one kind")
        read = {"PNG or JPEG": _pictures, "NPZ": _archives, "DICOM": _dicoms}[there[0]]
        entries = list(read(kinds[there[0]], source))
    if not entries:
        raise DataError(f"no image in {source} could be read")
    return _with_patients(entries, source, patients)


def choose(entries: Sequence[Entry], limit: int, seed: int) -> list[Entry]:
    """At most `limit` images at random, as many of each patient as of any other."""
    if len(entries) <= limit:
        return list(entries)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(entries))
    seen: dict[object, int] = {}
    turn = np.empty(len(entries), int)
    for i in order:  # the first image of every patient, then the second of every patient, ...
        key = entries[i].patient or i
        turn[i] = seen[key] = seen.get(key, -1) + 1
    rank = np.empty(len(entries), int)
    rank[order] = np.arange(len(entries))
    kept = np.lexsort((rank, turn))[:limit]
    return [entries[i] for i in sorted(kept)]


def side(entries: Sequence[Entry]) -> int:
    """The middle of the longer sides of (a few of) a set's images, in pixels; DataError where none can be read."""
    few = [entries[i] for i in np.linspace(0, len(entries) - 1, min(25, len(entries))).astype(int)]
    sides = [max(found[0].shape) for found in (samples.of(entry) for entry in few) if found is not None]
    if not sides:
        raise DataError("none of the images can be read as grey images")
    return int(np.median(sides))


def load(entries: Sequence[Entry], size: int, progress: Callable[[int, int], None] | None = None) -> Gallery:
    """Read images at `size` pixels a side. What cannot be read is counted; DataError where nothing can."""
    images: list[np.ndarray] = []
    kept: list[Entry] = []
    unreadable = not_finite = empty = 0
    scales = samples.scales(entries)
    for i, entry in enumerate(entries):
        found = samples.of(entry)
        if found is None:
            unreadable += 1
        elif not np.isfinite(found[0]).all():
            not_finite += 1
        else:
            x_HW, window = found
            x_HW = samples.grey(x_HW, window or scales.get(entry.patient))
            empty += pictures.problem(x_HW) is not None
            images.append(samples.fit(x_HW, size))
            kept.append(entry)
        if progress:
            progress(i + 1, len(entries))
    if not images:
        raise DataError("none of the images can be read as grey images")
    classes = tuple(sorted({entry.label for entry in kept}))
    known = all(entry.patient is not None for entry in kept)
    names = [str(entry.patient) if known else str(i) for i, entry in enumerate(kept)]
    return Gallery(
        np.stack(images),
        np.unique(names, return_inverse=True)[1],
        np.array([classes.index(entry.label) for entry in kept]),
        classes,
        known,
        len(entries),
        unreadable,
        not_finite,
        empty,
    )


def _listed(source: Path) -> list[Entry]:
    entries = []
    for number, line in enumerate((source / "metadata.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            path = source / str(row["file_name"])
            patient = None if row.get("patient") is None else str(row["patient"])
        except (ValueError, KeyError, AttributeError) as error:
            raise DataError(f"line {number} of metadata.jsonl is not an object with `file_name`") from error
        if not path.resolve().is_relative_to(source.resolve()):
            raise DataError(f"line {number} of metadata.jsonl names a file outside its folder")
        entries.append(Entry(path, str(row.get("label", "")), patient))
    return entries


def _pictures(paths: Iterable[Path], source: Path) -> Iterable[Entry]:
    for path in paths:
        parents = path.relative_to(source).parent.parts if path != source else ()
        patient = "/".join(parents) if len(parents) > 1 else None
        yield Entry(path, parents[0] if parents else "", patient)


def _archives(paths: Iterable[Path], source: Path) -> Iterable[Entry]:
    for path in paths:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                one_patient = "x_NHW" not in arrays
                n = len(arrays["x" if one_patient else "x_NHW"])
                patients = arrays["patient_N"].tolist() if "patient_N" in arrays else None
                labels = (
                    arrays["label_N"].tolist()
                    if "label_N" in arrays
                    else [arrays["label"]] * n
                    if "label" in arrays
                    else [""] * n
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError("an NPZ file holds neither `x_NHW` nor `x` with images") from error
        if len(labels) != n or (patients is not None and len(patients) != n):
            raise DataError("an NPZ file needs as many patients and labels as images")
        for i in range(n):
            patient = path.stem if one_patient else None if patients is None else f"{path.stem} {patients[i]}"
            yield Entry(path, str(labels[i]), patient, i)


def _dicoms(paths: Iterable[Path], source: Path) -> Iterable[Entry]:
    for path in paths:
        try:
            d = pydicom.dcmread(path, stop_before_pixels=True)
        except (OSError, pydicom.errors.InvalidDicomError):
            yield Entry(path, "", None)  # counted as unreadable when its turn comes
            continue
        for frame in range(int(d.get("NumberOfFrames") or 1)):
            yield Entry(path, "", str(d.get("PatientID") or "") or None, frame)


def _with_patients(entries: list[Entry], source: Path, patients: str) -> list[Entry]:
    if patients == "auto":
        return entries
    if patients == "image":
        return [Entry(e.path, e.label, None, e.frame) for e in entries]
    root = source if source.is_dir() else source.parent
    if patients == "folder":
        return [Entry(e.path, e.label, str(e.path.parent.relative_to(root)), e.frame) for e in entries]
    try:
        with Path(patients).open(newline="", encoding="utf-8") as file:
            table = {row["file"]: row["patient"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(
            f"{patients} is not a CSV with the columns file,patient; or say folder, image or auto"
        ) from error
    names = [e.path.relative_to(root).as_posix() for e in entries]
    lacking = sum(name not in table for name in names)
    if lacking:
        raise DataError(f"{patients} lacks {lacking} of {len(names)} images; its `file` is the path inside the folder")
    return [Entry(e.path, e.label, table[name], e.frame) for e, name in zip(entries, names, strict=True)]


def _hidden(path: Path, source: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(source).parts)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
