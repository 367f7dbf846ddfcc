"""A folder of DICOM files to patients: headers first, then one series of each study, rebuilt and stacked.

Only the rebuilt records reach the volume; the source datasets are dropped file by file.

Left out: fetching the files (`client.pacs.pull`); several patients at a time (`client.intake.folder`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydicom.dataset import Dataset

from client.intake import series, text, volumes
from client.intake.inputs import Cut, Found, Inputs
from client.rebuild import deidentify, enhanced, export, gates, profile, pseudonym, reader, rules
from client.rebuild.manifest import Reason, Withheld
from client.rebuild.redaction import guarded

WANTED = frozenset(
    {"SOPClassUID", "DirectoryRecordSequence", "ConversionType", "SecondaryCaptureDeviceManufacturer", "ImageType"}
    | {"BurnedInAnnotation", "ComplexImageComponent", "PatientID", "IssuerOfPatientID", "RescaleType", *series.WORDS}
    | {rule.keyword for _, table in profile.SOP_CLASSES.values() for rule in table if rule.kind != "pixels"}
    | {rule.keyword for rule in (*series.KEYS.values(), *series.PHYSICS.values())}
)

IDENTITY = frozenset({"PatientID", "SOPInstanceUID"})


@dataclass
class Series:
    """The frames of one series of one study of one patient; tokens are keyed."""

    token: str
    frames: list[series.Frame] = field(default_factory=list)
    physics: series.Physics | None = None

    @property
    def files(self) -> set[int]:
        return {frame.file for frame in self.frames}


@dataclass
class Person:
    """The studies of one patient, by the study's token, then by the series' token."""

    identifier: str = ""
    issued: bool = False
    studies: dict[str, dict[str, Series]] = field(default_factory=lambda: defaultdict(dict))


def ties(inputs: Inputs, file: int) -> tuple[str, str]:
    """The patient's identifier and the instance UID of a file; empty where its verdict cannot depend on another file's."""
    try:
        header = reader.header(inputs.paths[file], IDENTITY)
        patient = guarded(Reason.NO_PATIENT, lambda: rules.identifier_of(header))
        return patient, guarded(Reason.UNREADABLE, lambda: "".join(gates.words(header, "SOPInstanceUID")))
    except Withheld:
        return "", ""


def patients(inputs: Inputs, cut: Cut) -> Iterator[Found]:
    """Every patient with at least one usable series; each file of the inputs has its verdict when this ends."""
    people = _scan(inputs, cut.modality)
    _withhold_unissued(inputs, people)
    for name in sorted(people):
        studies = people[name].studies
        pictures = [
            _study(inputs, studies[study], cut, share(cut.slices, number, len(studies)))
            for number, study in enumerate(sorted(studies))
        ]
        usable = [x_SHW for x_SHW in pictures if x_SHW is not None and len(x_SHW)]
        if usable:
            yield Found(name, people[name].identifier, -1, np.concatenate(usable))


def _withhold_unissued(inputs: Inputs, people: dict[str, Person]) -> None:
    """A patient without an issuer may be the one of the same number that has one: one person would count as two."""
    issued = {person.identifier for person in people.values() if person.issued}
    for name in [name for name, person in people.items() if not person.issued and person.identifier in issued]:
        for found in (group for study in people.pop(name).studies.values() for group in study.values()):
            _give(inputs, found.files, Reason.NO_ISSUER)


def share(slices: int, number: int, studies: int) -> int:
    """A patient's slices are shared out over the studies, so that no patient has more than another for having more."""
    return max(1, slices // studies + (number < slices % studies))


def _scan(inputs: Inputs, modality: str) -> dict[str, Person]:
    people: dict[str, Person] = defaultdict(Person)
    met: set[str] = set()
    for file in inputs.open():
        try:
            header = reader.header(inputs.paths[file], WANTED)
            guarded(Reason.UNREADABLE, lambda: _file_away(inputs, file, header, people, met, modality))  # noqa: B023
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
        inputs.seen(file)
    return people


def _file_away(
    inputs: Inputs, file: int, header: Dataset, people: dict[str, Person], met: set[str], modality: str
) -> None:
    key = inputs.key
    export.describe(inputs, file, header)
    gates.check(header, modality)
    instance, study, group = (
        "".join(gates.words(header, f"{level}InstanceUID")) for level in ("SOP", "Study", "Series")
    )
    if not (instance and study and group):
        raise Withheld(Reason.REQUIRED)
    if instance in met:
        raise Withheld(Reason.DUPLICATE)
    frames = series.frames_of(header, file)
    met.add(instance)
    person = people[rules.patient_of(header, key)]
    person.identifier = pseudonym.token(key, "label", rules.identifier_of(header))
    person.issued = bool("".join(gates.words(header, "IssuerOfPatientID")))
    place = person.studies[pseudonym.token(key, "uid", study)]
    token = pseudonym.token(key, "uid", group)
    place.setdefault(token, Series(token)).frames.extend(frames)
    place[token].physics = place[token].physics or series.physics_of(header)


def _study(inputs: Inputs, found: dict[str, Series], cut: Cut, slices: int) -> np.ndarray | None:
    """The pictures of the best series of a study that makes a volume; every file of the study gets its verdict."""
    candidates = []
    for token in sorted(found):
        try:
            physics = found[token].physics
            assert physics is not None
            if cut.t1_only and not physics.may_be_t1_weighted:
                raise Withheld(Reason.NOT_T1)
            volume = series.first_volume(found[token].frames)
            if len(volume) < cut.minimum:
                raise Withheld(Reason.FEW_SLICES)
            if cut.modality == "ct":
                series.check_head(volume)
        except Withheld as withheld:
            _give(inputs, found[token].files, withheld.reason)
            continue
        candidates.append((series.rank(volume, physics), token, volume))
    pictures = None
    for _, token, volume in sorted(candidates, key=lambda candidate: candidate[:2]):
        if pictures is not None:
            _give(inputs, found[token].files, Reason.OTHER_SERIES)
            continue
        try:
            pictures = _pictures(inputs, volume, cut, slices)
        except Withheld as withheld:
            _know(inputs, {frame.file for frame in volume}, withheld.evidence)
            _give(inputs, found[token].files, withheld.reason)
            continue
        _give(inputs, {frame.file for frame in volume}, Reason.OK)
        _give(inputs, found[token].files, Reason.OTHER_VOLUME)
    return pictures


def _give(inputs: Inputs, files: set[int], reason: Reason) -> None:
    for file in sorted(files):
        inputs.give(file, reason)


def _know(inputs: Inputs, files: set[int], evidence: dict[str, float | str] | None) -> None:
    for file in files if evidence else ():
        inputs.know(file, face=evidence)


def _pictures(inputs: Inputs, volume: list[series.Frame], cut: Cut, slices: int) -> np.ndarray:
    by_file: dict[int, list[int]] = defaultdict(list)
    for frame in volume:
        by_file[frame.file].append(frame.number)
    singles: list[Dataset] = []
    for file, numbers in by_file.items():
        try:
            rebuilt = deidentify.rebuild(reader.whole(inputs.paths[file]), inputs.key, cut.modality)
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
            raise Withheld(Reason.GEOMETRY) from None
        parts = enhanced.split(rebuilt) if "NumberOfFrames" in rebuilt else [rebuilt]
        singles += [parts[number] for number in numbers]
    inspect = partial(text.check_volume, along=volumes.acquired_along(volume[0].orientation)) if cut.text else None
    x_SHW, scan = cut.pictures(volumes.Scan(*volumes.from_series(singles)), slices, inspect)
    _know(inputs, set(by_file), scan.evidence)
    return x_SHW
