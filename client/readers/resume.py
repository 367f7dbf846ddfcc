"""What is done stays done: the slices and verdicts of one batch of files, kept until what they were made of changes.

A batch is taken up again only if it was made of the same images, with the same settings and the same code, and if its bytes
are still the ones in its manifest.

Left out: versions of the libraries (a new one that changes pixels needs a new work folder).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from client import dataset
from client.deidentification import manifest
from client.deidentification.manifest import Entry, Reason
from shared import pictures
from shared.errors import DataError
from shared.modalities import base

Files = list[tuple[Path, Reason | None]]


@dataclass
class Batch:
    """What became of some files: their entries of the manifest, and slices and label of each patient.

    studies   keyed tokens of the studies that the files belong to, of DICOM
    names     further pseudonyms of the people in them
    """

    entries: list[Entry] = field(default_factory=list)
    slices: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    studies: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def add(self, other: Batch) -> None:
        self.entries += other.entries
        self.slices |= other.slices
        self.labels |= other.labels
        self.studies |= other.studies
        self.names |= other.names

    @property
    def labelled(self) -> dict[str, int]:
        """How many patients have a label, and how many have none."""
        without = sum(label < 0 for label in self.labels.values())
        return {"labelled": len(self.labels) - without, "unlabelled": without}

    def withheld(self, reason: Reason) -> Batch:
        """The same files without a patient: what would have been used is withheld."""
        entries = [
            replace(entry.because(reason), sha256=None) if entry.reason is Reason.OK else entry
            for entry in self.entries
        ]
        return Batch(entries, studies=self.studies, names=self.names)


@dataclass(frozen=True)
class Task:
    """What to do with each patient.

    read       files below a folder -> slices in another folder, and verdicts
    settings   keyed token of everything but the images that decides a result, by the identifiers of the patients
    default_issuer   of identifiers that name none
    """

    read: Callable[[Path, Files, Path], Batch]
    settings: Callable[..., str]
    key: bytes = field(repr=False)
    work: Path
    default_issuer: str = ""


@cache
def code() -> str:
    """SHA-256 of the modules of this room, of the modalities and of the grey levels: another of these is another result."""
    records = sorted(Path(base.__file__).parent.glob("*.py"))
    modules = [*sorted(Path(__file__).parents[1].rglob("*.py")), *records, Path(pictures.__file__)]
    return hashlib.sha256(b"".join(hashlib.sha256(module.read_bytes()).digest() for module in modules)).hexdigest()


def begin(folder: Path) -> Path:
    """An empty place for the slices of a batch that will be kept in `folder`."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    return partial


def keep(folder: Path, batch: Batch, settings: str, images: str) -> None:
    """Finish a batch whose slices lie where `begin` said: from now on it is found in `folder`.

    settings, images   keyed tokens of what it was made with and of; `images` is empty while it is not the whole
    """
    partial = folder.with_suffix(".partial")
    about = {"settings": settings, "images": images, "studies": sorted(batch.studies), "names": sorted(batch.names)}
    manifest.write(batch.entries, partial / "manifest.jsonl", about)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def find(folder: Path, settings: str, images: str | None = None) -> Batch | None:
    """The finished batch in `folder`; None when there is none, or when it was made of or with something else.

    images   None: whatever it was made of
    """
    try:
        kept = manifest.load(folder / "manifest.jsonl")
        made_of = kept.header.get("images")
        if kept.header.get("settings") != settings or (images is not None and made_of != images):
            return None
        entries = kept.entries
        slices, labels = {}, {}
        for path in sorted(folder.glob("*.npz")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest not in {entry.sha256 for entry in entries if entry.patient == path.stem}:
                return None
            patient = dataset.load_one(path)
            slices[path.stem], labels[path.stem] = len(patient.x_SHW), patient.label
    except (OSError, ValueError, DataError):
        return None
    missing = {entry.patient for entry in entries if entry.sha256} - slices.keys()
    studies, names = (frozenset(kept.header.get(name, ())) for name in ("studies", "names"))
    return None if missing else Batch(entries, slices, labels, studies, names)


def copy(folder: Path, place: Path) -> None:
    """Put the slices of a finished batch into `place` as well: as links where the file system has them."""
    for path in folder.glob("*.npz"):
        try:
            (place / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, place / path.name)


def forget_others(folder: Path, names: set[str]) -> None:
    """Remove every batch that is not named: patients who are no longer wanted leave nothing behind."""
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path)
