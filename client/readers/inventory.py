"""The files of one ingest and what became of each: every file ends with exactly one verdict.

Left out: reading the files (`client.readers.dicom`, `client.readers.images`, `client.readers.nifti`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.deidentification import pseudonym
from client.deidentification.manifest import Entry, Reason, Verdict
from client.modalities import reader_of
from client.readers import volumes
from client.readers.volumes import Scan
from client.readers.whose import People
from shared.modalities.base import DEFAULT

Step = Callable[[Scan], Scan]


@dataclass(frozen=True)
class Cut:
    """How patients become slices: picture size, slices kept of a patient, least slices of a series.

    text      whether slices that show text are withheld
    steps     what each volume goes through, in order, before its pictures are made; a step may raise Withheld
    faces_go  whether `steps` take the faces off: not every kind of series is fit for that
    modality  of the site: a name of shared/modalities
    """

    size: int
    slices: int
    minimum: int
    text: bool = True
    steps: tuple[Step, ...] = field(default=(), repr=False)  # the repr names a run's settings; a function has none
    faces_go: bool = False
    modality: str = DEFAULT

    def pictures(self, scan: Scan, slices: int, inspect: volumes.Inspect | None = None) -> tuple[np.ndarray, Scan]:
        """(S, size, size) uint8 of a volume after all steps, and the volume that they left.

        inspect   told what is kept before it becomes pictures; it and the steps may raise Withheld
        """
        for step in self.steps:
            scan = step(scan)
        x_SHW = volumes.axial(
            scan.volume_RAS,
            scan.spacing_mm,
            size=self.size,
            count=slices,
            inspect=inspect,
            brain=scan.brain,
            cerebrum=scan.cerebrum,
            find=reader_of(self.modality).greys,
        )
        return x_SHW, scan


@dataclass(frozen=True)
class Tie:
    """Who a file's patient is: its verdict may depend on every other file with the same. All of it is patient data.

    patient   the identifier, empty where its verdict depends on no other file's
    uids      of what belongs to one person alone
    others    identifiers of further files that are this patient's
    """

    patient: str = ""
    uids: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Found:
    """One patient as read. `identifiers`: as tables of labels may have them, patient data; `label`: -1 when unknown."""

    pseudonym: str
    identifiers: frozenset[str] = field(repr=False)
    label: int
    x_SHW: np.ndarray


class Inputs:
    """Files by number, and their entries of the manifest.

    people           how the paths of files that are no DICOM say whose they are
    default_issuer   who issued the identifiers of DICOM headers that name no issuer
    names            pseudonyms that the patients found in DICOM files may have in other cohorts
    studies          keyed tokens of the studies of the DICOM files that were read
    """

    def __init__(
        self,
        folder: Path,
        files: list[tuple[Path, Reason | None]],
        key: bytes,
        progress: Callable[[int, int], None] | None = None,
        *,
        people: People | None = None,
        default_issuer: str = "",
    ) -> None:
        self.folder, self.key = folder, key
        self.people, self.default_issuer = people or People(), default_issuer
        self.studies: set[str] = set()
        self.names: set[str] = set()
        self.paths = [path for path, _ in files]
        self._progress = progress
        self._entries = [
            Entry(token, Reason.UNREADABLE, file=token)
            for token in (pseudonym.token(key, "file", str(path.relative_to(folder))) for path, _ in files)
        ]
        self._decided: set[int] = set()
        self._seen: set[int] = set()
        for number, (_, unfit) in enumerate(files):
            if unfit is not None:
                self.give(number, unfit)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self) -> list[int]:
        """Numbers of the files that have no verdict yet."""
        return [number for number in range(len(self)) if number not in self._decided]

    def parts(self, number: int) -> tuple[str, ...]:
        """Path of a file below the data folder. Patient data: compare it, never write it."""
        return self.paths[number].relative_to(self.folder).parts

    def know(self, number: int, **fields: str | dict[str, float | str] | None) -> None:
        """Note what is known of a file: token, patient, sop_class, series, face."""
        self._entries[number] = replace(self._entries[number], **fields)  # type: ignore[arg-type]

    def seen(self, number: int) -> None:
        """A first look at the file is done; half of its progress."""
        self._seen.add(number)
        self._tell()

    def give(self, number: int, reason: Reason) -> None:
        """The verdict on a file; the first one stands."""
        if number not in self._decided:
            self._entries[number] = self._entries[number].because(reason)
            self._decided.add(number)
            self._seen.add(number)
            self._tell()

    def entry(self, number: int) -> Entry:
        return self._entries[number]

    def entries(self, sha256: Mapping[str, str] | Mapping[int, str]) -> list[Entry]:
        """All entries, each with a verdict.

        sha256   digest of what a used file went into, by the patient's pseudonym or by the file's number
        """
        known = {str(name): digest for name, digest in sha256.items()}
        assert len(self._decided) == len(self), "a file without a verdict"
        return [
            replace(entry, sha256=known.get(str(number)) or known.get(entry.patient or ""))
            if entry.reason.verdict is Verdict.PASS
            else entry
            for number, entry in enumerate(self._entries)
        ]

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(len(self._seen) + len(self._decided), 2 * len(self))
