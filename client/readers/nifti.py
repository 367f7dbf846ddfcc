"""NIfTI files to patients: BIDS (sub-*/[ses-*/]anat/*, at any depth), a folder a patient, or flat with names that say whose
(`client.readers.whose`). Folders of derived data are skipped at any depth.

One file of each session is used: of MR one whose name says T1 before others, then the largest. NIfTI knows no physics,
so this is the one place where a name is read to select; it is never written. Volumes after the first are not used.

Left out: .hdr/.img pairs, sidecar JSON, and everything in the header but shape, type, scaling and affine.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from client.deidentification import pseudonym
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.modalities import reader_of
from client.readers import dicom, text, volumes, whose
from client.readers.inventory import Cut, Found, Inputs, Tie

ENDINGS = (".nii", ".nii.gz")
DERIVED_FOLDERS = frozenset({"derivatives", "sourcedata", "code"})
LIMIT_BYTES = 1 << 30  # unpacked
LABEL_MAP_VALUES = 16  # fewer distinct values than this are a mask, not a scan


def ties(inputs: Inputs, file: int) -> Tie:
    """The name of a file's patient, empty where its path names none; and nothing else."""
    try:
        return Tie(_person(inputs, file))
    except Withheld:
        return Tie()


def _person(inputs: Inputs, file: int) -> str:
    parts = inputs.parts(file)
    if not parts[-1].lower().endswith(ENDINGS):
        raise Withheld(Reason.NOT_AN_IMAGE)
    if DERIVED_FOLDERS.intersection(part.lower() for part in parts[:-1]):
        raise Withheld(Reason.DERIVATIVES)
    return inputs.people.person(parts)


def patients(inputs: Inputs, cut: Cut) -> Iterator[Found]:
    """Every patient with at least one usable volume; each file of the inputs has its verdict when this ends."""
    people: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file in inputs.open():
        try:
            name = _person(inputs, file)
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
            continue
        people[name][whose.session(inputs.parts(file))].append(file)
        inputs.know(file, patient=pseudonym.pseudonym(inputs.key, "", name), sop_class="nifti")
    for name in sorted(people):
        sessions = people[name]
        pictures = [
            _session(inputs, sessions[session], cut, dicom.share(cut.slices, number, len(sessions)))
            for number, session in enumerate(sorted(sessions))
        ]
        usable = [x_SHW for x_SHW in pictures if x_SHW is not None and len(x_SHW)]
        if usable:
            person = pseudonym.pseudonym(inputs.key, "", name)
            yield Found(person, whose.spellings(name), -1, np.concatenate(usable))


def _session(inputs: Inputs, files: list[int], cut: Cut, slices: int) -> np.ndarray | None:
    pictures = None
    for file in sorted(files, key=lambda file: _rank(inputs.paths[file], cut.modality)):
        if pictures is not None:
            inputs.give(file, Reason.OTHER_SERIES)
            continue
        try:
            scan = volumes.Scan(*guarded(Reason.UNREADABLE, lambda: volume(inputs.paths[file])))  # noqa: B023
            if min(scan.volume_RAS.shape) < cut.minimum:
                raise Withheld(Reason.FEW_SLICES)
            along = guarded(Reason.UNREADABLE, lambda: stored_along(inputs.paths[file]))  # noqa: B023
            inspect = partial(text.check_volume, along=along) if cut.text else None
            pictures, scan = cut.pictures(scan, slices, inspect)
            inputs.know(file, face=scan.evidence or None)
        except Withheld as withheld:
            inputs.know(file, face=withheld.evidence)
            inputs.give(file, withheld.reason)
            continue
        inputs.give(file, Reason.OK)
    return pictures


def _rank(path: Path, modality: str) -> tuple[bool, int, str]:
    preferred = any(word in path.name.lower() for word in reader_of(modality).preferred)
    return (not preferred, -path.stat().st_size, path.name)


def volume(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The first volume (right, anterior, superior) as float32, and its spacing in mm. Raises Withheld."""
    image = _stored(path)
    if image.get_data_dtype().kind not in "iuf":
        raise Withheld(Reason.COLOUR)
    if len(image.shape) < 3 or np.prod(image.shape, dtype=float) * 4 > LIMIT_BYTES:
        raise Withheld(Reason.TOO_LARGE if len(image.shape) >= 3 else Reason.GEOMETRY)
    if abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise Withheld(Reason.GEOMETRY)
    image = nibabel.as_closest_canonical(image)
    first = np.asarray(image.dataobj[(..., *[0] * (len(image.shape) - 3))], dtype=np.float32)
    if len(np.unique(first)) < LABEL_MAP_VALUES:
        raise Withheld(Reason.LABEL_MAP)
    right_mm, anterior_mm, superior_mm = (float(step) for step in np.linalg.norm(image.affine[:3, :3], axis=0))
    return first, (right_mm, anterior_mm, superior_mm)


def stored_along(path: Path) -> int:
    """Axis of `volume` along which the file's slices follow each other: as a rule, those that were acquired."""
    return int(nibabel.io_orientation(_stored(path).affine)[2][0])


def _stored(path: Path) -> nibabel.Nifti1Image:
    """The image in the file's own order; its samples are not read yet. Raises Withheld."""
    content = _unpacked(path)
    kind = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}.get(int.from_bytes(content[:4], "little"))
    if kind is None:
        kind = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}.get(int.from_bytes(content[:4], "big"))
    if kind is None:
        raise Withheld(Reason.NOT_AN_IMAGE)
    image = kind.from_bytes(content)
    if not int(image.header["qform_code"]) and not int(image.header["sform_code"]):
        raise Withheld(Reason.ORIENTATION)
    return image


def _unpacked(path: Path) -> bytes:
    """The file's bytes, unpacked up to the limit. Raises Withheld(TOO_LARGE)."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        content = file.read(LIMIT_BYTES + 1)
    if len(content) > LIMIT_BYTES:
        raise Withheld(Reason.TOO_LARGE)
    return content
